"""What a run could have cut and what not, and why: for whoever reads its folder without the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shearfx.graph import Graph, Group
from shearfx.selection import Tied

OTHERWISE = "not among what the options allow, or a single structure"


def account_of(
    graph: Graph, tied: Sequence[Tied], refused: Mapping[str, Sequence[Group]], unprunable: Sequence[Tied]
) -> dict[str, Any]:
    """Every group with its size and why it stays whole, and what is pinned, by reason.

    Args:
        graph: the analysis.
        tied: what the options allow to be cut.
        refused: what they don't, or what the model's class cannot express, by reason.
        unprunable: those of ``tied`` that knowledge analysis leaves whole.

    Returns:
        ``groups``: name, kind, size, certificate and ``why`` (empty for what may be cut); ``pins``: reason, count, and
        of the first one its dims, node and source line. Plain JSON.
    """
    why = {g.name: reason for reason, groups in refused.items() for g in groups}
    why |= {g.name: "unprunable by knowledge analysis" for one in unprunable for g in one.groups}
    allowed = {g.name for one in tied for g in one.groups}
    groups = [
        {"name": g.name, "kind": g.kind, "size": g.size, "certificate": g.certificate,
         "why": why.get(g.name, "" if g.name in allowed else OTHERWISE)}
        for g in graph.groups
    ]  # fmt: skip
    pins: dict[str, dict[str, Any]] = {}
    for pin in graph.pins:
        first = {"reason": pin.reason, "count": 0, "dims": str(pin.dims), "node": pin.node, "source": pin.source}
        pins.setdefault(pin.reason, first)["count"] += 1
    return {"groups": groups, "pins": list(pins.values())}
