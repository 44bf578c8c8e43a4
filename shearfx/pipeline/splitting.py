"""A budget split between what goes whole (layers, branches) and widths, by what each was measured to lose."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from shearfx.depth import Damages
from shearfx.pipeline.subject import Subject

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Of the budget, at which the loss without widths is measured."""
Widths = Callable[[float], float]
"""The loss without the widths that save a share of the budget."""


def widths_lose(
    subject: Subject,
    lost_by_share: Callable[[Sequence[float], Callable[[], float]], list[float]],
    loss: Callable[[], float],
) -> Widths:
    """Measure it at some shares; between those on a line.

    Args:
        subject: what widths are cut of.
        lost_by_share: cuts them; :meth:`shearfx.pipeline.pruning.Pruning.lost_by_share`.
        loss: of the working model as it is.
    """
    most = subject.chooser(subject.tied).most_possible()
    reach = min(1.0, most / subject.amount)
    shares = [share * reach for share in SHARES]
    before = loss()
    points = [(0.0, before), *zip(shares, lost_by_share(shares, loss), strict=True)]
    return lambda share: between(points, share)


def best_split(found: Damages, prices: Sequence[int], widths: Callable[[float], float], amount: int) -> Damages:
    """The number of layers with which both together lose the least, by what each loses alone; all of the layers where
    no number of them leaves a budget that widths can save.

    Args:
        found: layers in the order in which they go.
        prices: what each of them saves, in the budget's unit.
        widths: the loss without the widths that save a share of the budget.
        amount: the budget.

    >>> layers = Damages(("a", "b"), (1.0, 1.1, 1.9), (50, 50))
    >>> best_split(layers, (50, 50), lambda share: 1.0 + share, 200).paths
    ('a',)
    """
    count = len(found.paths)
    lost = [found.losses[n] + widths(1 - sum(prices[:n]) / amount) for n in range(count + 1)]
    best = count if all(map(math.isinf, lost)) else min(range(count + 1), key=lost.__getitem__)
    return Damages(found.paths[:best], found.losses[: best + 1], found.params[:best])


def between(points: Sequence[tuple[float, float]], share: float) -> float:
    """The value at a share, on the line between its neighbours; infinite beyond the last.

    Args:
        points: shares and values, by share, from zero.
        share: zero or more.

    >>> between([(0.0, 1.0), (0.5, 3.0)], 0.25)
    2.0
    >>> between([(0.0, 1.0), (0.5, 3.0)], 0.6)
    inf
    """
    for (left, low), (right, high) in itertools.pairwise(points):
        if share <= right:
            return low + (share - left) / (right - left) * (high - low)
    return math.inf
