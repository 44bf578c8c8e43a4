"""Where LHSPG's scores come from: collected from training itself, computed when a period begins, or given."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

import shearfx.saliency as saliencies
from shearfx.cuda.choosing import Kernels
from shearfx.errors import PlanError, message
from shearfx.gating.collector import Collector
from shearfx.gating.gates import Gates
from shearfx.gradients import Loss
from shearfx.graph import Graph, Group
from shearfx.optim.ranks import add_up, agreed
from shearfx.saliency import Saliency, Scores
from shearfx.saliency.fisher import check_seen, watch
from shearfx.saliency.learnt import reads_adapters
from shearfx.saliency.loraprune import LoraPrune
from shearfx.spending import Ranking

BY_GATES = ("fisher", "taylor")
ACCUMULATED = (*BY_GATES, "loraprune")
"""Saliencies that training itself brings, at no further passes."""


class Scorer:
    """Scores every structure of some groups, each period anew.

    Args:
        graph, model, groups: what is scored.
        saliency: a name or a saliency; ``fisher`` and ``taylor`` without data are collected from training by gates,
            ``loraprune`` from the gradients of adapters at each step, as an average that goes on over periods.
        data, loss, seed: for saliencies that need them.
        scores: fixed scores instead.
        kernels: see :class:`shearfx.optim.LHSPG`.

    Raises:
        PlanError: there is no such saliency.
    """

    def __init__(
        self,
        graph: Graph,
        model: nn.Module,
        groups: Sequence[Group],
        saliency: str | Saliency,
        data: Iterable[Any] | Callable[[int], Iterable[Any]] | None,
        loss: Loss | None,
        seed: int,
        scores: Scores | None,
        kernels: Kernels = "auto",
    ) -> None:
        self.graph, self.model, self.groups = graph, model, list(groups)
        self.data, self.loss, self.seed, self.scores = data, loss, seed, scores
        brought = bool(self.groups) and scores is None and data is None
        self.collects = brought and saliency in BY_GATES
        if self.collects or scores is not None or not self.groups:
            self.name, self.saliency = str(getattr(saliency, "name", saliency)), None
        else:
            self.saliency = copy.copy(saliencies.find(saliency))  # a caller's stays as it is
            self.name, self.saliency.kernels = self.saliency.name, kernels
        own = self.saliency
        self.average = own.average(graph, model, groups) if brought and isinstance(own, LoraPrune) else None
        """Of what the gradients of adapters told at each step."""
        self.collector: Collector | None = None
        """What the backward passes since the last step brought, on this rank."""
        self.total: Collector | None = None
        """What all steps since the last choice brought, on all ranks."""
        self.before_merge: Scores | None = None
        self._gates: Gates | None = None
        self._watch: Any = None

    @property
    def unit(self) -> Ranking:
        """The unit of the scores; given ones are taken to have none."""
        if self.saliency is not None:
            return self.saliency.unit
        return "loss" if self.collects else "relative"

    def attach(self, gates: Gates) -> None:
        """Collect what backward passes bring, where that is what is asked for.

        Raises:
            PlanError: the gates do not see a group.
        """
        self._gates = gates
        if self.collects:
            if self.collector is None or self.total is None:
                check_seen(gates, self.name, weights=False)
                self.collector, self.total = (Collector({g.name: g.size for g in self.groups}) for _ in range(2))
            gates.collector = self.collector
            self._watch = self._watch or watch(self.model, self.collector)

    def detach(self) -> None:
        """Take the hook off the model."""
        if self._watch is not None:
            self._watch.remove()
            self._watch = None

    def flush(self) -> None:
        """The backward passes of a step are over, on all ranks."""
        if self.average is not None:
            self.average.add()
        if self.collector is not None and self.total is not None:
            self.collector.flush()
            self.total.add_sums(add_up(self.collector.sums()))
            self.collector.reset()

    def discard(self) -> None:
        """The backward passes since the last step lead to none."""
        if self.collector is not None:
            self.collector.reset()

    def take(self, period: int) -> Scores:
        """The scores for the choice that begins a period; collecting starts anew with :meth:`reset`.

        Raises:
            PlanError: nothing was collected, or whatever the saliency raises.
        """
        if self.scores is not None:
            return agreed(self.scores)
        if self.before_merge is not None:
            return self.before_merge
        if self.average is not None:
            return agreed(self.average.scores())
        if self.total is None:
            return self._compute(period)
        if not self.total.sequences:
            what = f"no backward pass was seen before period {period}: saliency {self.name!r} knows nothing"
            todo = "call the very model that LHSPG was given, and backward() between steps, or pass scores="
            raise PlanError(message(what, todo=todo))
        found = self.total.square if self.name == "fisher" else self.total.absolute
        return {name: value / self.total.sequences for name, value in found.items()}

    def foresee(self, period: int) -> None:
        """A merge is to come: what reads adapters scores now for the period that begins then, as BA is zero after."""
        if self.saliency is not None and reads_adapters(self.saliency):
            self.before_merge = self._compute(period)

    def reset(self) -> None:
        """The scores were used."""
        self.before_merge = None
        if self.total is not None:
            self.total.reset()

    def _compute(self, period: int) -> Scores:
        assert self.saliency is not None
        data = self.data(period) if callable(self.data) else self.data
        return agreed(
            self.saliency.score(
                self.graph, self.model, groups=self.groups, data=data, loss=self.loss, seed=self.seed + period
            )
        )

    def state_dict(self) -> dict[str, Any]:
        """What was collected, and scored ahead."""
        return {
            "collector": None if self.total is None else self.total.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "before_merge": None if self.before_merge is None else dict(self.before_merge),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with it."""
        ahead = state["before_merge"]
        self.before_merge = None if ahead is None else {name: torch.as_tensor(s).cpu() for name, s in ahead.items()}
        if self.total is not None and state["collector"] is not None:
            self.total.load_state_dict(state["collector"])
        if self.average is not None and state.get("average") is not None:
            self.average.load_state_dict(state["average"])
