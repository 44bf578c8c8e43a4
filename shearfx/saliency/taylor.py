"""First-order Taylor: weights times gradients."""

from __future__ import annotations

import torch

from shearfx.gradients import backward_each, gradients
from shearfx.saliency.base import Saliency, Scores, register
from shearfx.saliency.evidence import Evidence
from shearfx.slices import precise


@register
class Taylor(Saliency):
    """First-order Taylor: ``|sum(weight * gradient)|`` over all weights of a structure, averaged over batches.

    Estimates how the loss changes when the structure is set to zero. The sign is dropped per batch, after the sum over
    the structure; LLM-Pruner drops it per layer, after the mean over batches (:mod:`shearfx.saliency.llm_pruner`).

    Source: Molchanov et al. 2019 (arXiv 1906.10771), equation 8.
    """

    name = "taylor"
    unit = "loss"

    def scores(self, given: Evidence) -> Scores:
        """One forward and backward pass per batch, in evaluation mode; a gradient is used and dropped as it comes."""
        sums = given.sums()
        weights, batches = given.weights(sums), given.batches
        total: Scores = {name: torch.zeros_like(s) for name, s in sums.sums.items()}

        def receive(name: str, weight: torch.Tensor, gradient: torch.Tensor) -> None:
            sums.add(name, precise(weight) * precise(gradient))

        count = 0
        with gradients(given.model, weights, receive):
            for count in backward_each(given.model, batches, given.loss, self.name, given.progress):  # noqa: B007
                for name, signed in sums.take().items():
                    total[name] += signed.abs()
        return {name: score / count for name, score in total.items()}
