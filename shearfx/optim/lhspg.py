"""LHSPG, LoRA half-space projected gradient, as a ``torch.optim.Optimizer``.

It trains as AdamW or SGD does. Period by period it picks the least salient structures, fades them to exactly zero while
training goes on, so that what they know can move into what stays, and ends with exactly the target redundant.

Source: LoRAShear (arXiv 2310.18356), Algorithm 4. What the paper leaves open is an option here.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

import shearfx.saliency as saliencies
from shearfx.errors import PlanError, message
from shearfx.gating.collector import Collector
from shearfx.gating.gates import Gates
from shearfx.gradients import Loss
from shearfx.graph import Graph
from shearfx.low_rank import LowRank, adapters_of
from shearfx.optim.choosing import Chooser, Currency, Redundant
from shearfx.optim.fading import Penalty, falls, trial_factor
from shearfx.optim.redundant_slices import Slices, slices_of
from shearfx.optim.schedule import Schedule
from shearfx.pruning_plan import PruningPlan, of_cuts
from shearfx.saliency import Saliency, Scores
from shearfx.saliency.fisher import check_seen, watch
from shearfx.selection import Selection, select
from shearfx.units import FLOOR, Floor

Merge = Literal["end", "period", "never"]
Variant = Literal["adamw", "sgd"]
ACCUMULATED = ("fisher", "taylor")
"""Saliencies that training itself collects, at no further passes."""


class LHSPG(torch.optim.Optimizer):
    """AdamW or SGD that makes a target number of structures redundant on the way.

    Structures fade by gates (see ``shearfx.gating.gates``): frozen, quantised and shared weights are never written, and
    ``with optimizer.gates.opened()`` is the full model. Schedules of learning rates, gradient scalers (a step that they
    skip does not advance the schedule) and ``transformers.Trainer(optimizers=(optimizer, scheduler))`` work as with any
    optimiser.

    Args:
        graph: the analysis of the model, or of its base without adapters.
        model: the live model, with PEFT adapters or without.
        params: what to train, as for any optimiser (default: all parameters that require gradients).
        target: what becomes redundant: a share (float below 1) or an amount (int) of ``unit``; 0 for plain training.
        unit: ``"params"`` (all unique parameters), ``"flops"``, or ``"structures"`` (the paper's K).
        warmup, periods, period_length: optimiser steps before the first period, periods, steps of each (lines 1, 3,
            5).
        saliency: ``"fisher"`` and ``"taylor"`` are collected from the training steps since the last choice; any other
            is a registered name or a :class:`shearfx.saliency.Saliency`, computed when a period begins (line 4).
        data, loss: for saliencies that run the model; ``data`` is read anew each period.
        scores: fixed scores instead, by name of group.
        ranking: overrides the saliency's unit: ``"loss"`` ranks over all layers and kinds, ``"relative"`` within each.
        half_space_eps: a structure is zeroed early where its trial iterate leaves the half-space (line 8);
            ``-inf`` switches the test off.
        penalty: ``"ramp"`` fades to exactly zero over a period, ``"constant"`` subtracts ``strength``.
        strength: lambda of the constant penalty.
        merge: when ``gamma B A`` is added to the weights and B reset (line 9): at the ``"end"``, each ``"period"``, or
            ``"never"``.
        variant: ``"adamw"`` or ``"sgd"``.
        lr, betas, eps, weight_decay, momentum: of the variant.
        form: what may be cut: what the model's own class can express (``"module"``), or all (``"fx"``).
        tied: the groups to choose from, where that is known already (then ``form`` to ``exclude_kinds`` are not used).
        kinds, include, exclude, exclude_kinds, allow: as in :func:`shearfx.plan`.
        floor, most, round_to: as in :func:`shearfx.plan`.
        seed: of saliencies that draw.

    Raises:
        PlanError: options that make no sense, a target that is out of reach, a group that cannot be gated, a saliency
            that does not see a group, DoRA adapters, or a merge into a quantised base.
    """

    def __init__(
        self,
        graph: Graph,
        model: nn.Module,
        params: Any = None,
        *,
        target: int | float = 0.2,
        unit: Currency = "params",
        warmup: int = 10,
        periods: int = 5,
        period_length: int = 10,
        saliency: str | Saliency = "fisher",
        data: Iterable[Any] | None = None,
        loss: Loss | None = None,
        scores: Scores | None = None,
        ranking: Literal["loss", "relative"] | None = None,
        half_space_eps: float = 0.0,
        penalty: Penalty = "ramp",
        strength: float = 0.0,
        merge: Merge = "end",
        variant: Variant = "adamw",
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        form: Literal["module", "fx"] = "module",
        tied: Collection[Any] | None = None,
        kinds: Collection[str] | None = None,
        include: Collection[str] = (),
        exclude: Collection[str] = (),
        exclude_kinds: Collection[str] = (),
        allow: Collection[str] = (),
        floor: Floor = FLOOR,
        most: float = 1.0,
        round_to: int = 1,
        seed: int = 0,
    ) -> None:
        self.schedule = Schedule(warmup, periods, period_length)
        _check(target, half_space_eps, penalty, strength, merge, variant, ranking)
        trained = [p for p in model.parameters() if p.requires_grad] if params is None else params
        defaults: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        defaults |= {"betas": betas, "eps": eps} if variant == "adamw" else {"momentum": momentum}
        super().__init__(trained, {})
        kind = torch.optim.AdamW if variant == "adamw" else torch.optim.SGD
        self.inner: torch.optim.Optimizer = kind(self.param_groups, **defaults)
        self.defaults = self.inner.defaults
        self._link()

        self.graph, self.model, self.unit = graph, model, unit
        self.half_space_eps, self.penalty, self.strength = half_space_eps, penalty, strength
        self.merge, self.form, self.seed = merge, form, seed
        self.data, self.loss, self.scores = data, loss, scores
        self.adapters = adapters_of(model)
        if merge != "never":
            _check_mergeable(self.adapters)
        if tied is None and target:
            wanted = Selection(tuple(allow), tuple(include), tuple(exclude), None if kinds is None else tuple(kinds),
                               tuple(exclude_kinds), "global", form)  # fmt: skip
            tied, refused = select(graph, model, wanted)
            if not tied:
                reasons = "; ".join(refused) or "the graph has no groups"
                raise PlanError(message("nothing can become redundant", where=reasons, todo="see graph.pins"))
        self.chooser = Chooser(graph, list(tied or ()), unit=unit, floor=floor, most=most, round_to=round_to)
        self.amount = self._amount(target)
        self.gates = Gates(graph, model, self.chooser.groups).attach()
        self.saliency = self._find(saliency)
        self.ranking: Literal["loss", "relative"] = ranking or self._unit()
        self.steps = 0
        """Optimiser steps taken."""
        self.redundant: Redundant = {}
        """What was picked so far, by group; faded or fading."""
        self.fading: dict[str, Tensor] = {}
        """The structures of the running period that are not zero yet: group to LongTensor."""
        self.history: list[dict[str, Any]] = []
        """One entry for each period: step, structures picked, what is saved then."""
        self._slices: list[Slices] = []
        self._norms: dict[str, Tensor] = {}
        self._watch: Any = None
        if self.collector is not None:
            self.gates.collector = self.collector
            self._watch = watch(model, self.collector)

    # -- setting up ----------------------------------------------------------------------------------

    def _link(self) -> None:
        """The inner optimiser works on this one's groups and state, so that schedulers and checkpoints see one."""
        self.inner.param_groups = self.param_groups
        self.inner.state = self.state

    def _amount(self, target: int | float) -> float:
        total = self.chooser.total
        amount = target * total if isinstance(target, float) else float(target)
        if not target:
            return 0.0
        most = self.chooser.most_possible()
        if amount > most:
            raise PlanError(
                message(
                    f"a target of {target:g} asks for {amount:.0f} {self.unit}, and at most {most} of {total} can go",
                    where=f"{len(self.chooser.groups)} groups down to their floors",
                    todo=f"ask for at most {int(1e4 * most / total) / 1e4:g}, or a smaller floor, or more kinds",
                )
            )
        return amount

    def _find(self, saliency: str | Saliency) -> str | Saliency:
        self.collector: Collector | None = None
        if self.scores is not None or not self.amount:
            return saliency
        if isinstance(saliency, str) and saliency in ACCUMULATED and self.data is None:
            check_seen(self.gates, saliency)
            self.collector = Collector({g.name: g.size for g in self.chooser.groups})
            return saliency
        return saliencies.find(saliency)

    def _unit(self) -> Literal["loss", "relative"]:
        if isinstance(self.saliency, Saliency):
            return self.saliency.unit
        return "relative" if self.scores is not None else "loss"

    # -- a step ----------------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the variant, then whatever the schedule has for this step.

        Raises:
            PlanError: a saliency cannot tell structures apart (all scores equal, or nothing collected yet).
        """
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        moment = self.schedule.at(self.steps)
        active = bool(self.amount) and 0 <= moment.period < self.schedule.periods
        if self.collector is not None:
            self.collector.flush()
        if active and moment.step == 0:
            self._pick(moment.period)
        before = self._before() if active else {}
        self._link()
        self.inner.step()
        with torch.no_grad():
            if active:
                self._fade(self.schedule.period_length - moment.step, before)
                if moment.step == self.schedule.period_length - 1:
                    self._end_period(last=moment.period == self.schedule.periods - 1)
        self.steps += 1
        return value

    def _pick(self, period: int) -> None:
        """Line 4: the least salient of what is still important become redundant."""
        share, of = self.schedule.share(period)
        amount = self.amount * share / of
        if self.unit == "structures":
            amount = round(amount) if share < of else self.amount
        scores = self._scores(period)
        _check_scores(scores)
        chosen, saved = self.chooser.choose(amount, scores, self.ranking, self.redundant)
        new = {name: sorted(set(gone) - set(self.redundant.get(name, ()))) for name, gone in chosen.items()}
        self.fading = {name: torch.tensor(gone) for name, gone in new.items() if gone}
        self.redundant = chosen
        picked = sum(len(gone) for gone in self.fading.values())
        self.history.append({"step": self.steps, "period": period, "picked": picked, "saved": saved})
        self._look()
        if self.collector is not None:
            self.collector.reset()

    def _scores(self, period: int) -> Scores:
        if self.scores is not None:
            return self.scores
        if self.collector is not None:
            if not self.collector.sequences:
                raise PlanError(
                    message(
                        f"no backward pass was seen before period {period}: saliency {self.saliency!r} knows nothing",
                        todo="run backward passes through this very model between steps, or pass scores=",
                    )
                )
            found = self.collector.square if self.saliency == "fisher" else self.collector.absolute
            return {name: value / self.collector.sequences for name, value in found.items()}
        assert isinstance(self.saliency, Saliency)
        with self._without_collector():
            return self.saliency.score(
                self.graph, self.model, groups=self.chooser.groups, data=self.data, loss=self.loss,
                seed=self.seed + period,
            )  # fmt: skip

    # -- fading ------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Find the slices of what fades, and how long they are."""
        self._slices = slices_of(self.graph, self.model, self.adapters, self.fading)
        squares = {name: torch.zeros(len(gone)) for name, gone in self.fading.items()}
        for one in self._slices:
            squares[one.group].index_add_(0, one.slot, one.squares())
        self._norms = {name: square.sqrt() for name, square in squares.items()}

    def _before(self) -> dict[int, Tensor]:
        """Copies of the fading slices that are trained themselves: what the step changes is told by them."""
        if math.isinf(self.half_space_eps):
            return {}
        return {i: one.taken() for i, one in enumerate(self._slices) if one.parameter.requires_grad}

    def _fade(self, left: int, before: Mapping[int, Tensor]) -> None:
        """Lines 7 and 8: the trial iterate of every fading structure, and its half-space test."""
        if not self.fading:
            return
        inner = {name: torch.zeros(len(gone)) for name, gone in self.fading.items()}
        if left > 1 and not math.isinf(self.half_space_eps):
            for i, one in enumerate(self._slices):
                inner[one.group].index_add_(0, one.slot, one.inner(before.get(i)))
        values = {}
        for name, gone in self.fading.items():
            value = self.gates.values[name].clone()
            gate, norm = value[gone], self._norms[name]
            factor = trial_factor(self.penalty, left, norm, gate, self.strength)
            fallen = falls(factor, inner[name], norm, left, self.half_space_eps)
            # a structure that has fallen before is never tested again
            value[gone] = torch.where(fallen | (gate == 0), 0.0, gate * factor)
            values[name] = value
        self.gates.set(values)

    def _end_period(self, last: bool) -> None:
        self._clear()
        self.fading = {}
        self._slices = []
        self._norms = {}
        if self.merge == "period" or (self.merge == "end" and last):
            self.merge_adapters()

    def _clear(self) -> None:
        """The adapters' own slices of what is gone are zero: rows of B, columns of A."""
        for one in self._slices:
            if one.adapter is not None:
                out = one.adapter.side(one.dim) == "out"
                thin, axis = (one.adapter.b, 0) if out else (one.adapter.a, 1)
                thin.data.index_fill_(axis, one.index.to(thin.device), 0)

    @torch.no_grad()
    def merge_adapters(self) -> None:
        """Line 9: add ``gamma B A`` to the weights and set B to zero. The function of the model stays."""
        for adapter in self.adapters.values():
            adapter.merge()

    # -- results -----------------------------------------------------------------------------------------

    @property
    def zeros(self) -> Redundant:
        """The structures that are exactly zero now, by group."""
        return self.gates.shut()

    def plan(self) -> PruningPlan:
        """The plan that cuts what is zero now: a smaller sound model at the end of any period."""
        kept = {}
        for name, gone in self.zeros.items():
            out = set(gone)
            kept[name] = [i for i in range(self.gates.groups[name].size) if i not in out]
        options = {"form": self.form, "unit": self.unit, "saliency": str(getattr(self.saliency, "name", self.saliency))}
        return of_cuts(self.graph, kept, asked=self.amount / max(self.chooser.total, 1), options=options)

    def detach(self) -> None:
        """Take gates and hooks off the model; what was faded is back at full weight unless it was cut."""
        self.gates.detach()
        if self._watch is not None:
            self._watch.remove()
            self._watch = None

    @contextlib.contextmanager
    def _without_collector(self) -> Iterator[None]:
        collector, self.gates.collector = self.gates.collector, None
        try:
            yield
        finally:
            self.gates.collector = collector

    # -- state -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The variant's state and all that LHSPG knows: with the adapter, everything that a resumed run needs."""
        state = super().state_dict()
        state["lhspg"] = {
            "schedule": [self.schedule.warmup, self.schedule.periods, self.schedule.period_length],
            "amount": self.amount, "steps": self.steps, "history": [dict(h) for h in self.history],
            "gates": {name: value.clone() for name, value in self.gates.values.items() if bool((value != 1).any())},
            "redundant": {name: list(gone) for name, gone in self.redundant.items()},
            "fading": {name: gone.clone() for name, gone in self.fading.items()},
            "norms": {name: norm.clone() for name, norm in self._norms.items()},
            "collector": None if self.collector is None else self.collector.state_dict(),
        }  # fmt: skip
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where a run stopped. The model's own parameters (or its adapter's) have to be loaded beside.

        Raises:
            PlanError: the state is of another schedule, target or model.
        """
        state = dict(state_dict)
        own = state.pop("lhspg", None)
        if own is None:
            raise PlanError(message("this is no state of LHSPG", todo="load what LHSPG.state_dict() returned"))
        mine = [self.schedule.warmup, self.schedule.periods, self.schedule.period_length]
        if list(own["schedule"]) != mine or abs(own["amount"] - self.amount) > 1e-6 * max(1.0, self.amount):
            what = f"the state is of a run with schedule {list(own['schedule'])} and target {own['amount']:g}"
            raise PlanError(
                message(what, where=f"this one has {mine} and {self.amount:g}", todo="use the same options")
            )
        for name in (*own["redundant"], *own["gates"]):
            if name not in self.gates.groups:
                raise PlanError(message(f"the state knows a group {name!r}, which this model does not have"))
        super().load_state_dict(state)
        self._link()
        self.steps = int(own["steps"])
        self.history = [dict(h) for h in own["history"]]
        self.redundant = {name: [int(i) for i in gone] for name, gone in own["redundant"].items()}
        values = {name: torch.ones(g.size) for name, g in self.gates.groups.items()}
        values |= {name: torch.as_tensor(v).cpu().float() for name, v in own["gates"].items()}
        self.gates.set(values)
        self.fading = {name: torch.as_tensor(gone).cpu().long() for name, gone in own["fading"].items()}
        self._slices = slices_of(self.graph, self.model, self.adapters, self.fading)
        self._norms = {name: torch.as_tensor(n).cpu().float() for name, n in own["norms"].items()}
        if self.collector is not None and own["collector"] is not None:
            self.collector.load_state_dict(own["collector"])


def _check_scores(scores: Scores) -> None:
    if all(bool((score == score[0]).all()) for score in scores.values() if len(score) > 1):
        todo = "choose another saliency, or train first (warmup=)"
        raise PlanError(message("all structures of every group score alike, so none is less salient", todo=todo))


def _check_mergeable(adapters: Mapping[str, LowRank]) -> None:
    for one in adapters.values():
        if not one.weight.is_floating_point():
            what = f"{one.path} has a quantised base, into which nothing can be merged"
            raise PlanError(message(what, todo='pass merge="never"'))


def _check(
    target: int | float, epsilon: float, penalty: str, strength: float, merge: str, variant: str, ranking: str | None
) -> None:
    where = "LHSPG(...)"
    if isinstance(target, bool) or not isinstance(target, (int, float)) or target < 0 or target != target:
        raise PlanError(message(f"target={target!r} is no amount", where=where, todo="pass 0.2 for 20%"))
    if isinstance(target, float) and target >= 1:
        raise PlanError(message(f"a share of {target:g} is not below 1", where=where, todo="pass 0.2 for 20%"))
    for name, value, known in (
        ("penalty", penalty, ("ramp", "constant")), ("merge", merge, ("end", "period", "never")),
        ("variant", variant, ("adamw", "sgd")), ("ranking", ranking, (None, "loss", "relative")),
    ):  # fmt: skip
        if value not in known:
            raise PlanError(message(f"there is no {name} {value!r}", where=where, todo=f"choose one of {known}"))
    if epsilon != epsilon or epsilon >= 1:
        what = f"half_space_eps={epsilon!r} would zero every structure at once"
        raise PlanError(message(what, where=where, todo="pass a number below 1; -inf for no test"))
    if strength < 0 or (penalty == "constant" and strength == 0):
        raise PlanError(
            message(f"a constant penalty of {strength:g} fades nothing", where=where, todo="pass strength=")
        )
