"""The folder of a run: what was asked, what happened, what came out. Written so that a run can be cut off anywhere."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shearfx.atomic import replace_file
from shearfx.config import ShearConfig
from shearfx.config_changes import changes
from shearfx.errors import CheckpointError, message
from shearfx.run_clock import BEGIN, seconds_at_work

CONFIG, RECORDS, METRICS, ENVIRONMENT = "config.yaml", "stages.json", "metrics.jsonl", "environment.json"
PLAN, ACCOUNT, KNOWLEDGE = "plan.json", "groups.json", "knowledge.json"
MEASURED = "knowledge.jsonl"


class RunDirectory:
    """One run's folder.

    A run that ended before its first stage did leaves nothing worth keeping: the folder can be used again.

    ``config.yaml`` (what was asked), ``environment.json``, ``metrics.jsonl`` (a line a step, choice, round or stage),
    ``stages.json`` (what each finished stage found), ``plan.json``, ``groups.json`` (what could be cut, and why the
    rest not), ``knowledge.json``, ``state/`` (checkpoints), ``cut/`` and ``model/`` (results).
    """

    def __init__(self, path: Path, model: str, config: ShearConfig, *, resume: bool) -> None:
        self.path, self.model = path, model
        self.changed: dict[str, list[Any]] = {}
        """Options that a resumed run has others of than before, with both values."""
        self.anew = False
        """Whether a run was to be resumed that is not there."""
        first = f"# model: {json.dumps(model)}"
        try:
            self.spent = seconds_at_work(path / METRICS)
            """Seconds that processes before this one were at work on the run."""
            begun = (path / CONFIG).is_file()
            if begun and (path / RECORDS).is_file():
                self._go_on(first, config, resume)
            elif not begun and path.exists() and not all(_is_begun(one) for one in path.iterdir()):
                todo = "name a new folder"
                raise CheckpointError(message("the folder is in use by something else", where=str(path), todo=todo))
            else:
                self.anew = resume
                path.mkdir(parents=True, exist_ok=True)
                self.write(CONFIG, f"{first}\n{config.to_yaml()}")
                self.write(ENVIRONMENT, json.dumps(environment(), indent=1) + "\n")
        except OSError as error:
            what = f"the run's folder cannot be written: {error.strerror}"
            raise CheckpointError(message(what, where=str(path), todo="name another folder")) from error
        self.records: dict[str, Any] = self._read_records()
        if "recover" not in self.records:
            self.log(BEGIN)
        if self.changed:
            self.log("options", **self.changed)

    def _go_on(self, first: str, config: ShearConfig, resume: bool) -> None:
        """Take up a run that was cut off: asked for the same, but for what only matters to what is still to come."""
        where = str(self.path)
        if not resume:
            todo = "pass resume=True (--resume) to go on with it, or name a new folder"
            raise CheckpointError(message("a run is in this folder", where=where, todo=todo))
        path = self.path / CONFIG
        if path.read_text(encoding="utf-8").splitlines()[:1] != [first]:
            todo = "resume with the model that config.yaml names, or name a new folder"
            raise CheckpointError(message(f"the run there was asked for something else: {first}", where=where,
                                          todo=todo))  # fmt: skip
        # options that a run of an older version did not know yet are as they were without them: the default
        changed = changes(ShearConfig.read(path), config, where)
        if changed and "recover" in self._read_records():
            what = f"the run there is finished, by other options: {', '.join(changed)}"
            todo = "leave them as they were, or name a new folder"
            raise CheckpointError(message(what, where=where, todo=todo))
        if "batch_size" in changed:  # measured batch by batch
            (self.path / MEASURED).unlink(missing_ok=True)
        self.changed = changed
        if changed:
            self.write(CONFIG, f"{first}\n{config.to_yaml()}")

    def tell_changes(self, note: Callable[[str], None]) -> None:
        """Say which options the run goes on with otherwise than it began, or that it begins."""
        if self.anew:
            note(f"there is no run in {self.path} to go on with: a new one begins")
        for name, (before, now) in self.changed.items():
            note(f"goes on with {name}: {now} (it was {before})")

    def _read_records(self) -> dict[str, Any]:
        path = self.path / RECORDS
        if not path.is_file():
            return {}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            what, todo = "the record of finished stages is damaged", "remove it: finished stages are done again"
            raise CheckpointError(message(what, where=str(path), todo=todo)) from error
        return dict(found)

    def done(self, stage: str) -> bool:
        """Whether a stage is finished."""
        return stage in self.records

    def finish(self, stage: str, record: dict[str, Any]) -> None:
        """Record what a stage found; it is not done again."""
        self.records[stage] = record
        self.write(RECORDS, json.dumps(self.records, indent=1) + "\n")
        self.log("stage", name=stage)

    def log(self, event: str, **values: Any) -> None:
        """Add a line to the metrics."""
        line = json.dumps({"event": event, "time": round(time.time(), 3), **values})
        with (self.path / METRICS).open("a+b") as metrics:
            if metrics.tell():
                metrics.seek(-1, os.SEEK_END)
                line = line if metrics.read(1) == b"\n" else f"\n{line}"  # a kill may have cut the last one in two
            metrics.write(f"{line}\n".encode())

    def write(self, name: str, text: str) -> None:
        """Write a file whole or not at all."""
        replace_file(self.path / name, text)


def _is_begun(path: Path) -> bool:
    """Whether a file is what a run that was killed at once left of its configuration."""
    return path.name.startswith(f".{CONFIG}.")


def asked(path: Path, options: Mapping[str, Any], resume: bool) -> ShearConfig:
    """The options of a run: those that are given, over those of the run that is resumed, or over the defaults.

    Raises:
        PlanError: see :meth:`shearfx.config.ShearConfig.of_mapping`.
    """
    before = path / CONFIG
    return ShearConfig.read(before, **options) if resume and before.is_file() else ShearConfig.of_mapping(options)


def environment() -> dict[str, Any]:
    """What a result depends on besides the configuration."""
    import peft
    import torch
    import transformers

    import shearfx

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "shearfx": shearfx.__version__, "torch": torch.__version__, "transformers": transformers.__version__,
        "peft": peft.__version__, "python": platform.python_version(), "machine": platform.machine(),
        "processors": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu,
    }  # fmt: skip
