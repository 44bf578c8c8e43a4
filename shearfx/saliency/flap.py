"""FLAP: how much what a structure gives fluctuates, weighted by how it is read, standardised so that layers compare."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from shearfx.gating.moments import FeatureMoments
from shearfx.saliency.base import register
from shearfx.saliency.reading import Reading, by_structure


@register
class Flap(Reading):
    """The variance of a feature over the tokens of the data times ``||W[:, j]||^2``, standardised over the features of
    a group at the layer that reads it, then the mean over a structure's features, and over the layers that read them.

    What does not vary can be replaced by its mean, a bias: see :func:`shearfx.bias_compensation.compensate_bias`.
    Standardised: structures of all layers and kinds compare as they are ("AL-AM" in the paper); budgets count what they
    cost, the order does not. Needs data, one forward pass per batch, no gradients; memory for two numbers per feature.
    The authors' code also squares the metric of attention before it is standardised; the paper has no such step.

    Source: FLAP (An et al. 2023, arXiv 2312.11983), the fluctuation metric (``WIFV`` in its code) and the adaptive
    search over standardised metrics (``AL-AM``).
    """

    name = "flap"
    unit = "standardised"

    def of_features(self, seen: FeatureMoments, rows: Iterator[Tensor]) -> Tensor:
        """The variance of the feature times the squared norm of the weights that read it."""
        squares = torch.zeros_like(seen.mean)
        for some in rows:
            squares += some.square().transpose(0, 1).flatten(1).sum(1).cpu().double()
        return squares * seen.variance

    def of_structures(self, features: Tensor, where: Tensor, size: int) -> Tensor:
        """The mean over a structure's features, standardised over those of all structures."""
        own = features[where >= 0]
        spread = own.std() if len(own) > 1 else own.new_zeros(())
        standard = (features - own.mean()) / spread if spread > 0 else torch.zeros_like(features)
        counts = by_structure(torch.ones_like(features), where, size)
        return by_structure(standard, where, size) / counts.clamp(min=1)

    def together(self, scores: Tensor) -> Tensor:
        """The mean over layers, so that being read by many is no spread of its own."""
        return scores.mean(0)
