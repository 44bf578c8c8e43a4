"""Before, cut, recovered: the numbers that a run is about."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from shearfx.viz.report.cells import Cell, cell, chart, section, table
from shearfx.viz.report.lenient import listing, mapping, number, text
from shearfx.viz.report.reading import Run

__all__ = ["closed", "headline", "losses", "perplexity", "tiles"]

STAGES = {"dense": "before", "cut": "cut", "recover": "recovered"}
LARGEST = 700.0
"""Nats above which a perplexity is more than a float holds."""

Values = dict[str, dict[str, float]]
"""By name of the row, by stage (``dense``, ``cut``, ``recover``)."""


def perplexity(loss: float) -> float:
    """Of a mean loss in nats."""
    return math.exp(min(loss, LARGEST))


def losses(run: Run, stage: str) -> dict[str, float]:
    """Validation loss by source at the end of a stage."""
    found = mapping(run.record(stage, "losses"))
    return {name: loss for name, value in found.items() if (loss := number(value)) is not None}


def closed(run: Run) -> dict[str, float]:
    """By source: the share of the loss between before and cut that recovery won back; nothing where there was none."""
    before, cut, after = (losses(run, stage) for stage in STAGES)
    return {
        name: (cut[name] - after[name]) / (cut[name] - before[name])
        for name in before
        if name in cut and name in after and cut[name] > before[name]
    }


def headline(runs: Sequence[Run]) -> dict[str, Any]:
    """The section: a table, and perplexities as a picture."""
    values = [_values(run) for run in runs]
    found = _beside(runs, values) if len(runs) > 1 else _one(values[0])
    levels = [
        {"run": run.name, "source": source, "stage": STAGES[stage], "value": perplexity(loss)}
        for run in runs for stage in STAGES for source, loss in losses(run, stage).items()
    ]  # fmt: skip
    items: list[dict[str, Any]] = [found] if found["rows"] else []
    if levels:
        note = "On windows that were held out of every source; lower is better."
        items.append(
            chart("perplexity", "Perplexity before, cut and recovered", levels, note, draw="levels", wide=True)
        )
    if peaks := _peaks(runs):
        items.append(peaks)
    intro = "" if items else "No stage has found anything yet."
    return section("result", "What came of it", intro, items)


def tiles(run: Run) -> list[dict[str, str]]:
    """The few numbers that people ask for first."""
    values, found = _values(run), []
    rows = (("parameters", "parameters"), ("FLOPs of the traced call", "operations"),
            ("decode, tokens/s", "tokens a second"), ("weights, MB", "size of the weights"))  # fmt: skip
    for name, label in rows:
        at = values.get(name, {})
        after = at.get("recover", at.get("cut"))
        if "dense" in at and after is not None and at["dense"] > 0:
            found.append({"value": _change(at["dense"], after), "label": label,
                          "note": f"{_short(at['dense'])} → {_short(after)}{' MB' * name.endswith('MB')}"})  # fmt: skip
    for source, share in list(closed(run).items())[:2]:
        ends = [_number(perplexity(losses(run, stage)[source]), "perplexity") for stage in STAGES]
        found.append({"value": f"{share:.0%}", "label": f"of what the cut cost on {source[:40]} came back",
                      "note": f"perplexity {' → '.join(ends)}"})  # fmt: skip
    return found


# -- values ------------------------------------------------------------------------------------------------


def _values(run: Run) -> Values:
    found: Values = {}

    def put(row: str, stage: str, value: Any) -> None:
        if (known := number(value)) is not None:
            found.setdefault(row, {})[stage] = known

    for stage in STAGES:
        put("parameters", stage, run.record(stage, "parameters"))
        put("parameters without embeddings", stage, run.record(stage, "without_embeddings"))
    for stage in STAGES:
        for source, loss in losses(run, stage).items():
            put(f"perplexity, {source}", stage, perplexity(loss))
    for evaluation in run.evaluations:
        _evaluated(run, evaluation, put)
    memory = mapping(run.record("memory", "weights"))
    for stage, name in (("dense", "dense"), ("recover", "recovered")):
        size = number(memory.get(name))
        put("weights, MB", stage, None if size is None else size / 1e6)
        put("FLOPs of the traced call", stage, mapping(run.record("speed", "flops")).get(name))
        put("generation, ms", stage, mapping(run.record("speed", "milliseconds")).get(name))
        for what in ("prefill", "decode"):
            put(f"{what}, tokens/s", stage, speed := number(mapping(run.record("speed", what)).get(name)))
            if what == "decode" and speed:
                put("latency of a token, ms", stage, 1e3 / speed)
    return found


def _evaluated(run: Run, evaluation: Mapping[str, Any], put: Any) -> None:
    """Results of ``shearfx eval --json``, which says by the path or the size of the model which one it judged."""
    last = PurePath(text(evaluation.get("model"))).name
    stage = {"cut": "cut", "model": "recover", "adapter": "recover"}.get(last, "")
    if not stage and number(evaluation.get("parameters")) == number(run.record("dense", "parameters")):
        stage = "dense"
    if not stage:
        run.missing.append(f"an evaluation of {last or 'a model without a name'!s:.80} is of neither model of this run")
        return
    for task in map(mapping, listing(evaluation.get("tasks"))):
        name = text(task.get("name"))
        for key, what in (("acc", "accuracy"), ("acc_norm", "accuracy per character")):
            put(f"{what}, {name}", stage, task.get(key))
    for one in map(mapping, listing(evaluation.get("texts"))):
        put(f"perplexity, {PurePath(text(one.get('text'))).name} (eval)", stage, one.get("perplexity"))


# -- tables ------------------------------------------------------------------------------------------------


def _one(values: Values) -> dict[str, Any]:
    rows = []
    for name, at in values.items():
        after = at.get("recover", at.get("cut"))
        known = "dense" in at and after is not None and at["dense"] > 0
        change = _changed(name, at["dense"], after) if known and after is not None else cell("")
        rows.append([cell(name), *(_cell(name, at.get(stage)) for stage in STAGES), change])
    note = f"{_note(values)} Change: from before to the last known."
    return table("result", "Before, cut, recovered", ["", *STAGES.values(), "change"], rows, note)


def _beside(runs: Sequence[Run], values: Sequence[Values]) -> dict[str, Any]:
    """A row for each number and stage, a column for each run; what the same stage has in all of them once."""
    rows = []
    for name in dict.fromkeys(name for one in values for name in one):
        for stage, word in STAGES.items():
            at = [one.get(name, {}).get(stage) for one in values]
            if any(value is not None for value in at) and not _follows(name, stage):
                rows.append([cell(name), cell(word), *(_cell(name, value) for value in at)])
    names = [name for one in values for name in one]
    return table("result", "Runs beside each other", ["", "", *(run.name for run in runs)], rows, _note(names))


def _follows(name: str, stage: str) -> bool:
    """Recovery changes no shape."""
    return stage == "recover" and name.startswith("parameters")


def _note(names: Any) -> str:
    timed = "Latency and speed as timed in the run. " if any("tokens/s" in name for name in names) else ""
    return f"{timed}Perplexity on windows that were held out of training."


def _cell(name: str, value: float | None) -> Cell:
    return cell("") if value is None else cell(_number(value, name), value)


def _number(value: float, name: str) -> str:
    if name.startswith("parameters"):
        return f"{value:,.0f}"
    if name.startswith("accuracy"):
        return f"{value:.3f}"
    if name.startswith("perplexity"):
        return f"{value:,.2f}" if value < 1e4 else f"{value:.2e}"
    if name.startswith("FLOPs"):
        return f"{value:.3g}"
    if value < 10:
        return f"{value:.3g}"
    return f"{value:,.1f}" if value < 1e4 else f"{value:,.0f}"


def _short(value: float) -> str:
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.3g}"


def _change(before: float, after: float) -> str:
    return f"{100 * (after / before - 1):+.1f}%".replace("-", "\N{MINUS SIGN}")


def _changed(name: str, before: float, after: float) -> Cell:
    ratio = after / before - 1
    better = ratio > 0 if "tokens/s" in name or name.startswith("accuracy") else ratio < 0
    sign = "" if abs(ratio) < 5e-4 else "better" if better else "worse"
    return cell(_change(before, after), ratio, sign)


def _peaks(runs: Sequence[Run]) -> dict[str, Any] | None:
    """What memory the stages took."""
    doing = {"dense": "judging the full model", "prune": "choosing what goes", "cut": "cutting", "speed": "timing",
             "recover": "recovery"}  # fmt: skip
    rows = []
    for name, words in doing.items():
        at = [number(mapping(run.record("memory", "peak")).get(name)) for run in runs]
        if any(value is not None for value in at):
            shown = [None if value is None else value / 1e6 for value in at]
            rows.append([cell(words), *(cell("") if v is None else cell(f"{v:,.0f}", v) for v in shown)])
    step = [number(run.record("memory", "estimate", "total")) for run in runs]
    if any(value is not None for value in step):
        estimates = ("" if v is None else f"{v / 1e6:,.0f}" for v in step)
        rows.append([cell("foreseen for training"), *map(cell, estimates)])
    if not rows:
        return None
    where = {text(run.record("memory", "on")) for run in runs}
    on_gpu = where == {"cuda"}
    note = (
        "Allocated on the GPU." if on_gpu else "Resident in the process; foreseen is without Python and its libraries."
    )
    columns = ["stage", *(run.name if len(runs) > 1 else "peak, MB" for run in runs)]
    return table("memory", "Memory that the run took, MB", columns, rows, note, fold=True)
