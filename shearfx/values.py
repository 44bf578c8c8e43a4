"""What is known of the numbers in a slice of a tensor: the abstract values behind certificates.

Is cutting a structure the same as zeroing it? To answer, the zeroed slice is followed through the graph: each
operator maps what is known of its operands to what is known of its result. For point-wise operators this map is
*measured*: the operator runs on samples of each operand's class and its results are classified.
"""

from __future__ import annotations

import enum
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch


class Value(enum.IntEnum):
    """A set of numbers; each but the first two contains all finite ones before it that fit its sign."""

    ZERO = 0
    POSITIVE = 1
    NONNEGATIVE = 2
    FINITE = 3
    MASKED = 4
    """Finite, or minus infinity: scores that a mask was added to."""
    UNKNOWN = 5
    """Possibly infinite or not a number."""


def join(values: Iterable[Value]) -> Value:
    """The smallest class that contains all the given ones."""
    present = set(values)
    if not present:
        return Value.FINITE
    if len(present) == 1:
        return present.pop()
    top = max(present)
    return Value.NONNEGATIVE if top is Value.POSITIVE else top


def multiply(values: Iterable[Value]) -> Value:
    """The class of a product."""
    present = set(values)
    if Value.MASKED in present:
        return Value.UNKNOWN
    for value in (Value.UNKNOWN, Value.ZERO, Value.FINITE, Value.NONNEGATIVE):
        if value in present:
            return value
    return Value.POSITIVE


def add(values: Iterable[Value]) -> Value:
    """The class of a sum."""
    present = set(values) - {Value.ZERO}
    if not present:
        return Value.ZERO
    top = max(present)
    if top is Value.NONNEGATIVE and Value.POSITIVE in present:
        return Value.POSITIVE
    return top


_REAL = (-30.0, -5.3, -2.0, -1.4, -1.0, -0.5, -0.1, 0.0, 1e-3, 0.1, 0.5, 1.0, 1.4, 2.0, 3.0, 5.3, 7.0, 30.0)
_SAMPLES = {
    Value.ZERO: (0.0,),
    Value.POSITIVE: tuple(x for x in _REAL if x > 0),
    Value.NONNEGATIVE: tuple(x for x in _REAL if x >= 0),
    Value.FINITE: _REAL,
    Value.MASKED: (*_REAL, float("-inf")),
    Value.UNKNOWN: (*_REAL, float("inf"), float("-inf"), float("nan")),
}


_LARGEST = 1e6
"""Numbers in a call up to this size are sampled around; beyond, they stand for infinity."""

MAX_MEASURED = 4
"""Operators of more tensor operands than this are not measured: the grid of samples would be too large."""


def samples(value: Value, dtype: torch.dtype, around: Iterable[float] = ()) -> torch.Tensor:
    """Sample numbers of a class, as a 1-D tensor of a dtype of the same kind (float64, int64 or bool).

    Args:
        around: numbers next to which something may change (``x > 50``): their neighbours that fit the class are added.
    """
    low = {Value.ZERO: math.inf, Value.POSITIVE: 0.0, Value.NONNEGATIVE: 0.0}.get(value, -math.inf)
    chosen = _SAMPLES[value] + tuple(x for c in around for x in (c - 1, c, c + 1) if x > low)
    if dtype.is_complex:
        return torch.tensor(chosen, dtype=torch.complex128)
    if dtype.is_floating_point:
        return torch.tensor(chosen, dtype=torch.float64)
    finite = [x for x in chosen if math.isfinite(x)]
    whole = torch.tensor(sorted({int(x) for x in finite if x == int(x)}), dtype=torch.int64)
    return whole.to(torch.bool).unique() if dtype is torch.bool else whole


def classify(result: torch.Tensor) -> Value:
    """The class that a tensor of results belongs to."""
    if result.is_complex():
        result = torch.view_as_real(result.resolve_conj())
    if result.is_floating_point() and not bool(torch.isfinite(result).all()):
        return Value.UNKNOWN if bool((result.isnan() | result.isposinf()).any()) else Value.MASKED
    if not bool(result.any()):
        return Value.ZERO
    if bool((result > 0).all()):
        return Value.POSITIVE
    return Value.NONNEGATIVE if bool((result >= 0).all()) else Value.FINITE


def of_number(number: Any) -> Value:
    """The class of a scalar argument."""
    if isinstance(number, (bool, int, float)):
        return classify(torch.tensor([number], dtype=torch.float64))
    return Value.FINITE


def measure(
    function: Callable[..., Any], operands: Sequence[tuple[Value, torch.dtype]], around: Iterable[float] = ()
) -> Value:
    """Run ``function`` on all combinations of samples of its tensor operands and classify the results.

    Args:
        function: takes as many tensors of equal shape as there are operands.
        operands: the class and dtype of each.
        around: see :func:`samples`.
    """
    axes = [samples(value, dtype, around) for value, dtype in operands]
    # meshgrid wants one dtype: grids of positions, then the samples at them
    grids = torch.meshgrid(*(torch.arange(len(axis)) for axis in axes), indexing="ij")
    try:
        result = function(*(axis[grid.reshape(-1)] for axis, grid in zip(axes, grids, strict=True)))
    except Exception:  # an operator that cannot run on samples tells nothing
        return Value.UNKNOWN
    outputs = result if isinstance(result, (tuple, list)) else (result,)
    return join(classify(output) for output in outputs if isinstance(output, torch.Tensor))


@functools.lru_cache(maxsize=4096)
def measure_operator(
    operator: Any, template: tuple[Any, ...], keywords: tuple[tuple[str, Any], ...], classes: tuple[Value, ...]
) -> Value:
    """:func:`measure` of an aten operator, cached.

    Args:
        operator: the overload.
        template: its positional arguments; a ``torch.dtype`` stands for a tensor operand of that dtype.
        keywords: its keyword arguments, the same way.
        classes: one class for each tensor operand, in order.
    """
    operands = [a for a in itertools.chain(template, (v for _, v in keywords)) if isinstance(a, Operand)]
    if len(operands) > MAX_MEASURED:
        return Value.UNKNOWN

    def call(*tensors: torch.Tensor) -> Any:
        remaining = iter(tensors)
        args = [next(remaining) if isinstance(a, Operand) else a for a in template]
        kwargs = {k: next(remaining) if isinstance(v, Operand) else v for k, v in keywords}
        return operator(*args, **kwargs)

    # without them ``ids == 50256`` would look as if it were never true
    around = [x for x in numbers((*template, *(v for _, v in keywords))) if abs(x) <= _LARGEST]
    return measure(call, [(value, operand.dtype) for value, operand in zip(classes, operands, strict=True)], around)


def numbers(arguments: object) -> list[float]:
    """The numbers among arguments, nested ones included."""
    if isinstance(arguments, (tuple, list)):
        return [number for argument in arguments for number in numbers(argument)]
    return [float(arguments)] if isinstance(arguments, (int, float)) and not isinstance(arguments, bool) else []


class Operand:
    """Stands for a tensor operand in an argument template."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __hash__(self) -> int:
        return hash(self.dtype)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Operand) and other.dtype == self.dtype
