"""What a plan cuts, as JSON and as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from shearfx.cli import summary

if TYPE_CHECKING:
    from shearfx.pruning_plan import PruningPlan


def describe(plan: PruningPlan) -> dict[str, Any]:
    """Everything that ``shearfx prune --json`` says of a plan."""
    return {
        "layers": list(plan.layers),
        "asked": plan.asked,
        "achieved": plan.achieved,
        "options": plan.options,
        "cuts": [
            {"name": c.name, "kind": c.kind, "certificate": c.certificate, "size": c.size, "kept": len(c.kept)}
            for c in plan.cuts
        ],
    }


def cut_rows(plan: PruningPlan) -> list[tuple[str, str, int, int, int]]:
    """What is cut as (kind, certificate, groups, structures removed, structures in these groups)."""
    rows: dict[tuple[str, str], list[int]] = {}
    for cut in plan.cuts:
        row = rows.setdefault((cut.kind, cut.certificate), [0, 0, 0])
        row[0] += 1
        row[1] += cut.size - len(cut.kept)
        row[2] += cut.size
    return [(kind, certificate, *counts) for (kind, certificate), counts in rows.items()]  # type: ignore[misc]


def show_plan(out: Console, plan: PruningPlan) -> None:
    """Print what a plan cuts: a table by kind, and a line for each layer."""
    if plan.layers:
        share = f"{plan.layers_share:.1%} of the parameters"
        out.print(f"layers that go whole ({share}): {', '.join(plan.layers)}", markup=False, soft_wrap=True)
    if plan.layers and not plan.cuts:
        return
    table = Table(title="cut", title_justify="left", show_edge=False)
    for name in ("kind", "certificate"):
        table.add_column(name)
    for name in ("groups", "removed"):
        table.add_column(name, justify="right")
    for kind, certificate, groups, removed, size in cut_rows(plan):
        table.add_row(kind, certificate, str(groups), f"{removed:,} of {size:,}")
    out.print(table)
    per_layer: dict[str, list[str]] = {}
    for cut in plan.cuts:
        per_layer.setdefault(summary.layer_of(cut.name), []).append(f"{cut.kind} {cut.size} -> {len(cut.kept)}")
    for layer, text in summary.collapse({layer: ", ".join(texts) for layer, texts in per_layer.items()}):
        out.print(f"  {layer or 'all layers'}: {text}", markup=False, soft_wrap=True)
    for reason, names in dict(plan.options.get("left_whole", {})).items():
        out.print(f"left whole: {', '.join(names)}: {reason}", markup=False, soft_wrap=True)
    units = {"flops": "operations", "milliseconds": "time, as measured by kind of structure"}
    unit = units.get(str(plan.options.get("unit")), "parameters")
    left = " that the layers leave" if plan.layers else ""
    out.print(f"removed {plan.achieved:.2%} of the {unit}{left} (asked: {plan.asked:.2%})")
