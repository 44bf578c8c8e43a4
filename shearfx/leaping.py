"""Most of a budget in a few leaps, so that half a million structures are chosen in a second.

At a threshold on the key of their steps (see :meth:`Spender.key`) every unit has given up a number of steps that a
search in its sorted scores tells, and what all save together grows with the threshold: bisection finds the one that
spends the target. Relative keys never change, so one leap lands where single steps would. Keys in units of loss change
with the cost of what neighbours left over; there the budget is spent in rounds, and costs are read anew after each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from shearfx.spending import Spender, Unit

ROUNDS = 16
BISECTIONS = 24


@dataclass
class _Runner:
    unit: Unit
    steps: torch.Tensor
    """Score of each further step, ascending."""
    rate: int

    def gone(self, key: float, relative: bool) -> int:
        """Steps gone once all with keys up to this one are."""
        if relative:
            total = len(self.unit.scores) - 1
            # the i-th step has the key axes * (i + 1/2) / total
            count = math.floor(key * total / self.unit.axes + 0.5)
        else:
            count = int(torch.searchsorted(self.steps, key * self.rate, right=True))
        return min(max(count, self.unit.gone), self.unit.limit)

    def last_key(self, relative: bool) -> float:
        """The key of the last step."""
        return 2 * self.unit.axes if relative else float(self.steps[self.unit.limit - 1]) / self.rate


def leap(spender: Spender, asked: float) -> None:
    """Take most of the steps, in order; single steps do the rest. Never saves more than asked."""
    relative = spender.ranking == "relative"
    scores = [torch.tensor(unit.scores, dtype=torch.float64).diff() for unit in spender.units]
    products = sorted({i for unit in spender.units for i in unit.products})
    rounds = 1 if relative else ROUNDS
    for i in range(1, rounds + 1):
        runners = []
        for unit, steps in zip(spender.units, scores, strict=True):
            # where steps do not all save the same, the next one stands for those of this round
            gone = spender.next(unit)
            if gone is not None:
                runners.append(_Runner(unit, steps, max(1, spender.saving(unit, gone))))
        if runners:
            _to(spender, runners, products, asked * i / rounds, relative)


def _to(spender: Spender, runners: list[_Runner], products: list[int], target: float, relative: bool) -> None:
    budget = spender.budget
    whole = budget.cost(products) + spender.saved

    def saved(key: float) -> int:
        sizes = {a: n for r in runners for a, n in r.unit.sizes(r.gone(key, relative)).items()}
        return whole - budget.cost(products, sizes)

    low, high = 0.0, max(r.last_key(relative) for r in runners)
    if saved(high) <= target:
        low = high
    elif saved(low) > target:
        return
    else:
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if saved(middle) <= target else (low, middle)
    for runner, gone in [(r, r.gone(low, relative)) for r in runners]:
        if gone > runner.unit.gone:
            spender.move(runner.unit, gone)
