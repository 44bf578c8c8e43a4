"""How structures went: period by period as LHSPG fades them, or cut by cut.

Source: LoRAShear, Algorithm 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shearfx.viz.report.cells import cell, chart, section, table
from shearfx.viz.report.curves import smoothed, steps_of, thinned, upright
from shearfx.viz.report.lenient import listing, mapping, number, whole
from shearfx.viz.report.reading import Run

__all__ = ["pruning"]

FIVE = 5
"""Least, quartiles, largest."""


def pruning(runs: Sequence[Run]) -> dict[str, Any] | None:
    """The section; None where no run has chosen anything that it wrote down."""
    picks = {run.name: _picks(run) for run in runs}
    losses, fallen, marks = [], [], []
    for run in runs:
        steps = steps_of(run, "prune")
        losses += smoothed(run.name, steps)
        fallen += thinned(
            [{"run": run.name, "at": s["at"], "zero": zero, "fading": whole(s.get("fading")) or 0}
             for s in steps if (zero := whole(s.get("zero"))) is not None]
        )  # fmt: skip
        marks += [{"run": run.name, "at": pick["step"], "name": f"period {pick['number']}"} for pick in picks[run.name]
                  if pick["step"] is not None]  # fmt: skip
    items, lines = [], upright(marks, "periods")
    if fallen:
        note = f"Structures that are exactly zero, and those that fade in the running period.{lines}"
        items.append(chart("fading", "Structures falling to zero", fallen, note, marks=marks))
    if losses:
        note = f"Training loss while structures fade, with its running mean.{lines}"
        items.append(chart("pruning-loss", "Loss while pruning", losses, note, draw="loss", marks=marks))
    quantiles = [row for run in runs for pick in picks[run.name] for row in _quantiles(run.name, pick)]
    if quantiles:
        note = "From the least to the largest saliency; box: quartile to quartile; stroke in it: the median."
        items.append(chart("saliency", "Saliency at pick: what goes, what stays", quantiles, note, wide=True))
    rows = _rows(runs, picks)
    if rows:
        columns = [*(["run"] if len(runs) > 1 else []), "choice", "before step", "structures picked", "saved by then"]
        items.append(table("picks", "Choices", columns, rows, fold=True))
    if not items:
        return None
    progressive = bool(losses or fallen)
    title = "Progressive pruning (LHSPG)" if progressive else "Choosing what goes"
    intro = (
        "Adapters train while the least salient structures fade to zero, period by period."
        if progressive
        else "Structures went at once or in several cuts; each cut is scored on what the one before left."
    )
    return section("pruning", title, intro, items)


def _picks(run: Run) -> list[dict[str, Any]]:
    """Periods or cuts, each once, in order."""
    found: dict[int, dict[str, Any]] = {}
    for event, key, first in (("period", "period", 1), ("cut", "cut", 0)):
        for line in run.of(event):
            number_ = whole(line.get(key))
            if number_ is not None and number_ >= 0:
                found[number_ + first] = {
                    "number": number_ + first, "word": event, "step": whole(line.get("step")),
                    "picked": whole(line.get("picked")), "saved": number(line.get("saved")),
                    "saliency": mapping(line.get("saliency")),
                }  # fmt: skip
    return [found[number_] for number_ in sorted(found)]


def _quantiles(run: str, pick: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = []
    for kind, both in pick["saliency"].items():
        for what in ("picked", "stays"):
            values = [number(value) for value in listing(mapping(both).get(what))]
            if len(values) == FIVE and None not in values:
                found.append({"run": run, "kind": kind, "number": pick["number"], "word": pick["word"], "what": what,
                              "q": values})  # fmt: skip
    return found


def _rows(runs: Sequence[Run], picks: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[list[dict[str, Any]]]:
    rows = []
    for run in runs:
        for pick in picks[run.name]:
            picked, saved, step = pick["picked"], pick["saved"], pick["step"]
            rows.append([
                *([cell(run.name)] if len(runs) > 1 else []), cell(f"{pick['word']} {pick['number']}", pick["number"]),
                cell("" if step is None else step + 1, step), cell("" if picked is None else f"{picked:,}", picked),
                cell("" if saved is None else f"{saved:,.0f} parameters", saved),
            ])  # fmt: skip
    return rows
