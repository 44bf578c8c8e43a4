"""What a cut saves besides parameters: operations of the traced call, and time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from shearfx.budget import open_sizes, operation_budget
from shearfx.graph import Graph
from shearfx.pruning_plan import PruningPlan, masks_of
from shearfx.speed import Speed


def operations(full: Graph, graph: Graph, plan: PruningPlan) -> dict[str, Any]:
    """Multiplications and additions of the traced call, before and after, and at which sizes of the open dims.

    Args:
        full: the full model.
        graph: what the plan is for: the same, or what is left of it where layers went.
    """
    budget = operation_budget(graph)
    sizes = {atom: int(mask.sum()) for atom, mask in masks_of(graph, plan).items()}
    return {
        "flops": {"dense": operation_budget(full).total, "recovered": budget.cost(range(len(budget.products)), sizes)},
        "flops_sizes": open_sizes(graph),
    }


def medians(before: Sequence[Speed], after: Sequence[Speed]) -> dict[str, Any]:
    """Prefill and decode in tokens per second, a generation in milliseconds, and how they were timed.

    Recovery changes no shape, hence no speed.
    """
    found: dict[str, Any] = {}
    for what in ("prefill", "decode", "milliseconds"):
        both = zip(("dense", "recovered"), (before, after), strict=True)
        found[what] = {name: statistics.median(getattr(s, what) for s in speeds) for name, speeds in both}
    found["timed"] = str(before[0]).partition("(")[2].rstrip(")")
    return found
