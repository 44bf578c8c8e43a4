"""From what a saliency says that structures cost to what they were measured to cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from shearfx.knowledge.distribution import KnowledgeDistribution
from shearfx.knowledge.trials import choose, name_of
from shearfx.saliency import Scores
from shearfx.selection import Tied

Calibration = Literal["none", "kinds", "groups"]
FURTHEST = 10.0
"""A node group's factor is at most so many times its kind's, and at least one such part of it: a loss on a few windows
may even fall without a node group."""


def factors(
    found: KnowledgeDistribution, tied: Sequence[Tied], scores: Scores, by: Literal["kinds", "groups"]
) -> dict[str, float]:
    """What to multiply scores with, by name of group, so that they add up to the losses that were measured.

    Args:
        found: the analysis, of these node groups and scores.
        tied: the node groups.
        scores: in units of loss.
        by: ``"kinds"`` for one factor for all node groups of a kind (the sum of what was measured over that of what
            was foretold), ``"groups"`` for one each.

    Source: beside the paper, which uses the analysis for what stays whole only (Algorithm 3).
    """
    shut = choose(tied, scores, found.ratios)
    foretold = {}
    for one in tied:
        for ratio, gone in zip(found.ratios, shut[name_of(one)], strict=True):
            rows = zip(one.groups, gone, strict=True)
            foretold[name_of(one), ratio] = sum(float(scores[group.name][out].sum()) for group, out in rows)
    every = _Sums()
    kinds: dict[str, _Sums] = {one.kind: _Sums() for one in tied}
    groups: dict[str, _Sums] = {name_of(one): _Sums() for one in tied}
    for row in found.rows:
        for sums in (every, kinds[row.kind], groups[row.name]):
            sums.measured += row.loss - found.loss
            sums.foretold += foretold[row.name, row.ratio]
    whole = max(every.factor(1.0), 1e-30)
    result: dict[str, float] = {}
    for one in tied:
        factor = _near(kinds[one.kind].factor(whole), whole)
        if by == "groups":
            factor = _near(groups[name_of(one)].factor(factor), factor)
        result |= {group.name: factor for group in one.groups}
    return result


@dataclass
class _Sums:
    measured: float = 0.0
    foretold: float = 0.0

    def factor(self, otherwise: float) -> float:
        """Measured over foretold; where that cannot be told, as ``otherwise``."""
        return self.measured / self.foretold if self.foretold > 0 else otherwise


def _near(factor: float, to: float) -> float:
    return min(max(factor, to / FURTHEST), to * FURTHEST)
