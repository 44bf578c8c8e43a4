"""LoRAPrune: weights times a gradient that is estimated from LoRA's factors and their gradients alone.

A step of plain gradient descent at a learning rate of 1 would change ``W = W_0 + gamma B A`` by minus
``gamma (dB A + B dA - dB dA)``, which stands where the gradient of ``W`` would. It is formed a few rows at a time; the
frozen weight itself gets no gradient, so what is quantised is scored too.

The authors' code takes absolute values in the place of squares, and divides each layer's scores by their norm; this is
what the paper says.

Source: LoRAPrune (Zhang et al. 2023, arXiv 2305.18403), section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from shearfx.adapters import base_name
from shearfx.errors import PlanError, message
from shearfx.gradients import backward_each, gradients
from shearfx.graph import Graph, Group
from shearfx.live_adapters import adapters_of
from shearfx.low_rank import LowRank, spans, wider
from shearfx.saliency.base import Saliency, Scores, refuse_unseen, register
from shearfx.saliency.evidence import Evidence
from shearfx.slices import SliceSums
from shearfx.stacked_low_rank import StackedLowRank


@register
class LoraPrune(Saliency):
    """``sum of (g W)^2`` over all weights of a structure that have an adapter, with the gradient ``g`` estimated from
    the adapter; a moving average over batches, ``G_t = decay G_(t-1) + (1 - decay) G``.

    Relative: it orders the structures of a group, as the authors cut equal shares of all layers. Needs adapters; with
    ``data``, one forward and backward pass per batch through them. ``LHSPG(saliency="loraprune")`` without data takes
    the gradients that training brings, so that structures go while the average goes on. Memory: gradients of the
    adapters.

    Args:
        decay: the paper's lambda, 0 to below 1.

    Source: LoRAPrune (arXiv 2305.18403), section 3.2 (importance) and 3.3 (sum over the group, moving average).
    """

    name: ClassVar[str] = "loraprune"
    unit = "relative"

    def __init__(self, decay: float = 0.9) -> None:
        if not 0 <= decay < 1:
            raise PlanError(message(f"decay={decay!r} is no share below 1", where="LoraPrune(...)", todo="pass 0.9"))
        self.decay = decay

    def scores(self, given: Evidence) -> Scores:
        """One forward and backward pass per batch, in evaluation mode; only adapters get gradients.

        Raises:
            PlanError: no model, data or loss, or a group of which no weight has an adapter.
        """
        average = self.average(given.graph, given.model, given.groups)
        batches = given.batches
        brought: dict[str, Tensor] = {}

        def receive(name: str, parameter: Tensor, gradient: Tensor) -> None:
            brought[name] = gradient

        with gradients(given.model, average.factors(), receive):
            for _ in backward_each(given.model, batches, given.loss, self.name, given.progress):
                average.add(brought)
                brought.clear()
        return average.scores()

    def average(self, graph: Graph, model: nn.Module | None, groups: Sequence[Group] | None) -> LoraAverage:
        """What takes in gradients, wherever they come from.

        Raises:
            PlanError: no model, or a group of which no weight has an adapter.
        """
        if model is None:
            raise PlanError(message(f"saliency {self.name!r} reads adapters", todo="pass model="))
        return LoraAverage(graph, model, graph.groups if groups is None else groups, self.decay)


class LoraAverage:
    """The moving average of importances of structures.

    Args:
        graph: the analysis of the base.
        model: the live model, with adapters.
        groups: what is scored.
        decay: how much of the average stays each time.

    Raises:
        PlanError: a group of which no weight has an adapter.
    """

    def __init__(self, graph: Graph, model: nn.Module, groups: Sequence[Group], decay: float) -> None:
        self.decay, self._sums = decay, SliceSums(graph, groups)
        self.adapters: dict[str, LowRank] = {}
        """By name of the weight without adapters."""
        for adapter in adapters_of(model).values():
            name = base_name(adapter.name)
            if name in self._sums.names:
                self.adapters[name] = adapter
        if not self.adapters:
            todo = "put adapters on it first: LHSPG on a PEFT model, or a run with prune_share above 0"
            raise PlanError(message("saliency 'loraprune' reads adapters, and no weight of a group has one", todo=todo))
        reached = {self._sums.names[name] for name in self.adapters}
        refuse_unseen((g for g in groups if not reached & {m.name for m in g.members}), "loraprune")
        self.seen = 0
        """How many times gradients were taken in."""
        self._average = {name: torch.zeros_like(s) for name, s in self._sums.sums.items()}

    def factors(self) -> dict[str, nn.Parameter]:
        """A and B of every adapter, by names of their own."""
        return {f"{name}.{side}": getattr(one, side) for name, one in self.adapters.items() for side in ("a", "b")}

    @torch.no_grad()
    def add(self, brought_by: Mapping[str, Tensor | None] | None = None) -> None:
        """Take in what a step's backward passes brought; where a number is not finite, nothing.

        Args:
            brought_by: gradients by the names of :meth:`factors` (default: those that are kept with them).
        """
        if brought_by is None:
            brought_by = {name: factor.grad for name, factor in self.factors().items()}
        brought = False
        for name, one in self.adapters.items():
            a, b = brought_by.get(f"{name}.a"), brought_by.get(f"{name}.b")
            if a is not None and b is not None:
                brought = True
                for start, rows in _importances(one, a, b):
                    self._sums.add(name, rows, start)
        found = self._sums.take()
        if brought and all(bool(score.isfinite().all()) for score in found.values()):
            self.seen += 1
            for name, score in found.items():
                self._average[name] = self.decay * self._average[name] + (1 - self.decay) * score

    def scores(self) -> Scores:
        """The average of every group, float64 ``[size]``.

        Raises:
            PlanError: no gradient was taken in yet.
        """
        if not self.seen:
            what = "saliency 'loraprune' has seen no gradient of an adapter"
            raise PlanError(message(what, todo="call backward() on the model before a step, with adapters trained"))
        return {name: score.clone() for name, score in self._average.items()}

    def state_dict(self) -> dict[str, Any]:
        """All of it."""
        return {"seen": self.seen, "average": {name: score.clone() for name, score in self._average.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what :meth:`state_dict` returned."""
        self.seen = int(state["seen"])
        for name, score in state["average"].items():
            self._average[name] = torch.as_tensor(score).cpu().double()


def _importances(one: LowRank, a: Tensor, b: Tensor) -> Iterator[tuple[int, Tensor]]:
    """``(g W)^2`` of each weight of a layer as it is kept, some rows at a time: the first row's number, and the rows.

    Args:
        a, b: gradients of the factors.
    """
    weight = one.plain()
    wide = torch.promote_types(wider(weight.dtype), wider(one.a.dtype))
    pairs = zip(one.parts(weight, one.a, one.b), one.parts(weight, a, b), strict=True)
    for number, ((matrix, *factors), (_, *brought)) in enumerate(pairs):
        right, left, right_by, left_by = (factor.to(wide) for factor in (*factors, *brought))
        if one.transposed:
            matrix, left, right, left_by, right_by = matrix.T, right.T, left.T, right_by.T, left_by.T
        rows = _of_matrix(matrix, (left, right), (left_by, right_by), one.scaling)
        if isinstance(one, StackedLowRank):
            yield number, torch.cat([some for _, some in rows])[None]
        else:
            yield from rows


def _of_matrix(
    matrix: Tensor, factors: tuple[Tensor, Tensor], brought: tuple[Tensor, Tensor], scaling: float
) -> Iterator[tuple[int, Tensor]]:
    """The same of one matrix.

    Args:
        matrix: in the layout of its parameter.
        factors, brought: left and right factor of what is added to it, and their gradients.
    """
    (left, right), (left_by, right_by) = factors, brought
    for start, stop in spans(len(matrix), matrix[0].numel()):
        some, some_by = left[start:stop], left_by[start:stop]
        gradient = scaling * (some_by @ right + some @ right_by - some_by @ right_by)
        rows = matrix[start:stop].flatten(1).to(gradient) + scaling * (some @ right)
        yield start, (gradient * rows).square().reshape(matrix[start:stop].shape)
