"""Whether a ratio can be reached beside what is left whole."""

from __future__ import annotations

import math
from collections.abc import Sequence

from shearfx.config_values import RoundTo
from shearfx.errors import PlanError, message
from shearfx.graph import Graph
from shearfx.knowledge.distribution import KnowledgeDistribution, checked_gamma, count_of
from shearfx.knowledge.trials import name_of
from shearfx.optim.choosing import Chooser
from shearfx.running_time import Currency, RunningTime, amount_text
from shearfx.selection import Tied
from shearfx.units import FLOOR, Floor


def prunable(tied: Sequence[Tied], unprunable: Sequence[str]) -> list[Tied]:
    """What is left to cut, where node groups with these names, or with groups of these names in them, stay whole.

    Raises:
        PlanError: there is no group of such a name.
    """
    left, names = list(tied), {group.name for one in tied for group in one.groups}
    for name in unprunable:
        if name not in names:
            raise PlanError(message(f"there is no node group {name!r}", todo="pass the analysis of the same model"))
        left = [one for one in left if all(group.name != name for group in one.groups)]
    return left


def of_file(found: KnowledgeDistribution, graph: Graph, tied: Sequence[Tied], gamma: float | str | None) -> list[str]:
    """What an earlier analysis says that is to stay whole, of what may be cut now.

    Args:
        found: the analysis of the same model, of these kinds of node groups or more; tied otherwise perhaps.
        graph, tied: of now.
        gamma: which share; None for the one that the analysis was asked for.

    Raises:
        PlanError: it is of another model, or does not know something that may be cut.
    """
    measured = {name for row in found.rows for name in row.groups}
    strangers = measured - {group.name for group in graph.groups}
    if strangers:
        what = f"the knowledge analysis is of another model: it has a node group {min(strangers)!r}"
        raise PlanError(message(what, where="knowledge", todo="run `shearfx knowledge` on this model"))
    here = {group.name: name_of(one) for one in tied for group in one.groups}
    known = {here[name] for name in measured if name in here}
    missing = next((name_of(one) for one in tied if name_of(one) not in known), None)
    if missing is not None:
        what = f"the knowledge analysis says nothing of node group {missing!r}"
        raise PlanError(message(what, where="knowledge", todo="analyse the kinds that are to be cut"))
    of = {row.name: row.groups for row in found.rows}
    names = found.unprunable() if gamma is None else found.unprunable(gamma)
    return list(dict.fromkeys(here[group] for name in names for group in of[name] if group in here))


def check_possible(
    graph: Graph,
    tied: Sequence[Tied],
    unprunable: Sequence[str] | float | str | None,
    ratio: float,
    *,
    unit: Currency | RunningTime = "params",
    floor: Floor = FLOOR,
    most: float = 1.0,
    round_to: RoundTo = 1,
) -> float:
    """Refuse what is left whole where the rest cannot give a ratio.

    Args:
        graph: the analysis.
        tied: all node groups.
        unprunable: names of node groups, the most crucial first; or, before they are known, a share gamma, which is
            refused where even the node groups that save the least could not all be left whole (``"auto"`` and None
            are never refused before).
        ratio: that is asked for, from 0 to below 1, of ``unit``.
        unit, floor, most, round_to: as of :class:`shearfx.optim.LHSPG`.

    Returns:
        The largest ratio that what is left can give (an upper bound of it for a gamma).

    Raises:
        PlanError: it is less than ``ratio``; says how much is left, and which gamma would do.
    """
    limits = {"unit": unit, "floor": floor, "most": most, "round_to": round_to}

    def possible(some: Sequence[Tied]) -> int:
        return Chooser(graph, some, **limits).most_possible() if some else 0  # type: ignore[arg-type]

    total = Chooser(graph, tied, **limits).total  # type: ignore[arg-type]
    whole = possible(tied)
    amount = ratio * total
    if isinstance(unprunable, (str, float, int)) or unprunable is None:
        checked_gamma(unprunable)
        share = 0.0 if unprunable is None or isinstance(unprunable, str) else float(unprunable)
        # groups that meet in one tensor save less together than alone: sums over single ones are upper bounds
        alone = sorted(possible([one]) for one in tied) if share else []
        count = count_of(share, len(tied))

        def left(left_whole: int) -> int:
            return min(whole, sum(alone[left_whole:])) if left_whole else whole
    else:
        names = list(unprunable)
        count = len(names)

        def left(left_whole: int) -> int:
            return possible(prunable(tied, names[:left_whole])) if left_whole else whole

    found = left(count)
    if found >= amount:
        return found / total
    if whole < amount:
        todo = f"ask for at most {_down(whole / total):g}, or a smaller floor, or more kinds, and no gamma"
    else:
        low, high = 0, count  # possible with so many left whole, impossible with so many
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if left(middle) >= amount else (low, middle)
        gamma = math.ceil(1e4 * low / len(tied) - 1e-9) / 1e4
        less = f"pass gamma={gamma:g} ({low} node groups) or less" if low else "leave no node group whole (no gamma)"
        todo = f"{less}, or ask for at most {_down(found / total):g}"
    what = (
        f"a ratio of {ratio:g} asks for {amount_text(amount, unit)} of {amount_text(total, unit)}, and with {count} of "
        f"{len(tied)} node groups left whole at most {amount_text(found, unit)} can go ({found / total:.1%})"
    )
    raise PlanError(message(what, where="unprunable node groups (gamma)", todo=todo))


def _down(share: float) -> float:
    return int(1e4 * share) / 1e4
