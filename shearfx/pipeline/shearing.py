"""LoRAShear from end to end: analyse, prune, cut, recover. Every stage is recorded and can be resumed.

Source: LoRAShear, Algorithm 1.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from shearfx.config import ShearConfig
from shearfx.config_idle import idle
from shearfx.evaluation import parameter_count
from shearfx.footprint import bytes_text, measured
from shearfx.graph import Graph
from shearfx.models import LoadedModel
from shearfx.pipeline.adapting import adapted, with_adapter, write_adapter
from shearfx.pipeline.cutting import Cutting, hold_folder, write_folder
from shearfx.pipeline.estimate import estimate
from shearfx.pipeline.held import Held, weight_bytes
from shearfx.pipeline.out_of_memory import memory_guard, what_to_lower
from shearfx.pipeline.pruning import Pruning
from shearfx.pipeline.shortening import Shortening
from shearfx.pipeline.study import Study
from shearfx.pipeline.subject import Known, Subject
from shearfx.pipeline.tellers import Teller as Told
from shearfx.pruning_plan import PruningPlan
from shearfx.run_directory import RunDirectory
from shearfx.selection import Tied
from shearfx.training.losses import Teacher


@dataclass(frozen=True, repr=False)
class Sheared:
    """What a run gave."""

    model: nn.Module
    """The smaller model, recovered, in its own class and dtype; with ``merge="never"`` with its adapter on it."""
    plan: PruningPlan
    """What was cut, of what was left after whole layers went (``record["layers"]``)."""
    record: dict[str, Any]
    """What every stage found: ``memory``, ``dense``, ``layers``, ``knowledge``, ``prune``, ``cut``, ``speed``,
    ``recover``."""
    path: Path
    """The run's folder; the model lies in ``model``, an adapter that was not merged in ``adapter``."""

    def __repr__(self) -> str:
        before, after = (self.record.get(stage, {}).get("parameters") for stage in ("dense", "recover"))
        return f"Sheared({before} -> {after} parameters, {self.path})"


class Shearing:
    """One run: the stages in order.

    Args:
        loaded: what the run starts from (see :func:`shearfx.pipeline.given.given`).
        config: all options.
        run: its folder.
        teller: told how it goes.
        known: what an earlier run found out about the same model.
        reopen: reads the model again; given where the run may use it up.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        config: ShearConfig,
        run: RunDirectory,
        teller: Told,
        known: Known | None = None,
        reopen: Callable[[], nn.Module] | None = None,
    ) -> None:
        self.config, self.folder, self.teller = config, run, teller
        self.study = Study(loaded.module, loaded.tokenizer, config, teller, run.spent)
        self.loaded = loaded
        self.full = Subject(loaded, self.study, reopen, known, records=run)
        """The full model: judged, timed, and the teacher."""
        self.subject = self.full
        """What widths are cut of: the full model, or what is left of it where layers went."""
        self.pruning = Pruning(self.subject, self.study, run, self._spare)
        self._final: nn.Module | None = None
        run.tell_changes(teller.note)
        for name, why in idle(config).items():
            teller.note(f"caution: {name}: {getattr(config, name)} does nothing, as {why}")

    @functools.cached_property
    def cutting(self) -> Cutting:
        """The stage between pruning and recovery."""
        return Cutting(self.subject, self.full, self.study, self.folder, self._spare())

    def _spare(self) -> int:
        """Bytes that training will take beside the weights; stages before it may take them too."""
        return int(self.folder.records["memory"]["estimate"]["step"])

    @property
    def graph(self) -> Graph:
        """The analysis of what widths are cut of."""
        return self.subject.graph

    @property
    def tied(self) -> list[Tied]:
        """What may be cut, and what only together."""
        return self.subject.tied

    def run(self) -> Sheared:
        """All stages that are not done yet, in order."""
        folder = self.folder
        if not folder.done("recover"):
            self.study.read()
            if not folder.done("prune") and not self.config.layers:
                self.subject.check_ratio(self.config.gamma)
            self._foresee()
            self._dense()
        self._shorten()
        plan = self._prune()
        if not folder.done("recover"):
            self._recover(self._cut(plan), plan)
        model = hold_folder(folder.path / "model", self.subject, self._final).original
        if self.config.merge == "never":
            model = with_adapter(model, folder.path / "adapter")
        return Sheared(model, plan, folder.records, folder.path)

    # -- memory ----------------------------------------------------------------------------------------

    def _foresee(self) -> None:
        """Tell what training will take of memory, before anything that takes long."""
        held, config = self.full.held, self.config
        known = self.folder.records.get("memory", {})
        if "estimate" in known:
            return
        with (
            self.teller.step("measuring what a training step takes of memory"),
            memory_guard("measuring a training step", config),
        ):
            work = held.work
            others = held.beside
            if not held.own or config.distill > 0:  # then the full model stays beside the cut one
                others += round((1 - config.ratio * (config.counts == "params")) * self.full.work_bytes)
            found = estimate(config, work, self.study.sources, self._teacher(), others)
        self.teller.note(str(found))
        if found.missing:
            self.teller.note(f"memory: {bytes_text(found.missing)} are missing; lower {what_to_lower(config)}")
        self.folder.finish(
            "memory",
            known
            | {"estimate": found.to_record(), "weights": {"dense": self.full.bytes}, "on": self.study.device.type},
        )

    @contextlib.contextmanager
    def _stage(self, name: str, doing: str) -> Iterator[None]:
        """A stage that is not done yet: its peak of memory is recorded, and memory that runs out is one clear error."""
        peaks: dict[str, int | None] = {}
        begun = lambda: bool(self.folder.records)  # noqa: E731
        with memory_guard(doing, self.config, begun), measured(peaks, name, self.study.device):
            yield
        memory = self.folder.records.get("memory", {})
        self.folder.finish("memory", memory | {"peak": memory.get("peak", {}) | peaks})

    # -- stages ----------------------------------------------------------------------------------------

    def _dense(self) -> None:
        if not self.folder.done("dense"):
            with self._stage("dense", "judging the full model"):
                found = self.study.judge(self.full.held.work, "dense")
                self.study.doubt(found["losses"])
            self.folder.finish("dense", found | {"dtype": str(self.study.dtype)})

    def _shorten(self) -> None:
        """Layers go, where they are asked to; the rest of the run is about what is left."""
        if not self.config.layers:
            return
        with self._stage("layers", "choosing layers") if not self.folder.done("layers") else contextlib.nullcontext():
            self.subject = Shortening(self.full, self.pruning, self.study, self.folder).subject(self.loaded)
        if self.subject is not self.full:
            self.pruning = Pruning(self.subject, self.study, self.folder, self._spare)
        if not self.folder.done("prune"):
            self.subject.check_ratio(self.config.gamma)

    def _steps(self, model: Callable[[], nn.Module]) -> int:
        """Optimiser steps of the budget; of a wall clock, what fits into the rest of it when training begins."""
        if not self.folder.done("budget"):
            self.folder.finish("budget", {"steps": self.study.steps(model, self._teacher())})
        return int(self.folder.records["budget"]["steps"])

    def _full_steps(self) -> int:
        """The budget where progressive pruning needs it, before anything is cut."""
        return self._steps(lambda: self.subject.held.work) if self.config.prune_share else 0

    def _share(self, steps: int) -> int:
        """Of all steps, those of progressive pruning."""
        return max(1, round(self.config.prune_share * steps)) if self.config.prune_share else 0

    def _prune(self) -> PruningPlan:
        if self.folder.done("prune"):
            return self.pruning.plan(0)
        with self._stage("prune", "choosing what goes"):
            return self.pruning.plan(self._share(self._full_steps()))

    def _cut(self, plan: PruningPlan) -> Held:
        """The cut model; the full one is let go of where nobody asks for it any more."""
        cutting, folder = self.cutting, self.folder
        if folder.done("cut"):
            small = cutting.read()
        else:
            with self._stage("cut", "cutting"):
                faded = self.pruning.faded(self._share(self._full_steps()))
                small = cutting.cut(plan, faded, self.pruning.fits(), self.pruning.biases())
        if not folder.done("speed"):
            with self._stage("speed", "timing both models"):
                cutting.weigh(small, plan)
        self.pruning.forget()
        if self.config.distill == 0:
            self.full.held.release()
        if self.config.distill == 0 or self.subject is not self.full:
            self.subject.held.release()
        return small

    def _teacher(self) -> Teacher | None:
        return self.study.teacher_of(self.full.held.work) if self.config.distill > 0 else None

    def _recover(self, small: Held, plan: PruningPlan) -> None:
        folder, place = self.folder, self.folder.path / "model"
        adapter = folder.path / "adapter" if self.config.merge == "never" else None
        with self._stage("recover", "recovering"):
            total = self._steps(lambda: self.study.base(small))
            model = self.study.recover(
                small, folder.records["dense"]["losses"], max(0, total - self._share(total)), self._teacher(),
                state=folder.path / "state" / "recover", log=folder.log, start=self.cutting.factors(),
                keep=None if adapter is None else functools.partial(write_adapter, folder=adapter, base=place),
            )  # fmt: skip
            write_folder(model, plan, place, self.subject)
            size, weights = parameter_count(model), weight_bytes(model)
            final = hold_folder(place, self.subject, model)
            with contextlib.nullcontext(final.work) if adapter is None else adapted(final.work, adapter) as judged:
                found = self.study.judge(judged, "recovered", size)
        memory = folder.records["memory"]
        folder.finish("memory", memory | {"weights": memory["weights"] | {"recovered": weights}})
        folder.finish("recover", found | {"minutes": self.study.seconds / 60})
        self._final = final.original
