"""What a plan achieves in another unit than parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from shearfx.budget import budget_of
from shearfx.graph import Graph, Group
from shearfx.pruning_plan import PruningPlan
from shearfx.running_time import Currency, RunningTime


def achieved_in(
    plan: PruningPlan, graph: Graph, unit: Currency | RunningTime, groups: Iterable[Group] = ()
) -> PruningPlan:
    """The plan with ``achieved`` as a share of a unit; what it is of the parameters stays in its options.

    Args:
        plan: of this graph.
        graph: the analysis.
        unit: what a budget counts.
        groups: those whose structures count, where structures are the unit.
    """
    if unit == "params":
        return plan
    budget = budget_of(graph, unit, groups)
    kept = {cut.name: len(cut.kept) for cut in plan.cuts}
    sizes = {group.atom: kept[group.name] for group in graph.groups if group.name in kept}
    share = 1 - budget.cost(range(len(budget.products)), sizes) / budget.total
    return dataclasses.replace(plan, achieved=share, options=plan.options | {"achieved_params": plan.achieved})
