"""What is shut in turn: of each node group, at each ratio, the least salient structures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from shearfx.budget import parameter_budget
from shearfx.dims import Dim
from shearfx.errors import PlanError, message
from shearfx.graph import Graph, Group
from shearfx.saliency import Scores
from shearfx.selection import Tied
from shearfx.spending import unit_of
from shearfx.units import checked


@dataclass(frozen=True)
class Trial:
    """One node group at one ratio."""

    name: str
    ratio: float
    groups: tuple[Group, ...]
    gone: tuple[tuple[int, ...], ...]
    """Of each group, the structures that are shut, ascending."""
    share: float
    """Of all unique parameters of the model, what they take along."""

    @property
    def closed(self) -> dict[str, torch.Tensor]:
        """The gates: for each group float32 ``[size]``, 0 where shut."""
        values = {group.name: torch.ones(group.size) for group in self.groups}
        for group, gone in zip(self.groups, self.gone, strict=True):
            values[group.name][list(gone)] = 0
        return values

    @property
    def opened(self) -> dict[str, torch.Tensor]:
        """The gates, all open."""
        return {group.name: torch.ones(group.size) for group in self.groups}


def name_of(tied: Tied) -> str:
    """The name of a node group: that of its first group, which is in no other."""
    return tied.groups[0].name


def layer_of(tied: Tied) -> int | None:
    """The first number in the names of its groups; None where there is none, or more than one."""
    found = {match[0] if (match := re.findall(r"(?:^|\.)(\d+)(?=\.)", g.name)) else None for g in tied.groups}
    number = next(iter(found)) if len(found) == 1 else None
    return None if number is None else int(number)


def distinct(trials: Sequence[Trial]) -> list[Trial]:
    """Those that shut something that none before them does: small groups lose the same at several ratios."""
    found: dict[tuple[str, tuple[tuple[int, ...], ...]], Trial] = {}
    for trial in trials:
        found.setdefault((trial.name, trial.gone), trial)
    return list(found.values())


Shut = dict[str, list[list[list[int]]]]
"""Name of a node group to what is shut: at each ratio, of each group, ascending."""


def choose(tied: Sequence[Tied], scores: Scores, ratios: Sequence[float]) -> Shut:
    """The least salient structures of every node group at every ratio.

    Tied groups lose structures in the proportion in which they are tied, as many as come closest to the ratio, but at
    least one step, and never all.

    Args:
        tied: node groups.
        scores: of every group, ``[size]``; the least go first, of equal ones the last.
        ratios: shares of structures.

    Raises:
        PlanError: scores that do not fit, or a node group that cannot lose anything and keep something.
    """
    found: Shut = {}
    for one in tied:
        floors = dict.fromkeys((g.name for g in one.groups), 1)
        terms: dict[str, tuple[Dim, ...]] = dict.fromkeys(floors, ())
        unit = unit_of(one.groups, one.weights, floors, checked(scores, one.groups, "given"), terms)
        if unit.limit < 1:
            what = f"{name_of(one)} cannot lose a structure and keep one"
            raise PlanError(message(what, todo="leave it out of tied="))
        found[name_of(one)] = []
        for ratio in ratios:
            steps = min(max(1, int(ratio * one.groups[0].size / unit.per_step[0] + 0.5)), unit.limit)
            rows = zip(unit.orders, unit.per_step, strict=True)
            found[name_of(one)].append([sorted(order[: steps * k].tolist()) for order, k in rows])
    return found


def trials_of(graph: Graph, tied: Sequence[Tied], ratios: Sequence[float], shut: Shut) -> list[Trial]:
    """Every node group at every ratio, in the order of ``tied``."""
    budget = parameter_budget(graph)
    found = []
    for one in tied:
        products = budget.touched(g.atom for g in one.groups)
        whole = budget.cost(products)
        for ratio, gone in zip(ratios, shut[name_of(one)], strict=True):
            left = {group.atom: group.size - len(out) for group, out in zip(one.groups, gone, strict=True)}
            share = (whole - budget.cost(products, left)) / max(budget.total, 1)
            found.append(Trial(name_of(one), float(ratio), one.groups, tuple(map(tuple, gone)), share))
    return found


def check_request(tied: Sequence[Tied], ratios: Sequence[float]) -> None:
    """Raise PlanError where there is nothing to measure."""
    if not tied:
        raise PlanError(message("there is no node group to analyse", todo="pass tied=, see shearfx.selection.select"))
    names = [group.name for one in tied for group in one.groups]
    if len(set(names)) < len(names):
        raise PlanError(message("a group is in two node groups", todo="pass each once in tied="))
    if not ratios or len(set(ratios)) < len(ratios) or not all(0 < ratio < 1 for ratio in ratios):
        what = f"ratios={tuple(ratios)} are not different numbers between 0 and 1"
        raise PlanError(message(what, todo="pass (0.5,), say"))
