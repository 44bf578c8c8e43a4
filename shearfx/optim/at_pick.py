"""How salient what is picked is beside what stays: a few numbers of a choice, for whoever looks at the run later.

Source: LoRAShear, Algorithm 4, line 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from shearfx.graph import Group
from shearfx.optim.choosing import Redundant
from shearfx.saliency import Scores

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Least, quartiles, largest."""

Quantiles = dict[str, dict[str, list[float]]]
"""By kind: of ``picked`` and of ``stays``, the saliency at each of ``QUANTILES``; what is empty is left out."""


def saliency_at_pick(groups: Iterable[Group], scores: Scores, new: Redundant, before: Redundant) -> Quantiles:
    """Quantiles of the saliency of what a choice picks and of what it leaves, structure by structure.

    Args:
        groups: what could be chosen from.
        scores: ``[size]`` of every group, those the choice went by.
        new: what it picked, by group.
        before: what was gone already, which counts nowhere.
    """
    picked: dict[str, list[torch.Tensor]] = {}
    stays: dict[str, list[torch.Tensor]] = {}
    for group in groups:
        score = scores[group.name].detach().double().cpu().flatten()
        mine = torch.zeros(group.size, dtype=torch.bool)
        mine[list(new.get(group.name, ()))] = True
        left = ~mine
        left[list(before.get(group.name, ()))] = False
        picked.setdefault(group.kind, []).append(score[mine])
        stays.setdefault(group.kind, []).append(score[left])
    return {
        kind: {what: _quantiles(found) for what, of in (("picked", picked), ("stays", stays))
               if len(found := torch.cat(of[kind]))}
        for kind in picked
    }  # fmt: skip


def _quantiles(values: torch.Tensor) -> list[float]:
    """Those of the nearest ranks: ``torch.quantile`` refuses more than 16 million values."""
    ordered = values.sort().values
    places: Mapping[float, int] = {q: round(q * (len(ordered) - 1)) for q in QUANTILES}
    return [float(ordered[places[q]]) for q in QUANTILES]
