"""Graphs in one canonical form, in which two graphs are compared by comparing the numbers of their outputs.

Operators that only rearrange (``view``, ``expand``, ``contiguous``, ``chunk``) stand for what they do rather than for
how it was spelled, and equal computations get equal numbers (hash consing).
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

from shearfx.rules.registry import parameters_of, shape_of

aten = torch.ops.aten
Shape = tuple[Any, ...]

SAME = {
    aten.contiguous, aten.clone, aten.alias, aten.detach, aten.lift_fresh_copy, aten.dropout, aten.feature_dropout,
    aten.to, aten._to_copy, aten.type_as,
}  # fmt: skip
RESHAPES = {
    aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.unflatten, aten.unsqueeze, aten.squeeze,
    aten.view_as, aten.reshape_as,
}  # fmt: skip
_STRETCHES = {aten.expand, aten.expand_as, aten.broadcast_to}
SPLITS = {aten.split, aten.split_with_sizes, aten.chunk, aten.tensor_split}
_PERMUTES = {aten.permute, aten.transpose, aten.t, aten.numpy_T, aten.mT, aten.swapaxes, aten.movedim}
REARRANGING = SAME | RESHAPES | _STRETCHES | {aten.slice}
"""What code may leave out where it has nothing to do (a group of one head needs no repeating)."""
_NATIVE_NORM = aten._native_batch_norm_legit_no_training.default
_WRITES = {aten.slice_scatter: aten.slice, aten.select_scatter: aten.select}
"""What writes into a part of a tensor, and what reads that part."""
_IRRELEVANT = {"device", "layout", "pin_memory", "memory_format", "non_blocking", "copy", "cudnn_enable",
               "cudnn_enabled"}  # fmt: skip


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
        first = node.target is operator.getitem and not node.args[1]
        if first and getattr(node.args[0], "target", None) is _NATIVE_NORM:
            return self.ids[node.args[0]]  # type: ignore[index]
        if node.op == "get_attr" or not hasattr(node.target, "_schema"):
            return self.number(str(node.target), self.value(node.args), self.value(tuple(node.kwargs.items())))
        packet = _functional(node)
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        arguments = self._arguments(node)
        if source is not None and isinstance(shape, tuple):
            before = self.shapes.get(source)
            if packet in SAME and arguments.get("train") is not True:
                same = _dtype(source) == _dtype(node)
                return self.ids[source] if same else self.number("cast", self.ids[source], str(_dtype(node)))
            if packet in RESHAPES:
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
        if packet in SPLITS and source is not None and isinstance(shape, list):
            return self.number("split", self.ids[source], tuple(shape))
        if packet is aten.copy and self._plain_copy(node, shape):
            return self.ids[node.args[1]]  # type: ignore[index]
        if packet in (aten.slice, aten.slice_scatter) and source is not None and isinstance(shape, tuple):
            self._bounds(arguments, self.shapes[source])
        if packet in _WRITES:
            return self._scattered(packet, arguments, arguments.pop("src"))
        if source is not None and (self.ids[source], packet, _place(arguments)) in self.parts:
            return self.parts[self.ids[source], packet, _place(arguments)]
        if packet is aten.scaled_dot_product_attention:
            query, key = (self.shapes[arg] for arg in node.args[:2] if isinstance(arg, fx.Node))
            if "scale" not in arguments and isinstance(query[-1], int):
                arguments["scale"] = self.value(1 / math.sqrt(query[-1]))
            if query[-3:-2] == key[-3:-2]:
                arguments.pop("enable_gqa", None)
        if node.target in (_NATIVE_NORM, aten.batch_norm.default) and arguments.get("training") is not True:
            # Functionalised graphs have the other of the two.
            names = ("input", "weight", "bias", "running_mean", "running_var", "eps")
            return self.number("batch_norm in evaluation", *(arguments.get(name) for name in names))
        if packet is aten.rms_norm and "eps" not in arguments:
            arguments["eps"] = self.value(torch.finfo(_dtype(node)).eps)
        return self.number(str(packet), tuple(sorted(arguments.items())))

    def written(self, view: fx.Node, parent: fx.Node, value: Any) -> Any:
        """The number of a tensor after this was written into a view of it, as functionalised code says it.

        None where the view is none of those for which it is known.
        """
        packet = getattr(view.target, "overloadpacket", None)
        shape = self.shapes[parent]
        if packet in SAME and self.ids.get(view) == self.ids.get(parent):
            return None  # perhaps a copy
        if packet in RESHAPES:
            return value if self.shapes[view] == shape else self._reshape(value, self.shapes[view], shape)
        if packet not in (aten.slice, aten.select):
            return None
        arguments = {**self._arguments(view), "self": self.ids[parent]}
        if packet is aten.slice:
            self._bounds(arguments, shape)
        return self._scattered(aten.slice_scatter if packet is aten.slice else aten.select_scatter, arguments, value)

    def _scattered(self, packet: Any, arguments: Mapping[str, Any], value: Any) -> Any:
        if packet is aten.slice_scatter and not {"start", "end", "step"} & arguments.keys():
            return value  # all of it
        number = self.number(str(packet), tuple(sorted({**arguments, "src": value}.items())))
        self.parts[number, _WRITES[packet], _place(arguments)] = value
        return number

    def _bounds(self, arguments: dict[str, Any], before: Shape) -> None:
        """Bounds of a slice counted from the front; an end at the end left out."""
        size = before[int(arguments["dim"][1]) % len(before) if "dim" in arguments else 0]
        for name in ("start", "end"):
            if name in arguments:
                bound = arguments[name][1]
                arguments[name] = ("number", max(0, bound + size) if bound < 0 else min(bound, size))
        if arguments.get("start") == ("number", 0):
            del arguments["start"]
        if arguments.get("end") == ("number", size):
            del arguments["end"]

    def _reshaped(self, source: fx.Node, before: Any, shape: Shape) -> Any:
        return self._reshape(self.ids[source], before, shape)

    def _reshape(self, base: Any, first: Any, shape: Shape) -> Any:
        for key in (self.keys.get(base),):
            if key is not None and key[0] == "reshape":
                _, base, first = key
        if first == shape:
            return base
        number = self.number("reshape", base, first, shape)
        self.keys[number] = ("reshape", base, first)
        return number

    def _plain_copy(self, node: fx.Node, shape: Any) -> bool:
        """Whether a tensor is overwritten as a whole, by one of its own shape and dtype."""
        written = node.args[1]
        return isinstance(written, fx.Node) and self.shapes[written] == shape and _dtype(written) == _dtype(node)

    parts: dict[Any, Any] = field(default_factory=dict)
    """What was written where: number of the result, operator that reads it back, and the place, to the number read."""
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


def _place(arguments: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted((name, at) for name, at in arguments.items() if name not in ("self", "src")))


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


def raw_shape(node: fx.Node) -> Any:
    """The traced shape of a result (a list: one for each of several; None: no tensor)."""
    value = node.meta.get("val")
    if isinstance(value, (list, tuple)):
        return [shape_of(v) if isinstance(v, torch.Tensor) else None for v in value]
    return shape_of(value) if isinstance(value, torch.Tensor) else None
