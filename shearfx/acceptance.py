"""Is a re-captured model the graph that we expect? Decided node by node, not by shapes or by values.

The graphs are the same function of the same tensors if, in canonical form, their outputs have equal numbers.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from shearfx.canonical import RESHAPES, SAME, SPLITS, Canonical, raw_shape
from shearfx.graph import Graph, module_paths, new_size, source_of
from shearfx.passes.subnetwork import ConstructSubnetwork
from shearfx.tracing import Traced

Shape = tuple[Any, ...]


@dataclass(frozen=True)
class Failure:
    """Where two graphs part: modules around the place, outermost first, and what is different there."""

    reason: str
    where: str = ""
    paths: tuple[str, ...] = ()
    rank: int = -1
    """How far the comparison came: the position in the expected graph of the first node that was not found."""
    ran: bool = False
    """Whether the code ran to its end: what it did then says more than where it broke off."""


class UnsupportedError(Exception):
    """A graph that has no canonical form: it changes tensors in place that are views of others."""


def of_traced(traced: Traced, table: dict[Any, int]) -> Canonical:
    """The canonical form of a captured model.

    Raises:
        UnsupportedError: it writes into views.
    """
    result = Canonical(table)
    named = {node: name for name, node in traced.inputs.items()}
    views = _views(traced.graph)
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            tensor = traced.tensors.get(node)
            result.ids[node] = _leaf(result, named.get(node, node.name), tensor.name if tensor else None)
            result.shapes[node] = _shape(result, node)
        elif node.op == "get_attr":
            value = getattr(traced.graph.owning_module, str(node.target), None)
            result.ids[node] = result.number("constant", "unknown" if value is None else result.content(value))
            result.shapes[node] = _shape(result, node)
        elif node.op == "output":
            result.outputs = [result.value(v) for v in node.args[0] if v is not None]
        else:
            result.add(node, raw_shape(node))
            if getattr(node.target, "_schema", None) is not None and node.target._schema.is_mutable:
                _overwrite(result, node, views)
    return result


def _views(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """For results that share memory with an operand: that operand."""
    views = {}
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is not None and not schema.is_mutable and node.args and isinstance(node.args[0], fx.Node):
            packet = getattr(node.target, "overloadpacket", None)
            shared = any(a.alias_info is not None for a in schema.arguments)
            if shared or (packet in RESHAPES or packet in SAME) or packet in SPLITS:
                views[node] = node.args[0]
        elif node.target is operator.getitem and node.args[0] in views:
            views[node] = node.args[0]  # of a split; other operators' results are tensors of their own
    return views


def _overwrite(result: Canonical, node: fx.Node, views: Mapping[fx.Node, fx.Node]) -> None:
    """After ``x.add_(y)`` whoever reads ``x``, or what ``x`` is a view of, reads what was written."""
    target = node.args[0]
    assert isinstance(target, fx.Node)
    chain = [target]
    while chain[-1] in views:
        chain.append(views[chain[-1]])
    # Other views of the same memory would have to change too, if anything reads them later.
    related = {v for v in views if v in result.ids and v not in chain and _base(v, views) is chain[-1]}
    later: set[fx.Node] = set()
    at = node.next
    while at.op != "root":
        later.update(at.all_input_nodes)
        at = at.next
    if related & later or result.shapes.get(target) != result.shapes.get(node):
        raise UnsupportedError(f"{node} writes into a view")
    value = result.ids[target] = result.ids[node]
    for view, parent in itertools.pairwise(chain):
        value = result.written(view, parent, value)
        if value is None:
            if {*chain[chain.index(parent) :]} & later:
                raise UnsupportedError(f"{node} writes into a view")
            return
        result.ids[parent] = value


def _base(node: fx.Node, views: Mapping[fx.Node, fx.Node]) -> fx.Node:
    while node in views:
        node = views[node]
    return node


def of_plan(
    graph: Graph, masks: Mapping[Any, torch.Tensor], shapes: Mapping[str, Shape], sizes: Mapping[str, int],
    table: dict[Any, int],
) -> tuple[Canonical, fx.GraphModule]:  # fmt: skip
    """The canonical form of what the cut model must compute: the fx form, with shapes from its dims.

    Args:
        shapes: of every parameter and buffer after the cut.
        sizes: what to take for each open dim, by symbol.
    """
    tensors = {
        name: torch.empty(shapes[tensor.aliases[0]], dtype=tensor.dtype, device="meta")
        for tensor in graph.traced.tensors.values() if tensor.kind != "constant" for name in tensor.aliases
    }  # fmt: skip
    origins: dict[fx.Node, fx.Node] = {}
    module = ConstructSubnetwork(masks).build(graph, tensors, origins)
    after = {atom: int(mask.sum()) for atom, mask in masks.items()}
    named = {node: name for name, node in graph.traced.inputs.items()}
    result = Canonical(table, sizes=sizes)
    for node in module.graph.nodes:
        origin = origins.get(node)
        if node.op == "placeholder":
            result.ids[node] = _leaf(result, named.get(origin, node.name) if origin else node.name, None)
            result.shapes[node] = _shape(result, node) if origin is None else result.shape(raw_shape(origin))
            node.meta.setdefault("val", origin.meta.get("val") if origin else None)
        elif node.op == "get_attr" and origin is not None and origin.op == "placeholder":
            tensor = graph.traced.tensors[origin]
            if tensor.kind == "constant":
                result.ids[node] = result.number("constant", result.content(getattr(module, str(node.target))))
            else:
                result.ids[node] = _leaf(result, node.name, tensor.name)
            result.shapes[node] = result.shape(_new_shape(graph, origin, after))
            node.meta.setdefault("val", origin.meta.get("val"))
        elif node.op == "get_attr":
            result.ids[node] = result.number("constant", result.content(getattr(module, str(node.target))))
        elif node.op == "call_module" and not node.users:
            continue  # the check of the inputs' sizes
        elif node.op == "call_module":
            result.outputs = [result.value(v) for v in node.args if v is not None]
        elif node.op != "output" and origin is None and node.target is torch.ops.aten.contiguous.default:
            source = node.args[0]  # put in by the construction, for views that need it
            assert isinstance(source, fx.Node)
            result.ids[node], result.shapes[node] = result.ids[source], result.shapes[source]
        elif node.op != "output":
            result.add(node, _new_shape(graph, origin, after) if origin is not None else raw_shape(node))
    return result, module


def _leaf(result: Canonical, argument: str, name: str | None) -> Any:
    return result.number("input", argument) if name is None else result.number("tensor", name)


def _shape(result: Canonical, node: fx.Node) -> Any:
    shape = raw_shape(node)
    return None if shape is None else result.shape(shape)


def _new_shape(graph: Graph, origin: fx.Node, sizes: Mapping[Any, int]) -> Any:
    dims = graph.records[origin].dims
    if dims is None:
        return raw_shape(origin)
    lists = dims if isinstance(dims, list) else [dims]
    new = [None if d is None else tuple(new_size(graph.solver.resolve(x), sizes) for x in d) for d in lists]
    return new if isinstance(dims, list) else new[0]


def difference(expected: Canonical, module: fx.GraphModule, actual: Canonical, traced: Traced) -> Failure | None:
    """Where the actual graph is not the expected one; None where they are the same."""
    if expected.outputs == actual.outputs:
        return None
    partial = not any(node.op == "output" for node in traced.graph.nodes)
    known = {i for i in expected.ids.values() if isinstance(i, int)}
    have = {i for i in actual.ids.values() if isinstance(i, int)}
    wanted_nodes = _live(module.graph)
    order = [n for n in module.graph.nodes if n in expected.ids and n in wanted_nodes]
    rank = next((i for i, n in enumerate(order)
                 if isinstance(expected.ids[n], int) and expected.ids[n] not in have), len(order))  # fmt: skip
    live = set() if partial else _live(traced.graph)
    wanted = order[rank] if rank < len(order) else order[-1]
    for node in traced.graph.nodes:
        if node in live and isinstance(actual.ids[node], int) and actual.ids[node] not in known:
            reason = f"{_show(node)} gives {actual.shapes.get(node)}"
            if rank < len(order):
                reason += f" where the cut needs {_show(wanted)} to give {expected.shapes.get(wanted)}"
            paths = dict.fromkeys((*module_paths(node), *module_paths(wanted)))
            return Failure(reason, source_of(node), tuple(paths), rank, not partial)
    # What broke off has no live nodes yet; the first that the cut does not have may be where it went wrong.
    strange = (n for n in traced.graph.nodes if isinstance(actual.ids.get(n), int) and actual.ids[n] not in known)
    paths = dict.fromkeys(path for node in (wanted, *itertools.islice(strange, 1)) for path in module_paths(node))
    return Failure(f"{_show(wanted)} is missing", source_of(wanted), tuple(paths), rank, not partial)


def _live(graph: fx.Graph) -> set[fx.Node]:
    """What the outputs depend on."""
    live: set[fx.Node] = set()
    todo = list(next(node for node in graph.nodes if node.op == "output").all_input_nodes)
    while todo:
        node = todo.pop()
        if node not in live:
            live.add(node)
            todo.extend(node.all_input_nodes)
    return live


def _show(node: fx.Node) -> str:
    name = str(getattr(node.target, "overloadpacket", node.target)).removeprefix("aten.")
    numbers = [str(a) for a in node.args if not isinstance(a, fx.Node)] if node.target is not operator.getitem else []
    return f"{name}({', '.join(numbers)})"
