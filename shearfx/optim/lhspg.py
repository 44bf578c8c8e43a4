"""LHSPG, LoRA half-space projected gradient, as a ``torch.optim.Optimizer``.

It trains as AdamW or SGD does. Period by period it picks the least salient structures, fades them to exactly zero while
training goes on, so that what they know can move into what stays, and ends with exactly the target redundant.

Source: LoRAShear (arXiv 2310.18356), Algorithm 4. What the paper leaves open is an option here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from shearfx.config_values import RoundTo
from shearfx.cuda.choosing import Kernels
from shearfx.cuda.choosing import check as check_kernels
from shearfx.gating.gates import Gates
from shearfx.gradients import Loss
from shearfx.graph import Graph
from shearfx.live_adapters import adapters_of
from shearfx.optim import options as asked
from shearfx.optim.at_pick import saliency_at_pick
from shearfx.optim.carriers import Carrier, GateCarrier
from shearfx.optim.choosing import Chooser, Redundant, selected
from shearfx.optim.compact import Form
from shearfx.optim.fading import Penalty, Rule
from shearfx.optim.kernel_carrier import KernelWeightCarrier
from shearfx.optim.merging import Merger
from shearfx.optim.redundant_slices import slices_of
from shearfx.optim.restarting import Moments, Restart
from shearfx.optim.results import Results
from shearfx.optim.resuming import go_on, state_of
from shearfx.optim.schedule import Schedule
from shearfx.optim.scoring import Scorer
from shearfx.optim.standing_in import StandingIn
from shearfx.optim.variants import Variant, Wrapping
from shearfx.optim.weight_carrier import WeightCarrier
from shearfx.running_time import Currency, RunningTime
from shearfx.saliency import Saliency, Scores
from shearfx.selection import Selection
from shearfx.spending import Ranking
from shearfx.units import FLOOR, Floor


class LHSPG(Wrapping, Results):
    """AdamW or SGD that makes a target number of structures redundant on the way.

    By default structures fade by gates (see ``shearfx.gating.gates``): frozen, quantised and shared weights are never
    written, and ``with optimizer.gates.opened()`` is the full model. Schedules of learning rates, gradient scalers (a
    step that they skip does not advance the schedule) and ``transformers.Trainer(optimizers=(optimizer, scheduler))``
    work as with any optimiser. What a skipped step brought leaves the scores when the optimiser's own ``zero_grad`` is
    called; a loop that clears gradients by ``model.zero_grad()``, as Trainer does, keeps it, where it is finite.

    Every period's end is a smaller sound model: there :meth:`construct` returns it, from ``on_period``, from a loop, or
    from a checkpoint of that step, and :meth:`plan` tells of any period what was cut.

    In several processes (``DistributedDataParallel``; sharded parameters are refused) each rank makes its own LHSPG on
    the model that it wraps, with equal options. What is collected from training is added up over the ranks at every
    step, as if all batches had been one rank's; scores that are computed from ``data``, or given, are averaged, so each
    rank may bring data of its own. So all ranks pick the same structures, their gates are equal, and a state that one
    of them saved is right for all. Every rank has to take every step.

    Args:
        graph: the analysis of the model, or of its base without adapters.
        model: the live model, with PEFT adapters or without, in ``DistributedDataParallel`` or not.
        params: what to train, as for any optimiser (default: all parameters that require gradients).
        target: what becomes redundant: a share (float below 1) or an amount (int) of ``unit``; 0 for plain training.
        unit: ``"params"`` (all unique parameters), ``"flops"``, ``"structures"`` (the paper's K), or what
            :func:`shearfx.measure_time` found, for time on this machine (an amount is in femtoseconds then).
        warmup, periods, period_length: optimiser steps before the first period, periods, steps of each (lines 1, 3,
            5).
        saliency: ``"fisher"`` and ``"taylor"`` are collected from the training steps since the last choice, of the
            loss as a gradient scaler scaled it; ``"loraprune"`` is a moving average over all of them; any other, and
            these with ``data``, is a registered name or a saliency, computed when a period begins (line 4).
        data, loss: for saliencies that run the model; ``data`` is read anew each period, so it is no generator, but
            batches, or a function from the period's number (from 0) to its batches.
        scores: fixed scores instead, by name of group.
        ranking: overrides the saliency's unit: ``"loss"`` ranks over all layers and kinds by cost, ``"standardised"``
            over all as they are, ``"relative"`` within each.
        half_space_eps: a structure is zeroed early where its trial iterate leaves the half-space (line 8);
            ``-inf`` switches the test off.
        penalty: ``"ramp"`` fades to exactly zero over a period, ``"constant"`` subtracts ``strength``.
        strength: lambda of the constant penalty.
        carrier: what fades: ``"gates"`` on the model, or the ``"weights"`` themselves, as equation (2) is printed; then
            what was learnt for a fading structure moves into its slices each step.
        merge: when ``gamma B A`` is added to the weights and B reset (line 9): at the ``"end"``, each ``"period"``, or
            ``"never"``.
        merge_moments, merge_warmup: what a merge does to the optimiser's moments of A and B (``"keep"`` or
            ``"reset"``), and steps over which the learning rate rises again after it; see
            :class:`shearfx.optim.restarting.Restart`.
        compensate: batches on which, each period, those that stay are fitted by least squares to stand in for those
            that fade, as these fade; ``(arguments by name, or in order, or one tensor)``, no generator, and the only
            option that takes memory in proportion to weights; see :class:`shearfx.optim.standing_in.StandingIn`.
        on_period: called with the optimiser and the number of the period (from 0) when a period has ended.
        variant: ``"adamw"`` or ``"sgd"``.
        lr, betas, eps, weight_decay, momentum: of the variant.
        form: what may be cut: what the model's own class can express (``"module"``), or all (``"fx"``); also what
            :meth:`plan` and :meth:`construct` give.
        tied: the groups to choose from, where that is known already (then ``kinds`` to ``allow`` are not used).
        kinds, include, exclude, exclude_kinds, allow: as in :func:`shearfx.plan`.
        floor, most, round_to: as in :func:`shearfx.plan`.
        seed: of saliencies that draw.
        kernels: ``"auto"`` steps and scores by CUDA kernels where there is a card that can (``shearfx[cuda]``), else by
            torch, which is the reference, with one warning that says why; ``"torch"`` never, ``"cuda"`` always.

    Raises:
        PlanError: options that make no sense, a target that is out of reach, a group that cannot be gated, a saliency
            that does not see a group, DoRA adapters, a merge into a quantised base, sharded parameters, or kernels that
            were asked for by name and cannot run.
    """

    def __init__(
        self,
        graph: Graph,
        model: nn.Module,
        params: Any = None,
        *,
        target: int | float = 0.2,
        unit: Currency | RunningTime = "params",
        warmup: int = 10,
        periods: int = 5,
        period_length: int = 10,
        saliency: str | Saliency = "fisher",
        data: Iterable[Any] | Callable[[int], Iterable[Any]] | None = None,
        loss: Loss | None = None,
        scores: Scores | None = None,
        ranking: Ranking | None = None,
        half_space_eps: float = 0.0,
        penalty: Penalty = "ramp",
        strength: float = 0.0,
        carrier: asked.Carry = "gates",
        merge: asked.Merge = "end",
        merge_moments: Moments = "keep",
        merge_warmup: int = 0,
        compensate: Iterable[Any] | None = None,
        on_period: Callable[[LHSPG, int], object] | None = None,
        variant: Variant = "adamw",
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        form: Form = "module",
        tied: Collection[Any] | None = None,
        kinds: Collection[str] | None = None,
        include: Collection[str] = (),
        exclude: Collection[str] = (),
        exclude_kinds: Collection[str] = (),
        allow: Collection[str] = (),
        floor: Floor = FLOOR,
        most: float = 1.0,
        round_to: RoundTo = 1,
        seed: int = 0,
        kernels: Kernels = "auto",
    ) -> None:
        check_kernels(kernels)
        self.schedule = Schedule(warmup, periods, period_length)
        asked.check(target, half_space_eps, penalty, strength, merge, variant, ranking, carrier, data, compensate)
        model = asked.whole(model)
        trained = [p for p in model.parameters() if p.requires_grad] if params is None else params
        own = {"betas": betas, "eps": eps} if variant == "adamw" else {"momentum": momentum}
        super().__init__(trained, variant, kernels, lr=lr, weight_decay=weight_decay, **own)
        self.graph, self.model, self.unit = graph, model, unit
        self.merge, self.form, self.on_period = merge, form, on_period
        self.adapters = adapters_of(model)
        self.merger = Merger(self.adapters, {"end": 1, "period": periods, "never": 0}[merge])
        self.restart = Restart(self.adapters, merge_moments, merge_warmup)
        if self.merger.times or carrier == "weights":
            asked.check_writable(model, self.adapters)
        if tied is None:
            wanted = Selection(tuple(allow), tuple(include), tuple(exclude), None if kinds is None else tuple(kinds),
                               tuple(exclude_kinds), "global", form)  # fmt: skip
            tied = selected(graph, model, wanted) if target else ()
        self.chooser = Chooser(graph, list(tied), unit=unit, floor=floor, most=most, round_to=round_to)
        self.amount = self.chooser.amount_of(target)
        groups = self.chooser.groups if self.amount else []
        self.scorer = Scorer(graph, model, groups, saliency, data, loss, seed, scores, kernels)
        # weights that fade themselves need gates only to be differentiated by
        self.gates = Gates(graph, model, groups if carrier == "gates" or self.scorer.collects else [])
        rule = Rule(penalty, strength, half_space_eps)

        def find(fading: Mapping[str, torch.Tensor]) -> Any:
            return slices_of(graph, model, self.adapters, fading)

        how = find, rule, kernels
        self.carrier: Carrier = GateCarrier(self.gates, *how) if carrier == "gates" else KernelWeightCarrier(*how)
        asked.check_gated(self.gates, self.adapters)
        if groups and rule.looks:
            asked.check_readable(self.adapters)
        self.stand_ins = None if compensate is None else StandingIn(self.gates, self.adapters, compensate)
        self.ranking: Ranking = ranking or self.scorer.unit
        self.steps = 0
        self.picks: list[Redundant] = []
        self.history: list[dict[str, Any]] = []
        """One entry for each period: step, structures picked, what is saved then, their saliency beside the rest."""
        # what does not compile or load is known now, not in the middle of a step
        self._kernels()
        self.carrier.prepare({g.name: torch.arange(g.size) for g in groups})
        self.attach()

    @classmethod
    def paper(cls, graph: Graph, model: nn.Module, params: Any = None, **options: Any) -> LHSPG:
        """Algorithm 4 as it is printed (see ``shearfx.optim.options.paper``); any option can be given beside."""
        return cls(graph, model, params, **(asked.paper() | options))

    # -- a step ----------------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the variant, then whatever the schedule has for this step.

        Raises:
            PlanError: a saliency cannot tell structures apart (all scores equal, or nothing collected yet).
        """
        with torch.enable_grad():
            value = None if closure is None else closure()
        moment = self.schedule.at(self.steps)
        running = 0 <= moment.period < self.schedule.periods
        self.scorer.flush()
        if running and moment.step == 0 and self.amount:
            self._pick(moment.period)
        self.carrier.before()
        with self.restart.rates(self.param_groups):
            self.advance()
        self.carrier.keep()
        ended = running and moment.step == self.schedule.period_length - 1
        if running:
            self.carrier.fade(self.schedule.period_length - moment.step)
        if ended:
            self._end_period(moment.period)
        self.steps += 1
        if ended and self.on_period is not None:
            self.on_period(self, moment.period)
        return value

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As ever; backward passes that no step followed, as a gradient scaler skipped it, do not count as scores."""
        super().zero_grad(set_to_none)
        self.scorer.discard()

    def _pick(self, period: int) -> None:
        """Line 4: the least salient of what is still important become redundant."""
        share, of = self.schedule.share(period)
        whole = self.unit == "structures"
        amount = self.amount * share // of if whole else self.amount * share / of
        scores, before = self.scorer.take(period), self.redundant
        asked.check_scores(scores, before)
        chosen, saved = self.chooser.choose(amount, scores, self.ranking, before)
        new = {name: sorted(set(gone) - set(before.get(name, ()))) for name, gone in chosen.items()}
        new = {name: gone for name, gone in new.items() if gone}
        if isinstance(self.carrier, WeightCarrier):
            self.merger.look()
        self.carrier.start({name: torch.tensor(gone) for name, gone in new.items()})
        self.picks.append(new)
        if self.stand_ins is not None:
            self.stand_ins.fit(self.fading, self.redundant)
        self.scorer.reset()
        picked, seen = sum(map(len, new.values())), saliency_at_pick(self.chooser.groups, scores, new, before)
        self.history.append({"step": self.steps, "period": period, "picked": picked, "saved": saved, "saliency": seen})

    def _end_period(self, period: int) -> None:
        """Line 9: what has faded is zero in the adapters too; they are merged."""
        if self.stand_ins is not None:
            self.stand_ins.finish()
        self.carrier.finish()
        last = period == self.schedule.periods - 1
        if self.merge == "never" or (self.merge == "end" and not last):
            return
        if not last and self.amount and self.adapters:
            self.scorer.foresee(period + 1)
        self.merge_adapters()

    def merge_adapters(self) -> None:
        """Line 9: add ``gamma B A`` to the weights and set B to zero. The function of the model stays."""
        self.merger.merge()
        self.restart.merged(self.state)
        if isinstance(self.carrier, WeightCarrier):
            self.carrier.renew()

    # -- state -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The variant's state and all that LHSPG knows: with what was trained, all that a resumed run needs.

        Where frozen weights are written to, that includes the two thin factors of every merge so far, and the slices
        that are fading (``carrier="weights"``).
        """
        return super().state_dict() | {"lhspg": state_of(self)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where a run stopped. The model's own parameters (or its adapter's) have to be loaded before.

        Raises:
            PlanError: the state is of another schedule, target, carrier or model.
        """
        state = dict(state_dict)
        go_on(self, state.pop("lhspg", None))
        super().load_state_dict(state)
