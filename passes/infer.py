"""Dimension inference: every rule states its equations; the solver makes terms of them."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from shearfx.dims import Pin
from shearfx.graph import Graph
from shearfx.passes.manager import Pass
from shearfx.rules import RULES, Site
from shearfx.rules.pointwise import is_pointwise, pointwise
from shearfx.rules.registry import Dims, Record, fits, is_tensor, shape_of
from shearfx.values import join


@dataclass(frozen=True)
class InferDims(Pass):
    """A term for every dim of every tensor; pins, with reasons, for what no rule explains."""

    name: ClassVar[str] = "infer"
    requires: ClassVar[tuple[str, ...]] = ("compose",)
    ensures: ClassVar[tuple[str, ...]] = ("sizes match",)

    def apply(self, graph: Graph) -> None:
        """Fill ``graph.records`` and ``graph.tensor_dims``."""
        by_name: dict[str, Dims] = {}
        for node in graph.traced.graph.nodes:
            graph.records[node] = _record(graph, node, by_name)
        _pin_ranks(graph, by_name)
        for name in graph.traced.changed:
            for dim in by_name.get(name, ()):
                graph.solver.pin(dim, f"the call writes into {name}: what it leaves there is not followed", name)
        for tensor in graph.traced.unused:
            dims = by_name.get(tensor.name) or tuple(graph.solver.fresh(size) for size in tensor.shape)
            for dim in dims:
                graph.solver.pin(dim, f"the traced call never reaches {tensor.name}", tensor.name)
            by_name[tensor.name] = dims
        for record in graph.records.values():
            record.dims = _resolved(graph, record.dims)
        graph.tensor_dims = {name: tuple(map(graph.solver.resolve, dims)) for name, dims in by_name.items()}


def _record(graph: Graph, node: fx.Node, by_name: dict[str, Dims]) -> Record:
    if node.op == "placeholder":
        tensor = graph.traced.tensors.get(node)
        constant = graph.traced.constants.get(tensor.name) if tensor else None
        return Record(node, _placeholder(graph, node, by_name), data=tensor is None, constant=constant)
    if node.op == "output":
        for value in node.all_input_nodes:
            for dims in _all_dims(graph.records[value]):
                for dim in dims:
                    graph.solver.pin(dim, "a dim of the model's output", node.name)
        return Record(node, None)
    if node.op == "call_function" and node.target is operator.getitem:
        return _component(graph, node)
    if node.op == "get_attr" and not is_tensor(node):
        return Record(node, None)
    site = Site(node, graph.solver, graph.records)
    site.record.data = _is_data(graph, node)
    rule = RULES.get(node.target)
    try:
        if rule is not None:
            site.record.dims = rule.function(site)
        elif is_pointwise(node.target):
            site.record.dims = pointwise(site)
        else:
            return _unknown(graph, node, f"shearfx has no rule for the operator {node.target}")
    except Exception as error:  # a rule that fails tells nothing, and what is not known is pinned
        return _unknown(graph, node, f"the rule for {node.target} failed: {type(error).__name__}: {error}")
    if not fits(site.record.dims, node.meta.get("val")):  # several results of one kind, say, or sizes beyond algebra
        return _unknown(graph, node, f"the rule for {node.target} tells of other results or sizes than it gives here")
    return site.record


def _resolved(graph: Graph, dims: Any) -> Any:
    """The same dims with nothing left to look up: later passes read them many times."""
    if isinstance(dims, list):
        return [_resolved(graph, one) for one in dims]
    return None if dims is None else tuple(map(graph.solver.resolve, dims))


def _placeholder(graph: Graph, node: fx.Node, by_name: dict[str, Dims]) -> Dims | None:
    tensor = graph.traced.tensors.get(node)
    if tensor is not None:
        if tensor.name not in by_name:
            by_name[tensor.name] = tuple(graph.solver.fresh(size) for size in tensor.shape)
        return by_name[tensor.name]
    if not is_tensor(node):
        return None
    pin = Pin("a dim of the model's input", node.name)
    return tuple(graph.solver.fresh(size, pin) for size in shape_of(node.meta["val"]))


def _component(graph: Graph, node: fx.Node) -> Record:
    source, index = node.args
    assert isinstance(source, fx.Node) and isinstance(index, int)
    parts = graph.records[source].dims
    dims = parts[index] if isinstance(parts, list) else None
    return Record(node, dims, (source,), join, data=graph.records[source].data)


def _is_data(graph: Graph, node: fx.Node) -> bool:
    """Activations come from activations; a weight picked by an activation is still a weight."""
    sources = node.all_input_nodes
    if getattr(node.target, "overloadpacket", None) in _PICKING:
        sources = sources[:1]
    return any(graph.records[source].data for source in sources)


_PICKING = {torch.ops.aten.index, torch.ops.aten.index_select, torch.ops.aten.gather}


def _unknown(graph: Graph, node: fx.Node, reason: str) -> Record:
    """Whatever the node touches stays as it is."""
    tensors: list[Any] = [n for n in node.all_input_nodes if graph.records[n].dims is not None]
    if not tensors and not _values(node):
        return Record(node, None)
    for value in tensors:
        for dims in _all_dims(graph.records[value]):
            for dim in dims:
                graph.solver.pin(dim, reason, node.name)

    def pinned(value: Any) -> Dims | None:
        if not isinstance(value, torch.Tensor):
            return None
        dims = tuple(graph.solver.fresh(size) for size in shape_of(value))
        for dim in dims:
            graph.solver.pin(dim, reason, node.name)
        return dims

    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return Record(node, pinned(value), data=True)
    return Record(node, [pinned(v) for v in value] if isinstance(value, (tuple, list)) else None, data=True)


def _values(node: fx.Node) -> list[torch.Tensor]:
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else [value]
    return [v for v in values if isinstance(v, torch.Tensor)]


def _all_dims(record: Record) -> list[Dims]:
    dims = record.dims
    if dims is None:
        return []
    return [dims] if isinstance(dims, tuple) else [d for d in dims if d is not None]


def _pin_ranks(graph: Graph, by_name: dict[str, Dims]) -> None:
    """The inner dimension of a low-rank adapter is never pruned."""
    for name, axis in graph.traced.ranks.items():
        if name in by_name:
            graph.solver.pin(by_name[name][axis], "the rank of a LoRA adapter", name)
