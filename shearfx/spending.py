"""Spending a budget: which units give up how many structures so that the asked amount is saved.

Greedy by saliency per unit of cost, costs read off the terms at the sizes of the moment. As a step only ever becomes
dearer to take per cost saved (scores ascend, what it saves shrinks with its neighbours), entries of the queue that are
out of date are refreshed when they come up ("lazy greedy").
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from shearfx.budget import Budget, degree
from shearfx.config_values import RoundTo
from shearfx.dims import Atom, Dim, leaves
from shearfx.graph import Group, new_size
from shearfx.leaping import leap
from shearfx.multiples import aligned

Ranking = Literal["loss", "relative", "standardised"]
"""What scores are: a change of the loss, an order within each group, or comparable whatever a structure costs."""

EXCHANGES = 16
"""How many dear steps are tried against cheap ones given back, where the cheap ones ran out."""


@dataclass
class Unit:
    """Groups that are cut together, ``per_step[i]`` structures of ``groups[i]`` at a time.

    ``limit`` is how many steps the floors allow, ``terms`` are the dims of parameters that change with it.
    """

    groups: tuple[Group, ...]
    per_step: tuple[int, ...]
    limit: int
    terms: tuple[Dim, ...]
    orders: tuple[torch.Tensor, ...]
    """For each group its structures, least salient first."""
    scores: list[float]
    """Sum of the scores of the first ``i`` steps, for every ``i``."""
    gone: int = 0
    least: int = 0
    """Steps that are never given back."""
    kernel: int = 1
    """What kernels of the model's class want dims that change with it to be multiples of."""
    multiple: int = 1
    """What dims that change with it have to be multiples of."""
    products: list[int] = field(default_factory=list)
    neighbours: list[int] = field(default_factory=list)
    axes: float = 1.0
    """How many units, on average over the cost of its products, cut the same tensors."""
    fresh: bool = False
    """Whether what follows is up to date."""
    now: int = 0
    """Cost of its products at the moment."""
    proportional: bool = False
    """Whether all steps save the same while nothing else changes."""
    whole: int = 0
    """Cost of its products before anything was cut."""
    rate: int | None = None
    """What each step saves, where all steps save the same."""
    lines: list[tuple[int, int, int]] = field(default_factory=list)
    """For each dim: size with no step taken, change per step, size before anything was cut."""

    def sizes(self, gone: int) -> dict[Atom, int]:
        """Sizes of the unit's atoms after so many steps."""
        return {g.atom: g.size - gone * k for g, k in zip(self.groups, self.per_step, strict=True)}

    def kept(self) -> dict[str, list[int]]:
        """What stays of each group."""
        rows = zip(self.groups, self.per_step, self.orders, strict=True)
        return {g.name: sorted(order[self.gone * k :].tolist()) for g, k, order in rows}


def unit_of(
    groups: Iterable[Group],
    weights: Iterable[int],
    floors: Mapping[str, int],
    scores: Mapping[str, torch.Tensor],
    terms: Mapping[str, tuple[Dim, ...]],
) -> Unit:
    """Tie groups: from each as many structures go that structures times weight are equal.

    Args:
        groups, weights: what is tied.
        floors: group name to how many structures have to stay.
        scores: group name to the saliency of its structures.
        terms: group name to the dims of parameters that mention it.
    """
    groups, weights = tuple(groups), tuple(weights)
    stride = math.lcm(*weights)
    per_step = tuple(stride // w for w in weights)
    orders = tuple(_ascending(scores[g.name]) for g in groups)
    steps = min(g.size // k for g, k in zip(groups, per_step, strict=True))
    total = torch.zeros(steps, dtype=torch.float64)
    for group, k, order in zip(groups, per_step, orders, strict=True):
        total += scores[group.name][order[: steps * k]].reshape(steps, k).sum(1)
    limit = min((g.size - floors[g.name]) // k for g, k in zip(groups, per_step, strict=True))
    mentioned = tuple(dict.fromkeys(term for g in groups for term in terms[g.name]))
    return Unit(groups, per_step, max(0, limit), mentioned, orders, [0.0, *torch.cumsum(total, 0).tolist()])


def _ascending(scores: torch.Tensor) -> torch.Tensor:
    # of equal ones the last go first, so that what stays is one run wherever scores do not care
    return len(scores) - 1 - torch.argsort(scores.flip(0), stable=True)


class Spender:
    """Takes steps of units from a model until a budget is spent."""

    def __init__(self, budget: Budget, units: list[Unit], ranking: Ranking, round_to: RoundTo = 1) -> None:
        self.budget, self.units, self.ranking = budget, units, ranking
        self.saved = 0
        of: dict[Atom, list[int]] = {}
        for i, unit in enumerate(units):
            unit.multiple = math.lcm(unit.kernel, self._aligned(unit) if round_to == "auto" else round_to)
            atoms = [g.atom for g in unit.groups]
            unit.products = budget.touched(atoms)
            unit.whole = budget.cost(unit.products)
            unit.now = unit.whole
            unit.proportional = budget.degree(unit.products, set(atoms)) <= 1
            related = {a for p in unit.products for d in budget.products[p].dims for a in leaves(d)}
            for atom in related.union(*(set(leaves(t)) for t in unit.terms), atoms):
                of.setdefault(atom, []).append(i)
        for i, unit in enumerate(units):
            near = {j for g in unit.groups for j in of[g.atom]}
            unit.neighbours = sorted(near - {i})
        self._count_axes()

    def _aligned(self, unit: Unit) -> int:
        """What suits all dims that change with a unit."""
        atoms = {g.atom for g in unit.groups}
        lines = [self._line(unit, term) for term in unit.terms if degree(term, atoms) <= 1]
        return min((aligned(whole, abs(slope)) for _, slope, whole in lines if slope), default=1)

    def _count_axes(self) -> None:
        counts: dict[int, int] = {}
        for unit in self.units:
            for i in unit.products:
                counts[i] = counts.get(i, 0) + 1
        for unit in self.units:
            weighted = sum(counts[i] * self.budget.cost((i,)) for i in unit.products)
            unit.axes = weighted / max(unit.whole, 1)

    @property
    def rounding(self) -> bool:
        """Whether some dims may not become whatever they would."""
        return any(unit.multiple > 1 for unit in self.units)

    # -- one step --------------------------------------------------------------------------------------

    def refresh(self, unit: Unit) -> None:
        """Bring what a unit remembers of costs and sizes up to date after its neighbours changed."""
        if unit.fresh:
            return
        atoms = {g.atom for g in unit.groups}
        budget = self.budget
        unit.rate = None
        if unit.proportional:
            none = budget.cost(unit.products, unit.sizes(0))
            unit.rate = none - budget.cost(unit.products, unit.sizes(1))
            unit.now = none - unit.rate * unit.gone
        else:
            unit.now = budget.cost(unit.products)
        unit.lines = []
        if unit.multiple > 1:
            unit.lines = list(dict.fromkeys(self._line(unit, t) for t in unit.terms if degree(t, atoms) <= 1))
        unit.fresh = True

    def _line(self, unit: Unit, term: Dim) -> tuple[int, int, int]:
        none, one = (new_size(term, self.budget.sizes | unit.sizes(gone)) for gone in (0, 1))
        return int(none), int(one - none), int(term.size)

    def fits(self, unit: Unit, gone: int) -> bool:
        """Whether after so many steps every dim that changed is a multiple of what it has to be."""
        multiple = unit.multiple
        for start, slope, whole in unit.lines:
            size = start + slope * gone
            if size % multiple and size != whole:
                return False
        if multiple > 1:
            atoms = {g.atom for g in unit.groups}
            sizes = self.budget.sizes | unit.sizes(gone)
            for term in unit.terms:
                if degree(term, atoms) > 1 and new_size(term, sizes) % multiple:
                    return False
        return True

    def next(self, unit: Unit) -> int | None:
        """How many steps are gone after the next legal step, None where there is none."""
        if unit.multiple == 1:
            return unit.gone + 1 if unit.gone < unit.limit else None
        self.refresh(unit)
        return next((n for n in range(unit.gone + 1, unit.limit + 1) if self.fits(unit, n)), None)

    def previous(self, unit: Unit) -> int | None:
        """The reverse of :meth:`next`."""
        self.refresh(unit)
        return next((n for n in range(unit.gone - 1, unit.least - 1, -1) if self.fits(unit, n)), None)

    def saving(self, unit: Unit, gone: int) -> int:
        """What going on to so many steps saves; negative on the way back."""
        self.refresh(unit)
        if unit.rate is not None:
            return unit.rate * (gone - unit.gone)
        return unit.now - self.budget.cost(unit.products, unit.sizes(gone))

    def move(self, unit: Unit, gone: int) -> None:
        """Take or give back steps."""
        saving = self.saving(unit, gone)
        self.budget.sizes.update(unit.sizes(gone))
        unit.gone = gone
        unit.now -= saving
        self.saved += saving
        for i in unit.neighbours:
            self.units[i].fresh = False

    def key(self, unit: Unit, gone: int) -> float:
        """What is taken first: the least loss per cost saved; the least mean of standardised scores; the lowest rank.

        Relative scores say nothing across groups, so all groups give up an equal share of their structures; where
        several cut the same tensors (heads and query groups), they share it, so that all tensors shrink alike.
        """
        if self.ranking == "relative":
            return unit.axes * (unit.gone + gone) / 2 / (len(unit.scores) - 1)
        standard = self.ranking == "standardised"
        cost = (gone - unit.gone) * sum(unit.per_step) if standard else max(self.saving(unit, gone), 1)
        return (unit.scores[gone] - unit.scores[unit.gone]) / cost

    # -- all steps -------------------------------------------------------------------------------------

    def spend(self, asked: float) -> None:
        """Save as much as is asked for, to within half of the cheapest step that is left; or all there is."""
        if not self.rounding:
            leap(self, asked)
        while self._fill(asked + 1e-9 * self.budget.total):
            pass  # cuts make the steps of neighbours cheaper, so that some that were too dear may fit now
        self._round(asked)
        self._exchange(asked)

    def _fill(self, asked: float) -> bool:
        """Take steps in order while they fit; returns whether any did."""
        heap: list[tuple[float, int, int]] = []
        moved = False

        def push(i: int) -> None:
            unit = self.units[i]
            self.refresh(unit)
            gone = self.next(unit)
            if gone is not None:
                heapq.heappush(heap, (self.key(unit, gone), i, gone))

        for i in range(len(self.units)):
            push(i)
        while heap:
            _, i, gone = heapq.heappop(heap)
            unit = self.units[i]
            if not unit.fresh:
                push(i)
            elif self.saved + self.saving(unit, gone) <= asked:
                self.move(unit, gone)
                moved = True
                push(i)
        return moved

    def open(self) -> list[tuple[Unit, int]]:
        """Units that can take a further step that saves something, with the number of steps after it."""
        found = ((unit, self.next(unit)) for unit in self.units)
        return [(unit, gone) for unit, gone in found if gone is not None and self.saving(unit, gone) > 0]

    def _round(self, asked: float) -> None:
        """One step too many where that is closer."""
        steps = self.open()
        if steps:
            unit, gone = min(steps, key=lambda s: self.saving(*s))
            missing = asked - self.saved
            if self.saving(unit, gone) - missing < missing:
                self.move(unit, gone)

    def cheapest(self) -> int:
        """The smallest step that can be taken or given back."""
        steps = [self.saving(*s) for s in self.open()]
        back = ((unit, self.previous(unit)) for unit in self.units if unit.gone)
        steps += [-self.saving(unit, gone) for unit, gone in back if gone is not None]
        return min((s for s in steps if s > 0), default=0)

    def _exchange(self, asked: float) -> None:
        """Where the units with cheap steps are used up: take a dear step and give cheap ones back for it."""
        self._give_back(self.saved - asked)
        for unit, _ in sorted(self.open(), key=lambda s: self.key(*s))[:EXCHANGES]:
            missing = abs(asked - self.saved)
            gone = self.next(unit)
            if missing <= self.cheapest():
                return
            if gone is None:
                continue
            before = [(u, u.gone) for u in self.units]
            self.move(unit, gone)
            self._give_back(self.saved - asked, but=unit)
            self._give_back(self.saved - asked)
            if abs(asked - self.saved) >= missing:
                for u, steps in before:
                    if u.gone != steps:
                        self.move(u, steps)

    def _give_back(self, amount: float, but: Unit | None = None) -> None:
        """Give back steps, the largest first, that together save no more than an amount."""
        while True:
            back = [(u, g) for u in self.units if u is not but and (g := self.previous(u)) is not None]
            steps = [(u, g) for u, g in back if 0 < -self.saving(u, g) <= amount]
            if not steps:
                return
            unit, gone = max(steps, key=lambda s: -self.saving(*s))
            amount += self.saving(unit, gone)
            self.move(unit, gone)
