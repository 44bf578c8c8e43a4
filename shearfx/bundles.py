"""Which groups the original class can express, alone or only together with others.

Found by trying: one small cut for each kind of group, in one layer of each kind, on a copy of the model without
weights and with few layers (``shearfx.shallow``); what holds there is taken for all layers alike, and verified for
every final plan by the acceptance.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx, nn

from shearfx.attributes import Solution, solve_shallow
from shearfx.graph import Graph, Group
from shearfx.memory import memory_of
from shearfx.pruning_plan import of_cuts
from shearfx.shallow import alike

MAX_TOGETHER = 3
"""Kinds of groups that are tried together."""


@dataclass(frozen=True)
class Bundle:
    """Groups that are cut together: from each as many structures that structures times weight are equal.

    ``weights`` say how many indices of the tied dim a structure stands for: one of a rotary half stands for two of
    the head dim, one of a value dim for one.
    """

    groups: tuple[Group, ...]
    weights: tuple[int, ...]
    reason: str = ""
    """Why the original class cannot express it, with the line of code; empty where it can."""
    where: str = ""

    @property
    def expressible(self) -> bool:
        """Whether the original class can hold this cut."""
        return not self.reason


_BUNDLES: weakref.WeakKeyDictionary[fx.Graph, list[Bundle]] = weakref.WeakKeyDictionary()


def bundles(graph: Graph, model: nn.Module) -> list[Bundle]:
    """Every group that could be cut, in bundles that the original class can express or with the reason why not.

    Args:
        graph: the analysis.
        model: the model; no weight is read.
    """
    key = graph.traced.graph
    if key not in _BUNDLES:
        _BUNDLES[key] = _Prober(graph, model).run()
    return _BUNDLES[key]


_UNTIED = Solution(ok=False, reason="it cannot be tied to its like in other layers")


class _Prober:
    def __init__(self, graph: Graph, model: nn.Module) -> None:
        self.graph = graph
        self.memory = memory_of(model, graph)
        self.groups = [g for g in graph.groups if g.size > 1]

    def run(self) -> list[Bundle]:
        if self.memory.usable:
            return [Bundle((g,), (1,), self.memory.usable) for g in self.groups]
        probed = self.memory.graph
        likes: dict[str, list[Group]] = {}
        for group in probed.groups:
            if group.size > 1:
                likes.setdefault(_like(group), []).append(group)
        found, refused = self._probe(likes, probing=False)
        if not self._at_once(found).ok:  # some other call goes wrong for some of them: find out for which
            found, refused = self._probe(likes, probing=True)
        result = [bundle for one in found for bundle in self._everywhere(one)]
        bundled = {g.name for bundle in result for g in bundle.groups}
        for group in self.groups:
            if group.name not in bundled:
                solution = refused.get(_like(group), _UNTIED)
                result.append(Bundle((group,), (1,), solution.reason or "refused", solution.where))
        return result

    def _probe(self, likes: dict[str, list[Group]], probing: bool) -> tuple[list[list[Group]], dict[str, Solution]]:
        """Sets of groups of the probed model that can be cut, one set for all that are alike; what cannot, and why."""
        alone = {like: self._try([groups[0]], probing) for like, groups in likes.items()}
        found = [[likes[like][0]] for like, solution in alone.items() if solution.ok]
        left = {like: groups for like, groups in likes.items() if not alone[like].ok}
        for together in self._together(left):
            if all(_like(g) in left for g in together) and self._try(together, probing).ok:
                found.append(together)
                for group in together:
                    left.pop(_like(group), None)
        return found, {like: alone[like] for like in left}

    def _at_once(self, found: list[list[Group]]) -> Solution:
        kept = {g.name: stay for together in found for g, stay in self._step(together)}
        return solve_shallow(self.memory, of_cuts(self.memory.graph, kept)) if kept else Solution()

    def _step(self, groups: Sequence[Group]) -> list[tuple[Group, range]]:
        """What stays after one step for groups that are cut together; empty where one of them is too small."""
        weights = [self.weight(g) for g in groups] if len(groups) > 1 else [1]
        counts = [math.lcm(*weights) // weight for weight in weights]
        rows = list(zip(groups, counts, strict=True))
        return [] if any(g.size <= n for g, n in rows) else [(g, range(g.size - n)) for g, n in rows]

    def _try(self, groups: Sequence[Group], probing: bool) -> Solution:
        step = self._step(groups)
        if not step:
            return Solution(ok=False, reason="too small to be cut in equal steps")
        plan = of_cuts(self.memory.graph, {g.name: stay for g, stay in step})
        return solve_shallow(self.memory, plan, probing)

    def _together(self, left: dict[str, list[Group]]) -> list[list[Group]]:
        """Sets of groups that meet in a module: from different kinds, smallest sets first, those of one layer first."""
        groups = [g for found in left.values() for g in found]
        sets: list[list[Group]] = []
        for group in groups:
            near = [g for g in groups if g is not group and set(g.modules) & set(group.modules)]
            for count in range(1, MAX_TOGETHER):
                for others in itertools.combinations(near, count):
                    if len({_like(g) for g in (group, *others)}) == count + 1:
                        sets.append([group, *others])
            if len(near) >= 2:
                sets.append([group, *near])  # a table that layers share ties all of them
        unique = {frozenset(g.name for g in s): s for s in sets}
        return sorted(unique.values(), key=len)

    def weight(self, group: Group) -> int:
        """How often a structure occurs along the dim that an operator takes for the group's kind."""
        counts = [
            self._terms(dim).count(group.atom)
            for record in self.memory.graph.records.values()
            for role, dim in record.roles
            if role in ("head_dim", "value_dim")
        ]
        return max([*counts, 1])

    def _terms(self, dim: object) -> list[object]:
        return list(self.memory.graph.solver.atoms(dim))  # type: ignore[arg-type]

    def _everywhere(self, together: Sequence[Group]) -> list[Bundle]:
        """The bundles of the whole model that are like one of the probed model."""
        weights = {_like(g): self.weight(g) for g in together}
        members = [g for g in self.groups if _like(g) in weights]
        if len(together) == 1:
            return [Bundle((g,), (1,)) for g in members]
        found: list[Bundle] = []
        rest = list(members)
        while rest:
            # Closed under meeting in a module, so that a shared table brings all the layers that read it.
            bundle = [rest.pop(0)]
            modules = set(bundle[0].modules)
            grown = True
            while grown:
                grown = False
                for other in list(rest):
                    if modules & set(other.modules):
                        bundle.append(other)
                        modules |= set(other.modules)
                        rest.remove(other)
                        grown = True
            if {_like(g) for g in bundle} == weights.keys():
                found.append(Bundle(tuple(bundle), tuple(weights[_like(g)] for g in bundle)))
        return found


def _like(group: Group) -> str:
    return f"{alike(group.name)} {group.kind} {group.size}"
