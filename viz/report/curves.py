"""Lines of the metrics as curves: in order, each step once, and no more points than a picture can show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shearfx.viz.report.lenient import number, text, whole
from shearfx.viz.report.reading import Run

__all__ = ["Step", "offsets", "smoothed", "steps_of", "thinned", "upright"]

MOST = 600
"""Points of a curve: more than a chart has columns of pixels to tell apart, and small as text."""
WINDOW = 20
"""The running mean is over so many-th a part of a curve."""

Step = dict[str, Any]


def steps_of(run: Run, event: str) -> list[Step]:
    """The steps of one kind, each once: what a resumed run did again counts, and not what it did before.

    ``at`` counts on over stages (pretraining, then instructions), whose own steps begin at one. Where a line does not
    say its stage (older runs), it is that of the round told last before it.
    """
    found: dict[tuple[str, int], Step] = {}
    stage = ""
    for line in run.events:
        if line.get("event") == "round":
            stage = text(line.get("stage")) or stage
        elif line.get("event") == event:
            step = whole(line.get("step"))
            if step is not None and step >= 0:
                mine = text(line.get("stage")) or (stage if event == "recover" else "")
                found[mine, step] = {**line, "step": step, "stage": mine}
    before: dict[str, int] = {}
    offset = 0
    for mine in dict.fromkeys(stage for stage, _ in found):
        before[mine] = offset
        offset += max(step for stage, step in found if stage == mine)
    order = list(before)
    ordered = sorted(found, key=lambda key: (order.index(key[0]), key[1]))
    return [{**found[key], "at": before[key[0]] + key[1]} for key in ordered]


def offsets(steps: Sequence[Step]) -> dict[str, int]:
    """Where each stage begins on the common axis."""
    return {stage: first["at"] - first["step"] for first in reversed(steps) for stage in [text(first["stage"])]}


def smoothed(run: str, steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Points ``at``, ``loss`` and ``mean``, the running mean; of long curves, means over neighbours."""
    known = [(step["at"], loss) for step in steps if (loss := number(step.get("loss"))) is not None]
    if not known:
        return []
    half = max(1, len(known) // (2 * WINDOW))
    sums = [0.0]
    for _, loss in known:
        sums.append(sums[-1] + loss)

    def mean(first: int, last: int) -> float:
        first, last = max(first, 0), min(last, len(known))
        return (sums[last] - sums[first]) / (last - first)

    each = -(-len(known) // MOST)
    points = []
    for place in range(0, len(known), each):
        middle = min(place + each // 2, len(known) - 1)
        points.append({"run": run, "at": known[middle][0], "loss": round(mean(place, place + each), 5),
                       "mean": round(mean(middle - half, middle + half + 1), 5)})  # fmt: skip
    return points


def thinned(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every so many-th row, and the last."""
    each = -(-len(rows) // MOST) or 1
    return [dict(row) for i, row in enumerate(rows) if i % each == 0 or i == len(rows) - 1]


def upright(marks: Sequence[Mapping[str, Any]], what: str) -> str:
    """What the upright lines of a chart say; those of several runs are not drawn, they would be a fence."""
    return f" Upright lines: {what} begin." if len({mark["run"] for mark in marks}) == 1 else ""
