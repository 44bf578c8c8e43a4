"""The cut: a smaller model in the place of the full one, which is let go of as soon as nobody needs it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from shearfx.bias_compensation import put_biases
from shearfx.checkpoints import CONFIG, ORIGINAL, load, save
from shearfx.compensation import put
from shearfx.construction import construct
from shearfx.evaluation import parameter_count
from shearfx.inference import device_of
from shearfx.pipeline.adapting import Factors, adapting, cut_factors
from shearfx.pipeline.held import Held, convert
from shearfx.pipeline.pruning import Faded
from shearfx.pipeline.study import Study
from shearfx.pipeline.subject import Subject
from shearfx.pipeline.weighing import medians, operations
from shearfx.pruning_plan import PruningPlan
from shearfx.run_directory import RunDirectory
from shearfx.speed import Speed, by_turns
from shearfx.training.merging import merge_into
from shearfx.training.state_files import read_state, write_state

TURNS = 5
"""Timings of each model."""


class Cutting:
    """Makes the cut model of a run and weighs it against the full one.

    Args:
        subject: what is cut.
        full: the full model, which is the same one but where layers went.
        study: data.
        folder: of the run; ``cut`` in it is written.
        spare: bytes that training takes beside the weights, so that as much may be taken here too.
    """

    def __init__(self, subject: Subject, full: Subject, study: Study, folder: RunDirectory, spare: int) -> None:
        self.subject, self.full, self.study, self.folder, self.spare = subject, full, study, folder, spare
        self.config, self.teller = study.config, study.teller
        self.place = folder.path / "cut"
        self._before: list[Speed] | None = None
        """Speeds of the full model, where it was timed before the cut."""

    def cut(
        self, plan: PruningPlan, faded: Faded | None, fits: Mapping[str, Tensor], biases: Mapping[str, Tensor]
    ) -> Held:
        """Cut, write, and judge; layers get the weights that they were fitted, or biases."""
        roomy = self._roomy(plan)
        timed = self.subject.generates
        if not roomy and timed:
            with self.teller.step("timing prefill and decode of the full model") as progress:
                changed = faded.model if faded and self.full is self.subject else None
                full = changed if changed is not None else self.full.held.work
                self._before = by_turns([full], TURNS, progress)[0]
        small = self._made(plan, faded, fits, roomy and timed)
        put_biases(small, biases)
        start: Factors | None = None
        if faded is not None and self.config.merge == "never":
            start = cut_factors(faded.learnt, plan)
            write_state(self._factors, start)
        elif faded is not None:
            merge_into(small, faded.learnt, plan)
        write_folder(small, plan, self.place, self.subject)
        size = parameter_count(small)
        held = self.read(small)
        if start is None:
            found = self.study.judge(held.work, "cut")
        else:
            with adapting(self.config, held.work, start) as wrapped:
                found = self.study.judge(wrapped, "cut", size)
        self.folder.finish("cut", found)
        return held

    def read(self, small: nn.Module | None = None) -> Held:
        """The cut model of this run, in memory already or read."""
        return hold_folder(self.place, self.subject, small)

    def factors(self) -> Factors | None:
        """What LHSPG's adapters learnt, cut, where they are not merged."""
        if not self.config.prune_share or self.config.merge != "never":
            return None
        found: Factors = read_state(self._factors)
        return found

    def weigh(self, small: Held, plan: PruningPlan) -> None:
        """Record operations and speeds of both models; recovery changes no shape, hence no speed."""
        found = operations(self.full.graph, self.subject.graph, plan)
        if self.subject.generates:
            with self.teller.step("timing prefill and decode, by turns") as progress:
                if self._before is not None:
                    before, after = self._before, by_turns([small.work], TURNS, progress)[0]
                else:
                    before, after = by_turns([self.full.held.work, small.work], TURNS, progress)
            found |= medians(before, after)
        self.folder.finish("speed", found)

    @property
    def _factors(self) -> Path:
        return self.folder.path / "state" / "adapter"

    def _roomy(self, plan: PruningPlan) -> bool:
        """Whether both models may lie in memory at once: a caller's stays anyway, and training takes as much."""
        held = self.subject.held
        return not held.own or (1 - plan.achieved_params) * self.subject.work_bytes <= self.spare

    def _made(self, plan: PruningPlan, faded: Faded | None, fits: Mapping[str, Tensor], both: bool) -> nn.Module:
        """The cut model, in the dtype that the full one was given in."""
        held, config = self.subject.held, self.config
        with self.teller.step("cutting"):
            if faded is not None and faded.model is not None:  # LHSPG's own copy
                source, consume = faded.model, True
                home = device_of(source) if held.own else held.home
            else:
                source, consume = held.to_cut(work_needed=both or config.distill > 0)
                home = device_of(source)
            small = convert(construct(source, plan, consume=consume), home, held.kept_in)
            put(small, fits)
        return small


def write_folder(small: nn.Module, plan: PruningPlan, place: Path, subject: Subject) -> None:
    """Write a smaller model as ``shearfx.save`` does; what an earlier try left there is replaced."""
    tokenizer, config = subject.study.tokenizer, subject.full_config
    save(small, plan, place, tokenizer=tokenizer, original_config=config, overwrite=True)


def hold_folder(place: Path, subject: Subject, module: nn.Module | None = None) -> Held:
    """A model that shearfx wrote, in memory already or read; of a class of the user's own it is not read twice."""
    held = subject.held
    described = any((place / name).is_file() for name in (CONFIG, ORIGINAL))
    read: Any = functools.partial(load, place, device="cpu" if held.own else held.home)
    if module is None:
        module = read() if described else load(place, held.shape, device=held.home)
    return subject.study.hold(module, read if described else None)
