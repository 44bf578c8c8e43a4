"""A model with fewer layers that has one of every kind: what is found out on it holds for the rest by class."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from shearfx.acceptance import UnsupportedError
from shearfx.capture import CaptureError, capture
from shearfx.errors import ShearError
from shearfx.graph import Graph
from shearfx.passes import ANALYSIS, run
from shearfx.pruning_plan import Cut, PruningPlan, of_cuts

_LEAST = 2
"""Layers that stay from the last of a kind on: one to cut and one beside it."""


def shallow(model: nn.Module) -> nn.Module | None:
    """A copy whose lists of layers end one after each kind of layer has occurred; None where nothing would be gained.

    Only the ends of lists are dropped, so that numbers of layers stay right.
    """
    lists = {path: keep for path, keep in _lists(model) if keep}
    if not lists:
        return None
    small = copy.deepcopy(model)
    for path, keep in lists.items():
        layers = small.get_submodule(path)
        assert isinstance(layers, nn.ModuleList)
        del layers[keep:]
    return small


def _lists(model: nn.Module) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) > _LEAST + 1:
            seen: set[Any] = set()
            keep = _LEAST
            for i, layer in enumerate(module):
                signature = (type(layer), *((n, type(m), *_manner(m)) for n, m in layer.named_modules()),
                             *((n, tuple(p.shape)) for n, p in layer.named_parameters()))  # fmt: skip
                if signature not in seen:
                    seen.add(signature)
                    keep = max(keep, i + _LEAST)
            # A list inside a list that is cut goes with it.
            if keep < len(module) and not any(path.startswith(f"{outer}.") for outer, _ in found):
                found.append((path, keep))
    return found


def _manner(module: nn.Module) -> tuple[tuple[str, Any], ...]:
    """What a module's attributes say of how it works: a kind of attention, a window that there is or is not. Numbers
    differ from layer to layer without making it another kind."""
    values = vars(module).items()
    return tuple((name, value) for name, value in values if isinstance(value, (bool, str)) or value is None)


def analysed(model: nn.Module, call: Mapping[str, Any], like: Graph) -> Graph | None:
    """The analysis of one call at fixed sizes; None where it does not find the groups that ``like`` has."""
    try:
        graph = analyse_capture(model, call)
        if graph is None:
            from shearfx.analysis import trace

            graph = trace(model, **call)
    except (CaptureError, ShearError, UnsupportedError):
        return None
    known = {g.name: g.size for g in like.groups}
    return graph if all(known.get(g.name) == g.size for g in graph.groups) else None


def analyse_capture(model: nn.Module, call: Mapping[str, Any]) -> Graph | None:
    """Analyse a capture; None where it writes in place."""
    traced = capture(model, call)
    if any(node.target._schema.is_mutable for node in traced.graph.nodes if hasattr(node.target, "_schema")):
        return None
    graph = Graph(traced)
    run(graph, ANALYSIS)
    return graph


def alike(name: str) -> str:
    """A group's name with the numbers of layers left open: the same for its like in every layer."""
    path, colon, position = name.rpartition(":")
    return any_layer(path) + colon + position


def any_layer(path: str) -> str:
    """A module's or tensor's path with the numbers of layers left open."""
    return re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", "*", path)


def representative(plan: PruningPlan, graph: Graph) -> PruningPlan:
    """A plan for the shallow model that cuts of every group what the given plan cuts of it, or of its like.

    What loses all of its structures somewhere loses them once here, in the last layer of its kind: which layer that is
    matters (a cache may count by the first).
    """
    exact = {cut.name: cut for cut in plan.cuts}
    likes: dict[tuple[str, int], Cut] = {}
    emptied: dict[tuple[str, int], Cut] = {}
    for cut in reversed(plan.cuts):
        (likes if cut.kept else emptied)[alike(cut.name), cut.size] = cut
    kept: dict[str, tuple[int, ...]] = {}
    last: dict[tuple[str, int], str] = {}
    for group in graph.groups:
        kind = alike(group.name), group.size
        found = exact.get(group.name) or likes.get(kind)
        if found is not None:
            kept[group.name] = found.kept
        if kind in emptied:
            last[kind] = group.name
            if found is not None and not found.kept:
                del emptied[kind]
    return of_cuts(graph, kept | {name: () for kind, name in last.items() if kind in emptied})
