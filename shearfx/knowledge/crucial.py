"""Which node groups are crucial: a share chosen by the deviations themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

SPREADS = 3.0
"""Robust standard deviations above which something is unlike its like: the usual bound for outliers."""
ROBUST = 1.4826
"""From the median absolute deviation to the standard deviation, of a normal distribution."""
FACTOR = 2.0
"""And so many times what its like costs, at least, however little they differ."""
NEGLIGIBLE = 0.01
"""Of the usual cost, below which differences are noise."""
LIKE = 3
"""Node groups of a kind, at least, for one of them to be unlike the others."""


def unlike_their_like(standings: Sequence[tuple[str, str, float, float]]) -> frozenset[str]:
    """Names of the node groups whose loss costs far more, parameter by parameter, than that of their like.

    For each node group: the logarithm of deviation per parameter shut, less the median of its kind. Unprunable are
    those that exceed three robust standard deviations (1.4826 times the median absolute value, over all kinds), and
    twice the cost of their kind's median; and that exceed three robust standard deviations of their kind without
    logarithms too, which only tells where deviations are little more than noise around zero.

    Why so. Per parameter, because a pruner is asked for parameters: a large group that costs much may still be the
    cheapest way to save them. In logarithms, because deviations span orders of magnitude; so neither the unit of
    deviation nor the ratio matters. By kind, because kinds differ as such (a head costs more than a row of an ffn),
    which saliency per cost weighs already; what the analysis adds is where in the model knowledge sits, and the
    paper's finding is about that (the first and last layers). Robust, because what is looked for must not move the
    bound. As medians split kinds in halves, it is never more than half of them, and none where all are alike.

    Args:
        standings: name, kind, share of parameters shut and deviation of each (which may be negative, or inf).
    """
    per_parameter = [min(d, 1e9) / max(share, 1e-30) for _, _, share, d in standings]
    positive = [value for value in per_parameter if value > 0]
    if not positive:
        return frozenset()
    least = NEGLIGIBLE * median(positive)
    kinds: dict[str, list[tuple[str, float]]] = {}
    for (name, kind, _, _), value in zip(standings, per_parameter, strict=True):
        kinds.setdefault(kind, []).append((name, value))
    above: list[tuple[str, float, bool]] = []
    for members in kinds.values():
        if len(members) >= LIKE:
            far = _far([value for _, value in members])
            logarithms = [math.log(max(value, least)) for _, value in members]
            middle = median(logarithms)
            rows = zip(members, logarithms, far, strict=True)
            above += [(name, logarithm - middle, out) for (name, _), logarithm, out in rows]
    if not above:
        return frozenset()
    bound = max(SPREADS * ROBUST * median(abs(value) for _, value, _ in above), math.log(FACTOR))
    return frozenset(name for name, value, far in above if far and value > bound)


def _far(values: list[float]) -> list[bool]:
    """Which exceed their median by more than three robust standard deviations."""
    middle = median(values)
    bound = SPREADS * ROBUST * median(abs(value - middle) for value in values)
    return [value - middle > bound for value in values]
