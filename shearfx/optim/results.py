"""What a run of LHSPG has come to: what is zero, the plan that cuts it, and the smaller model, period by period.

Source: LoRAShear, Algorithm 4, lines 10 and 11, and section 3.4.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from shearfx.achieved import achieved_in
from shearfx.errors import PlanError, message
from shearfx.gating.gates import Gates
from shearfx.graph import Graph
from shearfx.low_rank import LowRank
from shearfx.optim.carriers import Carrier, GateCarrier
from shearfx.optim.choosing import Chooser, Redundant, gathered
from shearfx.optim.compact import Adapter, Form, compact, expressed
from shearfx.optim.schedule import Schedule
from shearfx.optim.scoring import Scorer
from shearfx.optim.standing_in import StandingIn
from shearfx.pruning_plan import PruningPlan, of_cuts
from shearfx.running_time import Currency, RunningTime, unit_name


class Results:
    """What LHSPG tells of its run, beside stepping."""

    graph: Graph
    model: nn.Module
    adapters: Mapping[str, LowRank]
    schedule: Schedule
    chooser: Chooser
    scorer: Scorer
    gates: Gates
    carrier: Carrier
    stand_ins: StandingIn | None
    """Of the compensation while fading, where it was asked for."""
    unit: Currency | RunningTime
    form: Form
    amount: float
    """To be saved in the end, in ``unit``."""
    steps: int
    """Optimiser steps taken."""
    picks: list[Redundant]
    """What each period picked, by group; faded or fading."""

    @property
    def fading(self) -> dict[str, torch.Tensor]:
        """The structures of the running period: group to LongTensor."""
        return self.carrier.fading

    @property
    def zeros(self) -> Redundant:
        """The structures that are exactly zero now, by group."""
        return self.carrier.zeros

    @property
    def redundant(self) -> Redundant:
        """What was picked so far, by group; faded or fading."""
        return gathered(self.picks)

    @property
    def periods_ended(self) -> int:
        """How many periods are over."""
        return min(max(0, self.steps - self.schedule.warmup) // self.schedule.period_length, self.schedule.periods)

    def plan(self, period: int | None = None) -> PruningPlan:
        """The plan that cuts what is zero now, or what was zero when a period (from 0) had ended.

        With ``compensate`` the cut alone is not the live model: :meth:`construct` also folds in what stands in.

        Raises:
            PlanError: the period is not over, or the model's own class cannot hold the cut.
        """
        if period is not None and not 0 <= period < self.periods_ended:
            what = f"period {period} has not ended: {self.periods_ended} of {self.schedule.periods} have"
            raise PlanError(message(what, where="LHSPG.plan(period)", todo="count from 0"))
        kept, gone = {}, self.zeros if period is None else gathered(self.picks[: period + 1])
        for group in (g for g in self.chooser.groups if g.name in gone):
            out = set(gone[group.name])
            kept[group.name] = [i for i in range(group.size) if i not in out]
        options = {"unit": unit_name(self.unit), "saliency": self.scorer.name}
        plan = of_cuts(self.graph, kept, asked=self.amount / max(self.chooser.total, 1), options=options)
        plan = achieved_in(plan, self.graph, self.unit, self.chooser.groups)
        with self.detached():  # the class is followed as it is without them
            return expressed(self.graph, self.model, plan, self.form)

    def construct(self, adapter: Adapter = "merge") -> nn.Module:
        """The smaller model of a period that has just ended: it computes what the live one, which stays, computes.

        Args:
            adapter: ``"merge"`` for one without adapters, ``"keep"`` for a PEFT model with the adapter cut alike. The
                weights keep their dtype, into which a merge rounds.

        Raises:
            PlanError: structures are half faded, the base is quantised, or see :meth:`plan`.
        """
        if isinstance(self.carrier, GateCarrier) and self.fading:
            count = sum(map(len, self.fading.values()))
            what, todo = f"{count} structures are half faded", "wait for the period's end, as on_period= does"
            raise PlanError(message(what, where=f"step {self.steps}", todo=todo))
        plan = self.plan()
        with self.detached(), contextlib.nullcontext() if self.stand_ins is None else self.stand_ins.folded():
            return compact(self.graph, self.model, self.adapters, plan, self.form, adapter, self.stand_ins)

    # -- on the model --------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Put gates and hooks on the model, as they are from the start."""
        self.scorer.attach(self.gates)
        self.gates.attach()

    def detach(self) -> None:
        """Take gates and hooks off the model; what gates faded is back at full weight unless it was cut."""
        self.gates.detach()
        self.scorer.detach()

    @contextlib.contextmanager
    def detached(self) -> Iterator[None]:
        """For the while, gates and hooks are off the model."""
        attached = self.gates.attached
        self.detach()
        try:
            yield
        finally:
            if attached:
                self.attach()
