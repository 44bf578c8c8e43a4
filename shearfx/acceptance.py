"""Is a re-exported model the graph that we expect? Decided node by node, not by shapes or by values.

Both graphs are written in one canonical form, in which operators that only rearrange (``view``, ``expand``,
``contiguous``, ``chunk``) stand for what they do rather than for how it was spelled, and equal computations get equal
numbers (hash consing). The graphs are the same function of the same tensors if their outputs have equal numbers.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import fx

from shearfx.graph import Graph, module_paths, new_size, source_of
from shearfx.passes.subnetwork import ConstructSubnetwork
from shearfx.rules.registry import parameters_of, shape_of
from shearfx.tracing import Traced

aten = torch.ops.aten
Shape = tuple[Any, ...]

_SAME = {
    aten.contiguous, aten.clone, aten.alias, aten.detach, aten.lift_fresh_copy, aten.dropout, aten.feature_dropout,
    aten.to, aten._to_copy, aten.type_as,
}  # fmt: skip
_RESHAPES = {
    aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.unflatten, aten.unsqueeze, aten.squeeze,
    aten.view_as, aten.reshape_as,
}  # fmt: skip
_STRETCHES = {aten.expand, aten.expand_as, aten.broadcast_to}
_SPLITS = {aten.split, aten.split_with_sizes, aten.chunk, aten.tensor_split}
_PERMUTES = {aten.permute, aten.transpose, aten.t, aten.numpy_T, aten.mT, aten.swapaxes, aten.movedim}
REARRANGING = _SAME | _RESHAPES | _STRETCHES | {aten.slice}
"""What code may leave out where it has nothing to do (a group of one head needs no repeating)."""
_IRRELEVANT = {"device", "layout", "pin_memory", "memory_format", "non_blocking", "copy", "cudnn_enable",
               "cudnn_enabled"}  # fmt: skip


@dataclass(frozen=True)
class Failure:
    """Where two graphs part: modules around the place, outermost first, and what is different there."""

    reason: str
    where: str = ""
    paths: tuple[str, ...] = ()
    rank: int = -1
    """How far the comparison came: the position in the expected graph of the first node that was not found."""


@dataclass
class Canonical:
    """A graph in canonical form: the number of each node, shared between graphs that use one ``table``."""

    table: dict[Any, int]
    ids: dict[fx.Node, Any] = field(default_factory=dict)
    shapes: dict[fx.Node, Any] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Sizes of the open dims, by symbol."""
    outputs: list[Any] = field(default_factory=list)
    unknown: int = 0

    def number(self, *key: Any) -> int:
        """The number of a computation."""
        return self.table.setdefault(key, len(self.table))

    def shape(self, shape: Any) -> Any:
        """Sizes as integers."""
        if isinstance(shape, list):
            return [None if s is None else self.shape(s) for s in shape]
        return tuple(s if isinstance(s, int) else self._closed(s) for s in shape)

    def _closed(self, size: Any) -> int:
        """An open size at the sizes of the capture."""
        return int(sympy.sympify(size).subs({symbol: self.sizes[str(symbol)] for symbol in size.free_symbols}))

    def content(self, value: torch.Tensor) -> Any:
        """The numbers of a constant; on the meta device, where there are none, its place among such constants."""
        head = (str(value.dtype), tuple(value.shape))
        if value.is_meta and value.numel():
            self.unknown += 1
            return (*head, "unknown", self.unknown)
        return (*head, *(() if value.is_meta else value.flatten().tolist()))

    def value(self, value: Any) -> Any:
        """An argument: nodes by number, numbers by value."""
        if isinstance(value, fx.Node):
            return self.ids[value]
        if isinstance(value, (list, tuple)):
            return tuple(self.value(v) for v in value)
        if isinstance(value, bool):
            return value
        if isinstance(value, float):
            return ("number", float(f"{value:.13g}") if math.isfinite(value) else str(value))
        if isinstance(value, int):
            return ("number", value)
        if isinstance(value, slice):
            return ("slice", self.value(value.start), self.value(value.stop), self.value(value.step))
        return str(value)

    def add(self, node: fx.Node, shape: Any) -> None:
        """Number one computing node, whose result has this shape (a list: one for each result; None: no tensor)."""
        shape = None if shape is None else self.shape(shape)
        self.shapes[node] = shape
        self.ids[node] = self._id(node, shape)

    def _id(self, node: fx.Node, shape: Any) -> Any:
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt):
            return ("number", self._closed(value.node.expr))
        if node.op == "get_attr" or not hasattr(node.target, "_schema"):
            return self.number(str(node.target), self.value(node.args), self.value(tuple(node.kwargs.items())))
        packet = _functional(node)
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        arguments = self._arguments(node)
        if source is not None and isinstance(shape, tuple):
            before = self.shapes.get(source)
            if packet in _SAME and arguments.get("train") is not True:
                same = _dtype(source) == _dtype(node)
                return self.ids[source] if same else self.number("cast", self.ids[source], str(_dtype(node)))
            if packet in _RESHAPES:
                return self._reshaped(source, before, shape)
            if packet in _PERMUTES:
                axes = _axes(node, len(shape))
                same = axes == tuple(range(len(axes)))
                return self.ids[source] if same else self.number("permute", self.ids[source], axes)
            if packet in _STRETCHES or packet is aten.repeat_interleave:
                if before == shape:
                    return self.ids[source]
                if packet in _STRETCHES:
                    return self.number("expand", self.ids[source], shape)
            if packet is aten.slice and before == shape and arguments.get("step", ("number", 1)) == ("number", 1):
                return self.ids[source]
        if packet in _SPLITS and source is not None and isinstance(shape, list):
            return self.number("split", self.ids[source], tuple(shape))
        if packet is aten.slice and source is not None and isinstance(shape, tuple):
            axis = int(arguments["dim"][1]) % len(shape) if "dim" in arguments else 0
            if arguments.get("end", ("number", 0))[1] == self.shapes[source][axis]:
                arguments.pop("end")
        if packet is aten.scaled_dot_product_attention:
            query, key = (self.shapes[arg] for arg in node.args[:2] if isinstance(arg, fx.Node))
            if "scale" not in arguments and isinstance(query[-1], int):
                arguments["scale"] = self.value(1 / math.sqrt(query[-1]))
            if query[-3:-2] == key[-3:-2]:
                arguments.pop("enable_gqa", None)
        if packet is aten.rms_norm and "eps" not in arguments:
            arguments["eps"] = self.value(torch.finfo(_dtype(node)).eps)
        return self.number(str(packet), tuple(sorted(arguments.items())))

    def _reshaped(self, source: fx.Node, before: Any, shape: Shape) -> Any:
        base, first = self.ids[source], before
        for key in (self.keys.get(base),):
            if key is not None and key[0] == "reshape":
                _, base, first = key
        if first == shape:
            return base
        number = self.number("reshape", base, first, shape)
        self.keys[number] = ("reshape", base, first)
        return number

    keys: dict[Any, Any] = field(default_factory=dict)
    """Of each reshape: what it reshapes, and from what shape."""

    def _arguments(self, node: fx.Node) -> dict[str, Any]:
        """Arguments by schema name, defaults and what changes no number left out."""
        found: dict[str, Any] = {}
        for i, (name, default, keyword, _) in enumerate(parameters_of(node.target)):
            value = node.args[i] if not keyword and i < len(node.args) else node.kwargs.get(name, default)
            if name in _IRRELEVANT or value is None or (value == default and not isinstance(value, fx.Node)):
                continue
            if name == "end" and isinstance(value, int) and value >= 2**62:
                continue
            found[name] = self.value(value)
        return found


def _axes(node: fx.Node, rank: int) -> tuple[int, ...]:
    """Where each dim of the result comes from, read off a tensor of distinct sizes."""
    probe = torch.empty([i + 2 for i in range(rank)], device="meta")
    return tuple(size - 2 for size in node.target(probe, *node.args[1:], **node.kwargs).shape)  # type: ignore[operator]


def _functional(node: fx.Node) -> Any:
    """The operator, an in-place one as the one that returns a new tensor."""
    packet = getattr(node.target, "overloadpacket", None)
    name = str(packet).removeprefix("aten.")
    if node.target._schema.is_mutable and name.endswith("_") and not name.endswith("__"):  # type: ignore[union-attr]
        return getattr(aten, name[:-1], packet)
    return packet


def _dtype(node: fx.Node) -> Any:
    return getattr(node.meta.get("val"), "dtype", None)


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
            result.add(node, _raw_shape(node))
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
            if shared or (packet in _RESHAPES or packet in _SAME) or packet in _SPLITS:
                views[node] = node.args[0]
        elif node.target is operator.getitem and isinstance(node.args[0], fx.Node):
            views[node] = node.args[0]
    return views


def _overwrite(result: Canonical, node: fx.Node, views: Mapping[fx.Node, fx.Node]) -> None:
    """After ``x.add_(y)`` whoever reads ``x`` reads the sum."""
    target = node.args[0]
    assert isinstance(target, fx.Node)
    # A view of it, or what it is a view of, would have to change too, if anything reads it later.
    related = {v for v, source in views.items() if source is target and v in result.ids}
    if target in views:
        related.add(views[target])
    later: set[fx.Node] = set()
    at = node.next
    while at.op != "root":
        later.update(at.all_input_nodes)
        at = at.next
    if related & later or result.shapes.get(target) != result.shapes.get(node):
        raise UnsupportedError(f"{node} writes into a view")
    result.ids[target] = result.ids[node]


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
            result.shapes[node] = _shape(result, node) if origin is None else result.shape(_raw_shape(origin))
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
        elif node.op == "call_module":
            result.outputs = [result.value(v) for v in node.args if v is not None]
        elif node.op != "output":
            result.add(node, _new_shape(graph, origin, after) if origin is not None else _raw_shape(node))
    return result, module


def _leaf(result: Canonical, argument: str, name: str | None) -> Any:
    return result.number("input", argument) if name is None else result.number("tensor", name)


def _shape(result: Canonical, node: fx.Node) -> Any:
    shape = _raw_shape(node)
    return None if shape is None else result.shape(shape)


def _raw_shape(node: fx.Node) -> Any:
    value = node.meta.get("val")
    if isinstance(value, (list, tuple)):
        return [shape_of(v) if isinstance(v, torch.Tensor) else None for v in value]
    return shape_of(value) if isinstance(value, torch.Tensor) else None


def _new_shape(graph: Graph, origin: fx.Node, sizes: Mapping[Any, int]) -> Any:
    dims = graph.records[origin].dims
    if dims is None:
        return _raw_shape(origin)
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
            return Failure(reason, source_of(node), tuple(paths), rank)
    return Failure(f"{_show(wanted)} is missing", source_of(wanted), tuple(module_paths(wanted)), rank)


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
