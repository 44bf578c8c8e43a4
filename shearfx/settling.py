"""Where the original class holds every cut by itself, but not all of them together: as many as it does hold.

Bundles are found by trying small cuts (``shearfx.bundles``); only the plan as a whole shows whether the class can
express them beside each other, and so deep. What stands in the way then stays whole, and the budget is spent anew on
the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from shearfx.attributes import Solution, settle, settled, solve
from shearfx.graph import Graph, Group
from shearfx.pruning_plan import PruningPlan, of_cuts
from shearfx.selection import Tied, alike, tell_whole

__all__ = ["settle_most"]


def settle_most(
    model: nn.Module,
    graph: Graph,
    tied: Sequence[Tied],
    spent_on: Callable[[Sequence[Tied]], PruningPlan],
    refused: dict[str, list[Group]],
) -> PruningPlan:
    """The plan with its attributes solved for, over as much as the original class can express together.

    Args:
        model, graph: the model and its analysis.
        tied: what may be cut, each accepted by itself.
        spent_on: makes the plan that meets the budget with these.
        refused: groups by the reason why they stay whole; what is left out here is added.

    Raises:
        PlanError: whatever ``spent_on`` raises when too little remains; or the class cannot hold the cut, and nothing
            that it consists of is the cause.
    """
    left = list(tied)
    left_whole: dict[str, list[str]] = {}
    while True:
        plan = spent_on(left)
        solution = solve(model, graph, plan)
        if solution.ok:
            break
        search = _Search(model, graph, plan)
        cut = {cut.name for cut in plan.cuts}
        search.run([one for one in left if cut & _names(one)], solution)
        if not search.dropped:  # what was learned from the parts may help with the whole
            return settle(model, graph, plan)
        for one, reason in search.dropped:
            left.remove(one)
            refused.setdefault(reason, []).extend(one.groups)
            left_whole.setdefault(reason, []).extend(g.name for g in one.groups)
    if left_whole:
        plan = replace(plan, options={**plan.options, "left_whole": plan.options.get("left_whole", {}) | left_whole})
        tell_whole(left_whole, stacklevel=4)
    return settled(plan, solution)


@dataclass
class _Search:
    """Greedy, by halves: what saves most is kept first, so that few trials find few culprits among many.

    A trial that fails may take minutes. So where of bundles that are alike in all layers neither the first nor the last
    is accepted, none of them is tried one by one.
    """

    model: nn.Module
    graph: Graph
    plan: PruningPlan
    held: list[Tied] = field(default_factory=list)
    dropped: list[tuple[Tied, str]] = field(default_factory=list)

    def run(self, tied: Sequence[Tied], failed: Solution) -> None:
        """Sort bundles, which fail together, into held and dropped ones."""
        sets = [[one for one in tied if _names(one) <= _names(like)] for like in alike(tied)]
        sets.sort(key=lambda members: -self._cut(members).achieved)
        self._add(sets, failed)

    def _add(self, sets: Sequence[list[Tied]], failed: Solution | None = None) -> None:
        """Hold of these sets (bundles alike in all layers) what is accepted beside what is held already."""
        failed = failed or self._failure([one for members in sets for one in members])
        if failed is None:
            self.held += [one for members in sets for one in members]
        elif len(sets) > 1:
            self._add(sets[: len(sets) // 2])
            self._add(sets[len(sets) // 2 :])
        elif len(sets[0]) > 1 and any(self._failure([one]) is None for one in (sets[0][0], sets[0][-1])):
            self._add([[one] for one in sets[0]], failed)
        else:
            self.dropped += [(one, self._reason(failed)) for one in sets[0]]

    def _failure(self, more: Sequence[Tied]) -> Solution | None:
        solution = solve(self.model, self.graph, self._cut([*self.held, *more]))
        return None if solution.ok else solution

    def _cut(self, tied: Sequence[Tied]) -> PruningPlan:
        names = {name for one in tied for name in _names(one)}
        return of_cuts(self.graph, {cut.name: cut.kept for cut in self.plan.cuts if cut.name in names})

    def _reason(self, failed: Solution) -> str:
        what = "beside the other cuts" if self.held else "so deep"
        line = failed.reason.splitlines()[0] if failed.reason else ""
        return " ".join(f'the class cannot express it {what} (form="fx" can): {line} {failed.where}'.split())


def _names(tied: Tied) -> set[str]:
    return {g.name for g in tied.groups}
