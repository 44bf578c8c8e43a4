"""From groups that are tied together to units of spending: scores checked, floors counted."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch

from shearfx.budget import Budget
from shearfx.dims import Atom, Dim
from shearfx.errors import PlanError, message
from shearfx.graph import Graph, Group
from shearfx.routed_products import KERNEL_MULTIPLE
from shearfx.saliency import Scores
from shearfx.selection import Tied
from shearfx.spending import Spender, Unit, unit_of

Floor = float | int | Mapping[str, float | int]

FLOOR = 0.1
"""The share of every group that stays by default."""


def checked(scores: Scores, groups: Sequence[Group], what: str) -> Scores:
    """The scores of some groups on the CPU in float64.

    Raises:
        PlanError: some are missing, of another shape, or not finite.
    """
    result = {}
    for group in groups:
        score = scores.get(group.name)
        if score is None or tuple(score.shape) != (group.size,):
            shape = None if score is None else tuple(score.shape)
            raise PlanError(message(f"saliency {what!r} scores {group.name} as {shape}, not as ({group.size},)"))
        if not bool(torch.isfinite(score).all()):
            raise PlanError(
                message(f"saliency {what!r} is not finite for {group.name}", todo="check weights and data for NaN")
            )
        result[group.name] = score.detach().cpu().double()
    return result


def units_of(
    graph: Graph,
    tied: Sequence[Tied],
    scores: Scores,
    floor: Floor,
    most: float,
    budget: Budget,
    below: Collection[str] = (),
) -> list[Unit]:
    """What is cut together, with floors as counts. What would save nothing is left out, also for its floor, but for
    groups whose structures go ``below`` it."""
    terms = {g.name: _parameter_terms(graph, g) for t in tied for g in t.groups}
    units, routed = [], _routed(graph)
    for one in tied:
        floors = {g.name: _floor(g, floor, most) for g in one.groups}
        unit = unit_of(one.groups, one.weights, floors, scores, terms)
        unit.kernel = KERNEL_MULTIPLE if any(g.atom in routed for g in one.groups) else 1
        products = budget.touched(g.atom for g in one.groups)
        steps = unit.limit or (len(unit.scores) - 1 if any(g.name in below for g in one.groups) else 0)
        if steps > 0 and budget.cost(products) > budget.cost(products, unit.sizes(steps)):
            units.append(unit)
    return units


def empty(spender: Spender, names: Iterable[str], refused: Mapping[str, Sequence[Group]]) -> None:
    """Take all structures of some groups, never to be given back.

    Args:
        spender: with a unit for each.
        names: of groups.
        refused: groups that may not be cut, by reason.

    Raises:
        PlanError: one may not be cut, is no exact one, or is cut together with others.
    """
    for name in names:
        unit = next((u for u in spender.units if any(g.name == name for g in u.groups)), None)
        if unit is None:
            reason = next((why for why, groups in refused.items() if any(g.name == name for g in groups)), "")
            reason = reason or "it is no group that may be cut"
        elif len(unit.groups) > 1:
            reason = "it is cut together with others"
        else:
            reason = "" if unit.groups[0].certificate == "exact" else f"it is {unit.groups[0].certificate}"
        if unit is None or reason:
            todo = "name exact groups that may be cut; shearfx.depth.find_branches finds those that a class can lose"
            raise PlanError(message(f"{name} cannot go whole: {reason}", where="emptied=", todo=todo))
        spender.move(unit, unit.groups[0].size)
        unit.least = unit.gone


def _routed(graph: Graph) -> set[Atom]:
    """What the products of routed experts go through."""
    roles = (item for record in graph.records.values() for item in record.roles)
    return {atom for role, dim in roles if role == "routed" for atom in graph.solver.atoms(dim)}


def _parameter_terms(graph: Graph, group: Group) -> tuple[Dim, ...]:
    members = (m for m in group.members if graph.tensors[m.name].kind == "parameter")
    return tuple(dict.fromkeys(m.term for m in members))


def _floor(group: Group, floor: Floor, most: float) -> int:
    value = floor.get(group.kind, FLOOR) if isinstance(floor, Mapping) else floor
    stays = value if isinstance(value, int) else math.ceil(value * group.size - 1e-9)
    return max(1, stays, math.ceil((1 - most) * group.size - 1e-9))
