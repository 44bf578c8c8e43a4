"""Weights that data picks slices of: each token multiplied with the matrices of the experts that it is sent to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from shearfx.dims import Size
from shearfx.graph import Graph
from shearfx.rules.registry import is_tensor, shape_of

aten = torch.ops.aten


@dataclass(frozen=True)
class Pick:
    """Where data picks slices of what a weight is made of."""

    node: fx.Node
    index: fx.Node

    @property
    def size(self) -> Size:
        """Of what is picked from: how many slices there are."""
        args: tuple[Any, ...] = self.node.args
        axis = args[1] if self.node.target is aten.index_select.default else list(args[1]).index(self.index)
        return shape_of(args[0].meta["val"])[axis]


def picks(graph: Graph, node: fx.Node) -> Iterator[Pick]:
    """Where data picks slices of what a weight is made of."""
    seen, left = {node}, [node]
    while left:
        one = left.pop()
        for source in one.all_input_nodes:
            if graph.records[source].data and is_tensor(source):
                yield Pick(one, source)
            elif source not in seen:
                seen.add(source)
                left.append(source)


def picked_along(graph: Graph, weight: fx.Node, foreign: Sequence[int]) -> tuple[fx.Node, Size] | None:
    """The one index by which data picks slices of a weight, where one axis of the weight is what was picked; and how
    many slices there are."""
    found = list(picks(graph, weight))
    if len(found) != 1 or len(foreign) != 1:
        return None
    (pick,), dims = found, graph.records[weight].dims
    picked = graph.records[pick.index].dims
    whole = pick.node.target in (aten.index.Tensor, aten.index_select.default)
    assert isinstance(dims, tuple)
    same = isinstance(picked, tuple) and len(picked) == 1 and picked[0] is dims[foreign[0]]
    return (pick.index, pick.size) if whole and same else None
