"""First-order Taylor: weights times gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from shearfx.gradients import Loss, backward_each, fed, gradients
from shearfx.graph import Graph, Group
from shearfx.saliency.base import Progress, Saliency, Scores, register, weights_of
from shearfx.slices import SliceSums, precise


@register
class Taylor(Saliency):
    """First-order Taylor: ``|sum(weight * gradient)|`` over all weights of a structure, averaged over batches.

    Estimates how the loss changes when the structure is set to zero. The sign is dropped per batch, after the sum over
    the structure; LLM-Pruner drops it per layer, after the mean over batches (:mod:`shearfx.saliency.llm_pruner`).

    Source: Molchanov et al. 2019 (arXiv 1906.10771), equation 8.
    """

    name = "taylor"
    unit = "loss"

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
        """One forward and backward pass per batch, in evaluation mode; a gradient is used and dropped as it comes."""
        sums = SliceSums(graph, graph.groups if groups is None else groups)
        weights = weights_of(model, sums, self.name)
        batches = fed(data, self.name)
        assert model is not None
        total: Scores = {name: torch.zeros_like(s) for name, s in sums.sums.items()}

        def receive(name: str, weight: torch.Tensor, gradient: torch.Tensor) -> None:
            sums.add(name, precise(weight) * precise(gradient))

        count = 0
        with gradients(model, weights, receive):
            for count in backward_each(model, batches, loss, self.name, progress):  # noqa: B007
                for name, signed in sums.take().items():
                    total[name] += signed.abs()
        return {name: score / count for name, score in total.items()}
