"""Choosing what becomes redundant, a share more at a time; what was chosen stays chosen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch

from shearfx.budget import Budget, operation_budget, parameter_budget, structure_budget
from shearfx.errors import PlanError, message
from shearfx.graph import Graph
from shearfx.saliency import Scores
from shearfx.selection import Tied
from shearfx.spending import Spender, Unit
from shearfx.units import FLOOR, Floor, checked, units_of

Currency = Literal["params", "flops", "structures"]
Redundant = dict[str, list[int]]
"""Group name to the structures that are to go, ascending."""


class Chooser:
    """What a budget is spent on, step by step.

    Args:
        graph: the analysis.
        tied: what may be cut, and what only together (see ``shearfx.selection``).
        unit: what is counted.
        floor, most, round_to: as in :func:`shearfx.plan`.
    """

    def __init__(
        self,
        graph: Graph,
        tied: Sequence[Tied],
        *,
        unit: Currency = "params",
        floor: Floor = FLOOR,
        most: float = 1.0,
        round_to: int = 1,
    ) -> None:
        self.graph, self.tied, self.unit = graph, tuple(tied), unit
        self.floor, self.most, self.round_to = floor, most, round_to
        self.groups = list({g.name: g for t in tied for g in t.groups}.values())
        self.total = self._budget().total
        """Of the whole model, in ``unit``."""

    def _budget(self) -> Budget:
        if self.unit == "structures":
            return structure_budget(self.groups)
        return parameter_budget(self.graph) if self.unit == "params" else operation_budget(self.graph)

    def most_possible(self) -> int:
        """What all structures down to the floors save together."""
        zeros = {g.name: torch.zeros(g.size, dtype=torch.float64) for g in self.groups}
        spender, _ = self._spender(zeros, "relative", {})
        for unit in spender.units:
            while (gone := spender.next(unit)) is not None:
                last = max((n for n in range(gone, unit.limit + 1) if spender.fits(unit, n)), default=gone)
                spender.move(unit, last)
        return spender.saved

    def choose(
        self,
        amount: float,
        scores: Scores,
        ranking: Literal["loss", "relative"],
        gone: Mapping[str, Iterable[int]] | None = None,
    ) -> tuple[Redundant, int]:
        """What is redundant once so much is saved, and what that does save.

        Args:
            amount: to save in all, in ``unit``.
            scores: of every group's structures; those that are gone already count for nothing.
            ranking: the unit of the scores.
            gone: what was chosen before.

        Raises:
            PlanError: scores are missing or not finite.
        """
        before = {name: sorted(indices) for name, indices in (gone or {}).items() if indices}
        lowered = {}
        for name, score in checked(scores, self.groups, "given").items():
            lowered[name] = score.clone()
            if name in before:
                lowered[name][before[name]] = float(score.min()) - 1.0
        spender, units = self._spender(lowered, ranking, before)
        if spender.saved < amount:
            spender.spend(amount)
        found: Redundant = {}
        for unit in units:
            for name, kept in unit.kept().items():
                size = next(g.size for g in unit.groups if g.name == name)
                stay = set(kept)
                if len(stay) < size:
                    found[name] = [i for i in range(size) if i not in stay]
        return found, spender.saved

    def _spender(
        self, scores: Scores, ranking: Literal["loss", "relative"], gone: Mapping[str, Sequence[int]]
    ) -> tuple[Spender, list[Unit]]:
        budget = self._budget()
        units = units_of(self.graph, self.tied, scores, self.floor, self.most, budget)
        spender = Spender(budget, units, ranking, self.round_to)
        for unit in units:
            first, step = unit.groups[0], unit.per_step[0]
            steps, rest = divmod(len(gone.get(first.name, ())), step)
            if rest:
                raise PlanError(message(f"{first.name} has lost a part of what goes together with other groups"))
            if steps:
                spender.move(unit, steps)
                unit.least = steps
        return spender, units
