"""A run's folder as it is found: finished, cut off in the middle, or damaged."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import shearfx
from shearfx.errors import CheckpointError, message
from shearfx.run_directory import ACCOUNT, CONFIG, ENVIRONMENT, KNOWLEDGE, METRICS, PLAN, RECORDS
from shearfx.viz.report.lenient import json_file, json_lines, listing, mapping, number, text, text_file, yaml_of

__all__ = ["Run", "read_run", "read_runs"]

STAGES = ("dense", "knowledge", "prune", "cut", "speed", "recover")
DOING = {
    "dense": "judging the full model", "knowledge": "knowledge analysis", "prune": "choosing what goes",
    "cut": "cutting", "speed": "timing", "recover": "recovery",
}  # fmt: skip
PLAN_FORMAT = 1  # that of shearfx.pruning_plan, which would import torch


@dataclass
class Run:
    """What could be read of a run. Everything in it may be of any shape: a file may have been written by anybody."""

    path: Path
    name: str
    """What it is called beside other runs."""
    asked: str = ""
    """``config.yaml`` as it is."""
    model: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    records: dict[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    plan: dict[str, Any] = field(default_factory=dict)
    account: dict[str, Any] = field(default_factory=dict)
    knowledge: dict[str, Any] = field(default_factory=dict)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """What ``shearfx eval --json`` said and somebody laid into the folder."""
    missing: list[str] = field(default_factory=list)
    """What is not there, or could not be read, in sentences."""

    def record(self, *names: str) -> Any:
        """Something that a finished stage found, by the names on the way to it; None where it is not there."""
        found: Any = self.records
        for name in names:
            found = mapping(found).get(name)
        return found

    def of(self, event: str) -> list[dict[str, Any]]:
        """The lines of the metrics about one kind of event."""
        return [line for line in self.events if line.get("event") == event]

    @property
    def finished(self) -> bool:
        """Whether its last stage is done."""
        return isinstance(self.records.get("recover"), dict)

    @property
    def state(self) -> str:
        """How far it has come, in a few words."""
        if self.finished:
            minutes = number(self.record("recover", "minutes"))
            return "finished" if minutes is None else f"finished in {_minutes(minutes)}"
        done = [DOING[name] for name in STAGES if isinstance(self.records.get(name), dict)]
        last = max((t for line in self.events if (t := number(line.get("time")))), default=None)
        seen = "" if last is None else f"; last sign of life {_clock(last)}"
        return f"unfinished: {'done are ' + ', '.join(done) if done else 'no stage is done'}{seen}"


def _minutes(minutes: float) -> str:
    if minutes < 1:
        return f"{60 * minutes:.0f} s"
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def _clock(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "at no time"


def read_runs(paths: list[Path]) -> list[Run]:
    """Runs by their folders, with names that tell them apart.

    Raises:
        CheckpointError: see :func:`read_run`.
    """
    runs = [read_run(path) for path in paths]
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            parent = run.path.resolve().parent.name
            run.name = f"{parent}/{run.name}" if parent else run.name
    for count, run in enumerate(runs, 1):
        if [one.name for one in runs].count(run.name) > 1:
            run.name = f"{run.name} ({count})"
    return runs


def read_run(path: Path) -> Run:
    """What lies in a run's folder; what is missing or damaged is said in ``missing``.

    Raises:
        CheckpointError: there is no such folder, or nothing in it is of a run.
    """
    if not path.is_dir():
        what = "a file, not the folder of a run" if path.exists() else "no such folder"
        raise CheckpointError(message(what, where=str(path), todo="name the folder that `shearfx shear` wrote"))
    if not any((path / name).is_file() for name in (CONFIG, RECORDS, METRICS, PLAN)):
        todo = f"name the folder that `shearfx shear` wrote: it holds {CONFIG} and {RECORDS}"
        raise CheckpointError(message("this is not the folder of a run", where=str(path), todo=todo))
    run = Run(path, path.resolve().name or str(path))
    _read_config(run)
    run.environment = _read(run, ENVIRONMENT, "what the run was made with is not known")
    run.records = _read(run, RECORDS, "what its stages found is not known")
    run.events, bad, wrong = json_lines(path / METRICS)
    if wrong:
        run.missing.append(f"{METRICS} {wrong}: there are no curves")
    elif bad:
        which = f"line {bad[0]} is" if len(bad) == 1 else f"{len(bad)} lines (the first is {bad[0]}) are"
        run.missing.append(f"{METRICS}: {which} damaged and left out")
    _read_plan(run)
    if run.plan:
        run.account = _read(run, ACCOUNT, "node groups that were not cut are not shown, nor what is pinned")
    knowledge = isinstance(run.records.get("knowledge"), dict)
    if knowledge or (path / KNOWLEDGE).exists() or run.config.get("gamma") not in (None, ""):
        run.knowledge = _read(run, KNOWLEDGE, "what each node group knows is not shown")
    for file in sorted(path.glob("eval*.json")):
        found, wrong = json_file(file)
        if mapping(found):
            run.evaluations.append(mapping(found))
        else:
            run.missing.append(f"{file.name} {wrong or 'is no result of `shearfx eval --json`'}")
    _check_version(run)
    return run


def _read(run: Run, name: str, then: str) -> dict[str, Any]:
    found, wrong = json_file(run.path / name)
    if not wrong and not isinstance(found, dict):
        wrong = "is damaged"
    if wrong:
        run.missing.append(f"{name} {wrong}: {then}")
    return mapping(found)


def _read_config(run: Run) -> None:
    content = text_file(run.path / CONFIG)
    run.asked = content or ""
    first = run.asked.partition("\n")[0]
    if first.startswith("# model: "):
        run.model = text(yaml_of(first.removeprefix("# model: "))) or first.removeprefix("# model: ")
    run.config = mapping(yaml_of(run.asked))
    if not run.config:
        wrong = "is missing" if content is None else "is damaged"
        run.missing.append(f"{CONFIG} {wrong}: what was asked for is not known")


def _read_plan(run: Run) -> None:
    if not (run.path / PLAN).exists() and not isinstance(run.records.get("prune"), dict):
        run.missing.append(f"{PLAN} is not there yet: nothing was chosen")
        return
    run.plan = _read(run, PLAN, "what was cut where is not known")
    if run.plan and run.plan.get("format") != PLAN_FORMAT:
        what = f"{PLAN} has format {run.plan.get('format')!s:.40}, and {PLAN_FORMAT} is known"
        run.missing.append(f"{what}: parts of it may be misread")
    if run.plan and not listing(run.plan.get("cuts")):
        run.missing.append(f"{PLAN} names no cuts")


def _check_version(run: Run) -> None:
    version = run.environment.get("shearfx")
    if version is not None and version != shearfx.__version__:
        what = f"the run was written by shearfx {version!s:.40}, this report by {shearfx.__version__}"
        run.missing.append(f"{what}: what one of them does not know is missing")
