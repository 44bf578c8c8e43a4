"""Point-wise operators: results and operands share their dims; what happens to zero is measured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from shearfx.rules.registry import Dims, Site, Transfer, is_tensor, parameters_of, rule
from shearfx.values import Number, Operand, Value, join, measure_operator

aten = torch.ops.aten


_UNTAGGED = (
    "absolute", "arcsinh", "arctan", "arctan2", "complex", "conj", "divide", "fix", "floor_divide", "greater",
    "greater_equal", "hardswish", "less", "less_equal", "multiply", "negative", "not_equal", "polar", "real", "imag",
    "rsub", "special_ndtr", "subtract", "relu6", "where",
    "__and__", "__or__", "isclose", "masked_fill",
)  # fmt: skip
"""Point-wise operators that torch 2.13 forgets to tag, most of them second names of tagged ones."""


def is_pointwise(target: Any) -> bool:
    """Whether an operator is point-wise: torch declares it so, or it is one that torch forgets to declare."""
    return torch.Tag.pointwise in getattr(target, "tags", ()) or getattr(target, "overloadpacket", None) in _PACKETS


_PACKETS = {getattr(aten, name) for name in _UNTAGGED if hasattr(aten, name)}


_DIVISIONS = {aten.div, aten.divide, aten.true_divide}


def pointwise(site: Site) -> Dims:
    """Any operator that torch tags as point-wise: operands broadcast against each other."""
    nodes = [node for node in site.tensors() if node is not None]
    site.operands(*nodes, transfer=_measured(site))
    if getattr(site.node.target, "overloadpacket", None) in _DIVISIONS and len(nodes) == 2:
        site.record.divisor = 1
    shapes = [site.dims(node) for node in nodes]
    dims = site.broadcast(shapes)
    site.carried(dims, shapes)
    return dims


def _measured(site: Site) -> Any:
    node = site.node
    order: list[fx.Node] = []

    def stand_in(value: Any) -> Any:
        if isinstance(value, fx.Node):
            if is_tensor(value):
                order.append(value)
                return Operand(value.meta["val"].dtype)
            return _number(value.meta.get("val"))
        return tuple(map(stand_in, value)) if isinstance(value, (list, tuple)) else value

    template = tuple(map(stand_in, node.args))
    names = {name for name, _, _, _ in parameters_of(node.target)} - {"device", "pin_memory", "memory_format"}
    keywords = tuple((k, stand_in(v)) for k, v in node.kwargs.items() if k in names and k != "dtype")
    nodes = [n for n in site.tensors() if n is not None]
    positions = [nodes.index(n) for n in order]

    def transfer(values: list[Value]) -> Value:
        return measure_operator(node.target, template, keywords, tuple(values[i] for i in positions))

    return transfer


def _number(value: Any) -> Any:
    """Of a number that follows the input's size or its numbers: itself where it is fixed, else what is known of it."""
    if not isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return value if isinstance(value, (bool, int, float)) else Number(float)
    if isinstance(value, torch.SymBool):
        return Number(bool)
    expression = value.node.expr
    return Number(
        int if isinstance(value, torch.SymInt) else float,
        bool(getattr(expression, "is_positive", False)),
        bool(getattr(expression, "is_nonnegative", False)),
    )


_CASTS = {aten.to.dtype, aten.to.dtype_layout, aten.to.other, aten._to_copy.default, aten.type_as.default}


def _identity_samples() -> Iterable[tuple[Any, ...]]:
    x = torch.randn(3, 4, dtype=torch.float64)
    yield aten.clone.default, (x,), {}
    yield aten.to.dtype, (x, torch.float32), {}
    yield aten.to.dtype, (x.exp(), torch.int64), {}
    yield aten._to_copy.default, (x,), {"dtype": torch.float32}
    yield aten.to.dtype_layout, (x,), {"dtype": torch.float32}
    yield aten.to.device, (x, "cpu", torch.float32), {}
    yield aten.to.other, (x, x[0].float()), {}
    yield aten.type_as.default, (x, x.float()), {}
    for dropout in (aten.dropout.default, aten.alpha_dropout.default, aten.feature_dropout.default):
        yield dropout, (x, 0.5, False), {}
    for same in (aten.contiguous, aten.detach, aten.alias, aten.lift_fresh_copy, aten.positive, aten.resolve_conj,
                 aten.resolve_neg):  # fmt: skip
        yield same.default, (x,), {}
    yield aten.copy.default, (x, x[0]), {}


@rule(
    aten.clone.default, aten.contiguous.default, aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default,
    aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default, aten.to.dtype, aten.to.dtype_layout,
    aten.to.device, aten.to.other, aten._to_copy.default, aten.type_as.default, aten.positive.default,
    aten.resolve_conj.default, aten.resolve_neg.default, aten.copy.default,
    samples=_identity_samples,
)  # fmt: skip
def identity(site: Site) -> Dims:
    """Operators that return the numbers they are given: copies, casts, dropout in evaluation mode."""
    if site.node.target is aten.copy.default:  # the source is broadcast to the destination's shape
        site.operands(site.arg("src"), transfer=join)
        return site.broadcast([site.dims("self"), site.dims("src")])
    first = next(node for node in site.tensors() if node is not None)
    site.operands(first, transfer=_cast(first.meta["val"].dtype, site.node.meta["val"].dtype))
    if "dropout" in str(site.node.target) and site.arg("train"):
        site.pin(site.dims(first), "dropout in training mode draws random numbers in the order of positions")
    if site.node.target not in _CASTS:
        site.record.constant = site.records[first].constant
    return site.dims(first)


def _cast(old: torch.dtype, new: torch.dtype) -> Transfer:
    """Of a cast: one half becomes zero among whole numbers, and what is too small is false."""
    if new.is_complex and not old.is_complex:
        return lambda v: max(v[0], Value.FINITE) if v[0] is not Value.ZERO else v[0]
    if new.is_floating_point or new.is_complex or (new is torch.bool and not old.is_floating_point):
        return join
    return _rounded


def _rounded(values: list[Value]) -> Value:
    return Value.NONNEGATIVE if values[0] is Value.POSITIVE else values[0]
