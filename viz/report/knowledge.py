"""How much the model loses with each node group alone: the paper's Figure 4.

Source: LoRAShear, Algorithm 3 and Figure 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shearfx.viz.report.cells import cell, chart, section, table
from shearfx.viz.report.lenient import listing, mapping, number, text
from shearfx.viz.report.reading import Run
from shearfx.viz.report.widths import place

__all__ = ["knowledge"]


def knowledge(runs: Sequence[Run]) -> dict[str, Any] | None:
    """The section; None where no run has analysed its knowledge."""
    points = [point for run in runs for point in _points(run)]
    if not points:
        return None
    ratios = sorted({point["ratio"] for point in points})
    items = [
        chart(
            "knowledge" if len(ratios) == 1 else f"knowledge-{ratio:g}",
            f"Perplexity without the least salient {ratio:.0%} of one node group",
            [point for point in points if point["ratio"] == ratio],
            "Each alone, the rest of the model whole. Filled: left whole for it (unprunable).",
            draw="knowledge", wide=True,
        )
        for ratio in ratios
    ]  # fmt: skip
    named = ["run"] if len(runs) > 1 else []
    ordered = sorted(points, key=lambda point: -point["value"])
    rows = [
        [*([cell(p["run"])] if named else []), cell(p["group"]), cell(p["kind"]), cell(f"{p['ratio']:.0%}", p["ratio"]),
         cell(f"{p['value']:+.1%}", p["value"]), cell("unprunable" if p["unprunable"] else "")]
        for p in ordered
    ]  # fmt: skip
    columns = [*named, "node group", "kind", "ratio", "growth of perplexity", ""]
    items.append(table("knowledge-groups", "Node groups, the most crucial first", columns, rows[:500], fold=True))
    intro = (
        "What the model knows where: how much worse it becomes when one node group alone loses its least salient part."
    )
    return section("knowledge", "Knowledge distribution", intro, items)


def _points(run: Run) -> list[dict[str, Any]]:
    crucial = {name for name in listing(run.record("knowledge", "unprunable")) if isinstance(name, str)}
    found = []
    for row in map(mapping, listing(run.knowledge.get("rows"))):
        name, value, ratio = text(row.get("name")), number(row.get("relative")), number(row.get("ratio"))
        if not name or value is None or ratio is None:
            continue
        path, layer = place(name)
        found.append({"run": run.name, "group": name, "kind": f"{text(row.get('kind'))}", "stack": path, "layer": layer,
                      "ratio": ratio, "value": value, "unprunable": name in crucial})  # fmt: skip
    return found
