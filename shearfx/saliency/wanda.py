"""Wanda for structures: sizes of weights times sizes of what they read."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from shearfx.gating.moments import FeatureMoments
from shearfx.saliency.base import register
from shearfx.saliency.reading import Reading


@register
class WandaSp(Reading):
    """``sum of |W_ij| ||x_j||`` over the weights by which a structure's features ``j`` are read, ``||x_j||`` being the
    norm of the feature over all tokens of the data.

    Relative: it orders the structures of a group. (FLAP's code takes the mean over rows, which is the same order.)
    Needs data, one forward pass per batch, no gradients; memory for two numbers per feature.

    Source: Wanda (Sun et al. 2023, arXiv 2306.11695), equation 1, summed over structures as "Wanda-sp" of FLAP (An et
    al. 2023, arXiv 2312.11983, ``prune_wanda_sp`` in its code).
    """

    name = "wanda_sp"
    unit = "relative"

    def of_features(self, seen: FeatureMoments, rows: Iterator[Tensor]) -> Tensor:
        """The sum of absolute weights times the norm of the feature."""
        sizes = torch.zeros_like(seen.mean)
        for some in rows:
            sizes += some.abs().transpose(0, 1).flatten(1).sum(1).cpu().double()
        return sizes * seen.squares.sqrt()
