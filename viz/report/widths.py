"""Kept width, layer by layer and kind by kind; and what stayed whole, and why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from shearfx.layered_names import layer_of
from shearfx.viz.report.cells import cell, chart, section, table
from shearfx.viz.report.lenient import listing, mapping, number, text, whole
from shearfx.viz.report.reading import Run

__all__ = ["left_whole", "widths"]

SHOWN = 200
"""Rows of a table, at most."""


def counted(ranges: Any, size: int) -> int | None:
    """How many indices below ``size`` a text like ``0-2,5`` names; None where it is no such text.

    They are not written out, as :func:`shearfx.plan_text.from_ranges` does: a damaged file may name any number.

    >>> counted("0-2,5", 6), counted("0-9", 6), counted("", 6), counted("x", 6)
    (4, None, 0, None)
    """
    if not isinstance(ranges, str):
        return None
    total, last = 0, -1
    for part in filter(None, ranges.split(",")):
        found = re.fullmatch(r"(\d{1,15})(?:-(\d{1,15}))?", part, re.ASCII)
        if found is None:
            return None
        first, end = int(found[1]), int(found[2] or found[1])
        if not last < first <= end < size:
            return None
        total, last = total + end - first + 1, end
    return total


def widths(runs: Sequence[Run]) -> dict[str, Any]:
    """The section with the heat map."""
    cells: list[dict[str, Any]] = []
    for run in runs:
        cells += _cells(run)
    items = []
    if cells:
        note = "The stronger the colour, the more was cut. Numbers: the structures that stay."
        items.append(chart("kept-width", "Structures kept, by layer and kind", cells, note, draw="widths", wide=True))
    cuts = _table(runs)
    if cuts["rows"]:
        items.append(cuts)
    named = len(runs) > 1
    told = [
        *(said for run in runs for said in (_layers(run, named), _branches(run, named))),
        "" if items else "No plan could be read.",
    ]
    return section("width", "Where it was cut", " ".join(filter(None, told)), items)


def _layers(run: Run, named: bool) -> str:
    """Whole layers that went before widths were cut."""
    record = mapping(run.records.get("layers"))
    paths = [text(path) for path in listing(record.get("paths"))]
    gone, dense = number(record.get("parameters")), number(mapping(run.records.get("dense")).get("parameters"))
    share = f", {gone / dense:.1%} of the parameters" if gone and dense else ""
    where = f"{run.name}: " if named else ""
    return (
        f"{where}Whole layers went first{share}: {', '.join(paths)}; below, layers are numbered anew." if paths else ""
    )


def _branches(run: Run, named: bool) -> str:
    """Whole branches that went before widths were cut."""
    groups = [text(name) for name in listing(mapping(run.records.get("branches")).get("groups"))]
    where = f"{run.name}: " if named else ""
    return f"{where}Whole branches went first: {', '.join(groups)}." if groups else ""


def _sizes(run: Run) -> dict[str, dict[str, Any]]:
    """Every node group that could be cut, or was, with its size and what stays."""
    found: dict[str, dict[str, Any]] = {}
    for group in map(mapping, listing(run.account.get("groups"))):
        name, size, why = text(group.get("name")), whole(group.get("size")), text(group.get("why"))
        whole_by_choice = why.startswith("unprunable")
        if name and size and size > 0 and (not why or whole_by_choice):
            found[name] = {"kind": text(group.get("kind")), "size": size, "kept": size, "unprunable": whole_by_choice}
    for cut in map(mapping, listing(run.plan.get("cuts"))):
        name, size = text(cut.get("name")), whole(cut.get("size"))
        kept = None if size is None else counted(cut.get("kept"), size)
        if name and size and size > 0 and kept is not None:
            found[name] = {"kind": text(cut.get("kind")), "size": size, "kept": kept, "unprunable": False}
    return found


def _cells(run: Run) -> list[dict[str, Any]]:
    """One for each layer and kind; a layer with several groups of a kind, such as experts, is added up."""
    found: dict[tuple[str, int | None], dict[str, Any]] = {}
    for name, one in _sizes(run).items():
        path, layer = place(name)
        row = f"{path} {one['kind']}".strip()
        known = found.setdefault(
            (row, layer),
            {"run": run.name, "row": row, "layer": layer, "kept": 0, "size": 0, "whole": True},
        )
        known["kept"] += one["kept"]
        known["size"] += one["size"]
        known["whole"] = known["whole"] and one["unprunable"]
    paths = {place(name)[0] for name in _sizes(run)}
    if len(paths) == 1:  # all in the same stack of layers: its name says nothing
        (path,) = paths
        for one in found.values():
            one["row"] = one["row"].removeprefix(path).strip() or one["row"]
    return list(found.values())


def place(name: str) -> tuple[str, int | None]:
    """The stack that a node group's layer is in, and the layer's number in it.

    >>> place("model.layers.12.mlp.up_proj.weight:0"), place("embed.weight:1")
    (('model.layers', 12), ('', None))
    """
    path, _, last = layer_of(name).rpartition(".")
    return (path, int(last)) if last.isascii() and last.isdigit() and len(last) < 9 else ("", None)


def _table(runs: Sequence[Run]) -> dict[str, Any]:
    rows = []
    for run in runs:
        sums: dict[str, list[int]] = {}
        for one in _sizes(run).values():
            row = sums.setdefault(one["kind"], [0, 0, 0, 0])
            row[0] += 1
            row[1] += one["size"]
            row[2] += one["size"] - one["kept"]
            row[3] += one["unprunable"]
        for kind, (groups, size, gone, unprunable) in sums.items():
            first = [cell(run.name)] if len(runs) > 1 else []
            share = gone / size
            counts = ((f"{n:,}", n) for n in (groups, size, gone))
            last = (cell(f"{share:.1%}", share), cell(unprunable or "", unprunable))
            rows.append([*first, cell(kind), *(cell(*count) for count in counts), *last])
    columns = [*(["run"] if len(runs) > 1 else []), "kind", "node groups", "structures", "cut", "share cut",
               "left whole by knowledge"]  # fmt: skip
    note = "; ".join(_asked(run, len(runs) > 1) for run in runs if number(run.plan.get("achieved")) is not None)
    return table("cuts", "Structures by kind", columns, rows, note)


def _asked(run: Run, named: bool) -> str:
    asked, achieved = number(run.plan.get("asked")), number(run.plan.get("achieved"))
    wanted = "" if asked is None else f"asked for {asked:.2%} of the parameters, "
    return f"{run.name + ': ' if named else ''}{wanted}cut {achieved:.2%}"


def left_whole(runs: Sequence[Run]) -> dict[str, Any] | None:
    """The section on what may not be cut, and why; None where nobody knows."""
    rows, pins = [], []
    for run in runs:
        first = [cell(run.name)] if len(runs) > 1 else []
        counts = Counter(
            (text(g.get("kind")), text(g.get("why"))) for g in map(mapping, listing(run.account.get("groups")))
        )
        for (kind, why), count in counts.items():
            if why:
                rows.append([*first, cell(kind), cell(f"{count:,}", count), cell(why)])
        for pin in map(mapping, listing(run.account.get("pins"))):
            count_ = whole(pin.get("count")) or 1
            where = " ".join(text(pin.get("source")).split()) or text(pin.get("node"))
            reason, dims = text(pin.get("reason")), text(pin.get("dims"))
            pins.append([*first, cell(reason), cell(f"{count_:,}", count_), cell(dims), cell(where)])
    names = ["run"] if len(runs) > 1 else []
    items = []
    if rows:
        columns = [*names, "kind", "node groups", "why they stay whole"]
        items.append(table("refused", "Node groups that stay whole", columns, rows[:SHOWN]))
    if pins:
        columns = [*names, "reason", "pins", "dims of the first", "where"]
        items.append(table("pins", "Pinned dims", columns, pins[:SHOWN], "These may never be cut.", fold=True))
    intro = "What the options, the model's own class or the graph did not let go."
    return section("whole", "What stays whole", intro, items) if items else None
