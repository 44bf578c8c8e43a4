"""Saliencies that need no data: random numbers, and the size of the weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from shearfx.gradients import Loss
from shearfx.graph import Graph, Group
from shearfx.low_rank import spans
from shearfx.saliency.base import Progress, Saliency, Scores, register, weights_of
from shearfx.slices import SliceSums, precise


@register
class Random(Saliency):
    """Uniform numbers from a seed: the floor that every other proxy has to beat. Needs no weights."""

    name = "random"
    unit = "relative"

    def score(
        self,
        graph: Graph,
        model: nn.Module | None,
        *,
        groups: Sequence[Group] | None = None,
        data: Iterable[Any] | None = None,
        loss: Loss | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Scores:
        """Independent draws, group after group."""
        generator = torch.Generator().manual_seed(seed)
        # drawn for all groups, so that a group's scores do not follow from which others are asked for
        drawn = {g.name: torch.rand(g.size, generator=generator, dtype=torch.float64) for g in graph.groups}
        return {g.name: drawn[g.name] for g in (graph.groups if groups is None else groups)}


@register
class Magnitude(Saliency):
    """The sum of squares of all parameters that go with a structure."""

    name = "magnitude"
    unit = "relative"

    def score(
        self,
        graph: Graph,
        model: nn.Module | None,
        *,
        groups: Sequence[Group] | None = None,
        data: Iterable[Any] | None = None,
        loss: Loss | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Scores:
        """One pass over the weights, a part of one parameter at a time."""
        sums = SliceSums(graph, graph.groups if groups is None else groups)
        weights = weights_of(model, sums, self.name)
        for done, (name, weight) in enumerate(weights.items(), start=1):
            rows = weight.detach()
            for start, stop in spans(len(rows), rows[0].numel()):
                sums.add(name, precise(rows[start:stop]).square(), start)
            if progress is not None:
                progress(done, len(weights))
        return sums.take()
