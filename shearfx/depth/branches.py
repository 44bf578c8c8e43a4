"""Branches of layers that can go whole: an attention without heads, a feed-forward part without width.

A branch gives nothing once the group inside it has lost all of its structures: what it adds to the stream is zero (or
its last bias). So it needs no surgery: the group is emptied by an ordinary plan, and the layers around it, of no width,
take no time. Not every class and operator takes what is empty; which groups a class can lose is found out by trying.

Source: attention and feed-forward parts as units of depth pruning: FinerCut (Zhang et al. 2024, arXiv 2405.18218), and
He et al. 2024 (arXiv 2406.15786), who find that attention is missed the least.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from shearfx.attributes import solve_shallow
from shearfx.errors import PlanError
from shearfx.graph import Graph, Group
from shearfx.memory import Memory, memory_of
from shearfx.pruning_plan import of_cuts
from shearfx.selection import Tied
from shearfx.shallow import alike, representative


@dataclass(frozen=True)
class Branches:
    """What was found."""

    groups: tuple[Group, ...]
    """Those that can lose all of their structures."""
    refused: dict[str, str]
    """Name of each other group to why it cannot."""


def find_branches(graph: Graph, model: nn.Module, tied: Sequence[Tied]) -> Branches:
    """The groups that the model's own class can lose whole, each by itself.

    Of groups that are alike one is tried; the first layers, which a cache may count by, are tried one by one.

    Args:
        graph: the analysis of the model.
        model: no weight is read.
        tied: what may be cut; groups that are cut together with others only are left whole.
    """
    memory = memory_of(model, graph)
    probed = {group.name for group in memory.graph.groups}
    refused: dict[str, str] = {}
    groups: list[Group] = []
    known: dict[tuple[str, int], str] = {}
    for one in tied:
        if len(one.groups) > 1:
            refused |= {g.name: "it is cut together with others only" for g in one.groups}
            continue
        (group,) = one.groups
        kind = (group.name if group.name in probed else alike(group.name), group.size)
        if kind not in known:
            known[kind] = _refusal(graph, memory, group)
        if known[kind]:
            refused[group.name] = known[kind]
        else:
            groups.append(group)
    return Branches(tuple(groups), refused)


def _refusal(graph: Graph, memory: Memory, group: Group) -> str:
    """Why a group cannot lose all of its structures; empty where it can."""
    try:
        plan = representative(of_cuts(graph, {group.name: ()}), memory.graph)
    except PlanError as error:
        return str(error).splitlines()[0]
    solution = solve_shallow(memory, plan)
    return "" if solution.ok else solution.reason.splitlines()[0]
