"""Most of a budget in a few leaps, so that half a million structures are chosen in a second.

At a threshold on the key of their steps (see :meth:`Spender.key`) every unit has given up a number of steps that a
search in its sorted scores tells, and what all save together grows with the threshold: bisection finds the one that
spends the target. Relative and standardised keys never change, so one leap lands where single steps would. Keys in
units of loss change with the cost of what neighbours left over; there the budget is spent in rounds, and costs are read
anew after each.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from shearfx.dims import Atom
    from shearfx.spending import Spender, Unit

ROUNDS = 16
BISECTIONS = 24


@dataclass
class _Runner:
    unit: Unit
    steps: list[float]
    """Score of each further step, ascending."""
    rate: int
    """What a step's score is divided by."""

    def gone(self, key: float, relative: bool) -> int:
        """Steps gone once all with keys up to this one are."""
        if relative:
            total = len(self.unit.scores) - 1
            # the i-th step has the key axes * (i + 1/2) / total
            count = math.floor(key * total / self.unit.axes + 0.5)
        else:
            count = bisect.bisect_right(self.steps, key * self.rate)
        return min(max(count, self.unit.gone), self.unit.limit)

    def last_key(self, relative: bool) -> float:
        """The key of the last step."""
        return 2 * self.unit.axes if relative else self.steps[self.unit.limit - 1] / self.rate


def leap(spender: Spender, asked: float) -> None:
    """Take most of the steps, in order; single steps do the rest. Never saves more than asked."""
    relative = spender.ranking == "relative"
    scores = [torch.tensor(unit.scores, dtype=torch.float64).diff().tolist() for unit in spender.units]
    standardised = spender.ranking == "standardised"
    rounds = 1 if relative or standardised else ROUNDS
    for i in range(1, rounds + 1):
        runners = []
        for unit, steps in zip(spender.units, scores, strict=True):
            # where steps do not all save the same, the next one stands for those of this round
            gone = spender.next(unit)
            if gone is not None:
                rate = sum(unit.per_step) if standardised else max(1, spender.saving(unit, gone))
                runners.append(_Runner(unit, steps, rate))
        if runners:
            _to(spender, runners, asked * i / rounds, relative)


def _to(spender: Spender, runners: list[_Runner], target: float, relative: bool) -> None:
    budget = spender.budget
    # what no other unit has a part in saves the same with every step, whatever the others do
    alone = [r.unit.rate if r.unit.rate is not None and not r.unit.neighbours else None for r in runners]
    together = [r for r, rate in zip(runners, alone, strict=True) if rate is None]
    products = sorted({i for r in together for i in r.unit.products})
    whole = budget.cost(products) + spender.saved

    def at(key: float) -> list[int]:
        return [r.gone(key, relative) for r in runners]

    def saved(gone: list[int]) -> int:
        sizes: dict[Atom, int] = {}
        total = whole
        for runner, rate, n in zip(runners, alone, gone, strict=True):
            if rate is None:
                sizes.update(runner.unit.sizes(n))
            else:
                total += rate * (n - runner.unit.gone)
        return total - budget.cost(products, sizes)

    low, high = 0.0, max(r.last_key(relative) for r in runners)
    if spender.ranking == "standardised":  # half of the scores are below zero
        low = min(r.steps[0] / r.rate for r in runners)
    least, most = at(low), at(high)
    if saved(most) <= target:
        least = most
    elif saved(least) > target:
        return
    for _ in range(BISECTIONS):
        if least == most:
            break
        middle = (low + high) / 2
        gone = at(middle)
        if saved(gone) <= target:
            low, least = middle, gone
        else:
            high, most = middle, gone
    for runner, n in zip(runners, least, strict=True):
        if n > runner.unit.gone:
            spender.move(runner.unit, n)
