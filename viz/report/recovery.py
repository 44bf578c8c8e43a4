"""What came back: degradation by source, what was trained on, and the loss.

Source: LoRAShear, Algorithm 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shearfx.viz.report.cells import chart, section
from shearfx.viz.report.curves import offsets, smoothed, steps_of, upright
from shearfx.viz.report.headline import losses
from shearfx.viz.report.lenient import mapping, number, text, whole
from shearfx.viz.report.reading import Run

__all__ = ["recovery"]


def recovery(runs: Sequence[Run]) -> dict[str, Any] | None:
    """The section; None where no run has begun to recover."""
    degradation: list[dict[str, Any]] = []
    weights: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    marks: list[dict[str, Any]] = []
    for run in runs:
        steps = steps_of(run, "recover")
        curves += smoothed(run.name, steps)
        starts = offsets(steps)
        for place, one in enumerate(_rounds(run), 1):
            at = starts.get(one["stage"], 0) + one["step"]
            where = {"run": run.name, "at": at, "round": place, "stage": one["stage"]}
            degradation += [where | {"source": name, "value": value} for name, value in one["degradation"].items()]
            weights += [where | {"source": name, "value": value} for name, value in one["weights"].items()]
            if one["weights"]:
                marks.append({"run": run.name, "at": at, "name": f"round {place}"})
    items = []
    if degradation:
        note = (
            "Validation loss above the full model's, in nats a token, by source. The first point is the model as cut; "
            "zero is as good as the full model, below is better."
        )
        items.append(chart("degradation", "Degradation by source", degradation, note))
    if len({(row["run"], row["source"]) for row in weights}) > len({row["run"] for row in weights}):
        note = "Shares in which each round draws its windows: most from what is degraded most, and some of everything."
        items.append(chart("sampling", "What each round trained on", weights, note))
    elif weights:
        source = weights[0]["source"]
        note_ = f" There was one source, {source}, so every round drew all from it."
        if items:
            items[-1]["note"] += note_
    if curves:
        note = f"Training loss, with its running mean.{upright(marks, 'rounds')}"
        items.append(
            chart(
                "recovery-loss", "Loss while recovering", curves, note, draw="loss", marks=marks, wide=len(items) == 2
            )
        )
    if not items:
        return None
    intro = "Adapters on the cut model learn from what was lost most, round by round."
    return section("recovery", "Knowledge recovery", intro, items)


def _rounds(run: Run) -> list[dict[str, Any]]:
    """Each round once, in order; a finished run that was resumed tells its last one again."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for line in run.of("round"):
        stage, count, step = text(line.get("stage")), whole(line.get("number")), whole(line.get("step"))
        if count is None or step is None:
            continue
        own = {name: {k: v for k, value in mapping(line.get(name)).items() if (v := number(value)) is not None}
               for name in ("degradation", "weights", "losses")}  # fmt: skip
        if not own["degradation"]:  # it is the loss above the full model's
            full = losses(run, "dense")
            own["degradation"] = {k: v - full[k] for k, v in own["losses"].items() if k in full}
        found[stage, count] = {"stage": stage, "number": count, "step": step, **own}
    return list(found.values())
