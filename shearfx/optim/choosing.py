"""Choosing what becomes redundant, a share more at a time; what was chosen stays chosen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from shearfx.budget import Budget, budget_of
from shearfx.config_values import RoundTo
from shearfx.errors import PlanError, message
from shearfx.graph import Graph
from shearfx.running_time import Currency, RunningTime, amount_text
from shearfx.saliency import Scores
from shearfx.selection import Selection, Tied, select
from shearfx.spending import Ranking, Spender, Unit
from shearfx.units import FLOOR, Floor, checked, units_of

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
        unit: Currency | RunningTime = "params",
        floor: Floor = FLOOR,
        most: float = 1.0,
        round_to: RoundTo = 1,
    ) -> None:
        self.graph, self.tied, self.unit = graph, tuple(tied), unit
        self.floor, self.most, self.round_to = floor, most, round_to
        self.groups = list({g.name: g for t in tied for g in t.groups}.values())
        self.total = self._budget().total
        """Of the whole model, in ``unit``."""

    def _budget(self) -> Budget:
        return budget_of(self.graph, self.unit, self.groups)

    def amount_of(self, target: int | float) -> float:
        """A share (float) or an amount (int) as an amount, which for structures is whole.

        Raises:
            PlanError: it is more than the floors let go.
        """
        amount = target * self.total if isinstance(target, float) else float(target)
        if self.unit == "structures":
            amount = float(round(amount))
        most = self.most_possible() if amount else 0
        if amount > most:
            asked = f"a target of {target:g} asks for {amount_text(amount, self.unit)}"
            share = int(1e4 * most / max(self.total, 1)) / 1e4
            todo = f"ask for at most {share:g}, or a smaller floor, or more kinds"
            what = f"{asked}, and at most {amount_text(most, self.unit)} of {amount_text(self.total, self.unit)} can go"
            raise PlanError(message(what, where=f"{len(self.groups)} groups down to their floors", todo=todo))
        return amount

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
        ranking: Ranking,
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
                # below all others, by no more than what scores differ by: sums of them stay as precise as they were
                low, high = float(score.min()), float(score.max())
                lowered[name][before[name]] = low - ((high - low) or abs(low) or 1.0)
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
        self, scores: Scores, ranking: Ranking, gone: Mapping[str, Sequence[int]]
    ) -> tuple[Spender, list[Unit]]:
        budget = self._budget()
        units = units_of(self.graph, self.tied, scores, self.floor, self.most, budget, gone)
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


def gathered(picks: Iterable[Redundant]) -> Redundant:
    """What was chosen one after the other, together.

    >>> gathered([{"a": [3], "b": [0]}, {"a": [1, 2]}])
    {'a': [1, 2, 3], 'b': [0]}
    """
    found: Redundant = {}
    for pick in picks:
        for name, gone in pick.items():
            found[name] = sorted({*found.get(name, ()), *gone})
    return found


def selected(graph: Graph, model: nn.Module, wanted: Selection) -> list[Tied]:
    """What may become redundant.

    Raises:
        PlanError: nothing may.
    """
    tied, refused = select(graph, model, wanted)
    if not tied:
        reasons = "; ".join(refused) or "the graph has no groups"
        raise PlanError(message("nothing can become redundant", where=reasons, todo="see graph.pins"))
    return tied
