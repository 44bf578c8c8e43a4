"""First-order Taylor: weights times gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from shearfx.errors import PlanError, message
from shearfx.gradients import Loss, batch_loss, fed, gradients
from shearfx.graph import Graph, Group
from shearfx.saliency.base import Progress, Saliency, Scores, register, weights_of
from shearfx.slices import SliceSums, precise


@register
class Taylor(Saliency):
    """First-order Taylor: ``|sum(weight * gradient)|`` over all weights of a structure, averaged over batches.

    Estimates how the loss changes when the structure is set to zero. The sign is dropped per batch, after the sum over
    the structure ("vector-wise" in LLM-Pruner).

    Source: Molchanov et al. 2019 (arXiv 1906.10771), equation 8; LLM-Pruner (Ma et al. 2023), section 3.2.
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
        count = 0

        def receive(name: str, weight: torch.Tensor, gradient: torch.Tensor) -> None:
            sums.add(name, precise(weight) * precise(gradient))

        with gradients(model, weights, receive):
            for batch in batches:
                value = (loss or batch_loss)(model, batch)
                if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.requires_grad:
                    raise PlanError(
                        message("the loss is no scalar with a gradient", todo="return a scalar from loss(...)")
                    )
                if not math.isfinite(float(value.detach())):
                    raise PlanError(
                        message(f"the loss of batch {count} is {float(value.detach())}", todo="check the data")
                    )
                value.reshape(()).backward()
                for name, signed in sums.take().items():
                    total[name] += signed.abs()
                count += 1
                if progress is not None:
                    progress(count, len(data) if hasattr(data, "__len__") else 0)  # type: ignore[arg-type]
        if count == 0:
            raise PlanError(message("the data for saliency 'taylor' has no batches", todo="pass at least one batch"))
        return {name: score / count for name, score in total.items()}
