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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch


class Value(enum.IntEnum):
    """A set of numbers; each but the first two contains all finite ones before it that fit its sign."""

    ZERO = 0
    """Of either sign."""
    POSITIVE = 1
    """Above zero, if it were not rounded: of floating dtypes, a number too small for them is zero all the same."""
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


_REAL = (-30.0, -5.3, -2.0, -1.4, -1.0, -0.5, -0.1, -0.0, 0.0, 1e-3, 0.1, 0.5, 1.0, 1.4, 2.0, 3.0, 5.3, 7.0, 30.0)
_LARGE = (64.5, 100.0, 1e3, 4097.0, 12345.6, 1e6, 1e9, 1e15, 1e30)
_COMPLEX = (-30.0, -2.0, -0.5, -0.0, 0.0, 1e-3, 1.0, 7.0)
_SIZES = (1, 2, 3, 7)
_OTHER_SIZES = (0, 64, 1000, 100_000, 1_000_000_000)
_FRACTIONS = (1e-3, 0.1, 0.5, 1.4)

_LARGEST = 1e6
"""Numbers in a call beyond this size are sampled around as large ones are: they often stand for infinity."""

_HIGHEST = torch.finfo(torch.float64).max

MAX_MEASURED = 4
"""Operators of more tensor operands than this are not measured: the grid of samples would be too large."""
MAX_UNKNOWN = 2
"""Nor are those of more numbers that follow sizes."""


class Tier(enum.IntEnum):
    """What a sample is taken for, and so what a result on it counts for."""

    PLAIN = 0
    """An ordinary number of the class: every result counts."""
    LARGE = 1
    """A large number: a result that is not finite is an overflow, which the full model vouches against."""
    LIMIT = 2
    """What the class leaves out and floating numbers meet all the same: infinities, and zero by underflow. Whole
    numbers: those whose products wrap around. They tell that a result is not always zero."""


def samples(value: Value, dtype: torch.dtype, around: Iterable[float] = ()) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample numbers of a class, as a 1-D tensor of a dtype of the same kind (float64, int64 or bool), and tiers.

    Args:
        around: numbers next to which something may change (``x > 50``): their neighbours that fit the class are added.
    """
    if dtype.is_complex:
        return _complex_samples(value, around)
    if value is Value.ZERO:
        plain, large, limits = [0.0, -0.0], [], []
    else:
        fits = {Value.POSITIVE: _above, Value.NONNEGATIVE: _not_below}.get(value, _any)
        near = [(c, x) for c in around for x in (c, c - 1, c + 1, c / 2, c * 2) if fits(x) and abs(x) <= _HIGHEST]
        plain = [x for x in _REAL if fits(x)] + [x for c, x in near if abs(c) <= _LARGEST]
        large = [x for c in _LARGE for x in (c, -c) if fits(x)] + [x for c, x in near if abs(c) > _LARGEST]
        limits = [math.inf, math.nan, *([0.0] if value is Value.POSITIVE else [-math.inf] if fits(-1.0) else [])]
        if value > Value.FINITE:
            plain += [-math.inf] if value is Value.MASKED else [math.inf, -math.inf, math.nan]
    if dtype.is_floating_point:
        return _tiered([[float(x) for x in tier] for tier in (plain, large, limits)], torch.float64)
    if dtype is torch.bool:
        return _tiered([sorted({float(x != 0) for x in plain if x == int(x if math.isfinite(x) else 0)})], dtype)
    wrapping = [] if value is Value.ZERO else [x for x in (2**40 + 1, 2**62) for x in (x, -x) if fits(float(x))]
    return _tiered([*map(_whole, (plain, large)), wrapping], torch.int64)


def _any(_: float) -> bool:
    return True


def _above(number: float) -> bool:
    return number > 0


def _not_below(number: float) -> bool:
    return number >= 0


def _whole(numbers: Iterable[float]) -> list[int]:
    """Whole numbers among some, those that int64 holds."""
    return sorted({int(x) for x in numbers if -(2**63) <= x < 2**63 and x == int(x)})


def _tiered(tiers: Sequence[Sequence[Any]], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    counts = torch.tensor([len(tier) for tier in tiers])
    chosen = torch.tensor([x for tier in tiers for x in tier], dtype=dtype)
    return chosen, torch.arange(len(tiers)).repeat_interleave(counts)


def _complex_samples(value: Value, around: Iterable[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a complex number nothing but zero is known by its class: either part may have any sign."""
    if value is Value.ZERO:
        plain, large, limits = [complex(a, b) for a in (0.0, -0.0) for b in (0.0, -0.0)], [], []
    else:
        parts = [*_COMPLEX, *(x for c in around if abs(c) <= _LARGEST for x in (c, c - 1, c + 1))]
        plain = [complex(a, b) for a in parts for b in parts]
        high = [x for c in (*_LARGE, *(c for c in around if abs(c) > _LARGEST)) for x in (c, 2 * c, -2 * c)]
        large = [z for x in high if math.isfinite(x) for z in (complex(x, 0.5), complex(0.5, x), complex(x, -x))]
        limits = [complex(a, b) for a in (0.0, math.inf, -math.inf, math.nan) for b in (0.0, math.inf, math.nan)][1:]
        if value > Value.FINITE:
            plain += limits
    return _tiered([plain, large, limits], torch.complex128)


def classify(result: torch.Tensor) -> Value:
    """The class that a tensor of results belongs to; complex ones are zero, or any."""
    if result.is_complex():
        found = classify(torch.view_as_real(result.resolve_conj()))
        return found if found is Value.ZERO else max(Value.FINITE, found)
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
    function: Callable[..., Any],
    operands: Sequence[tuple[Value, torch.dtype]],
    around: Iterable[float] = (),
    tier: Tier = Tier.PLAIN,
) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
    """Run ``function`` on all combinations of samples of its tensor operands.

    Args:
        function: takes as many tensors of equal shape as there are operands.
        operands: the class and dtype of each.
        around: see :func:`samples`.
        tier: what the combinations are at least.

    Returns:
        Each result with the tier of each of its numbers; None where the operator does not run on these samples, or is
        not point-wise.
    """
    axes = [samples(value, dtype, around) for value, dtype in operands]
    if not axes:
        return None
    # meshgrid wants one dtype: grids of positions, then the samples at them
    grids = [g.reshape(-1) for g in torch.meshgrid(*(torch.arange(len(axis)) for axis, _ in axes), indexing="ij")]
    tiers = torch.stack([axis[grid] for (_, axis), grid in zip(axes, grids, strict=True)]).amax(0).clamp(min=tier)
    try:
        result = function(*(axis[grid] for (axis, _), grid in zip(axes, grids, strict=True)))
    except Exception:  # an operator that cannot run on samples tells nothing
        return None
    outputs = [o for o in (result if isinstance(result, (tuple, list)) else (result,)) if isinstance(o, torch.Tensor)]
    return [(output, tiers) for output in outputs] if all(o.shape == tiers.shape for o in outputs) else None


def conclude(result: torch.Tensor, tiers: torch.Tensor) -> Value:
    """The class of results on samples of these tiers."""
    finite = torch.isfinite(result)
    floating = result.is_floating_point() or result.is_complex()
    plain, large, limits = result[tiers == Tier.PLAIN], result[(tiers == Tier.LARGE) & finite], result[
        (tiers == Tier.LIMIT) & finite
    ]  # fmt: skip
    found = classify(plain)
    for more in (large, limits):
        if not floating and more is limits and found is not Value.ZERO and result.dtype is not torch.bool:
            continue  # what wraps around has no sign
        if floating and found is Value.POSITIVE:
            more = more[more != 0]  # by underflow, which the class allows for
        if more.numel():
            found = join([found, classify(more)])
    return found


def measure_operator(
    operator: Any, template: tuple[Any, ...], keywords: tuple[tuple[str, Any], ...], classes: tuple[Value, ...]
) -> Value:
    """:func:`measure` of an aten operator, cached.

    Args:
        operator: the overload.
        template: its positional arguments; an :class:`Operand` stands for a tensor operand of its dtype, a
            :class:`Number` for a number that is not known.
        keywords: its keyword arguments, the same way.
        classes: one class for each tensor operand, in order.
    """
    written = repr((template, keywords))  # 0.0 and -0.0 are equal, and so are 1 and True
    return _measure_operator(operator, template, keywords, classes, written)


@functools.lru_cache(maxsize=4096)
def _measure_operator(
    operator: Any,
    template: tuple[Any, ...],
    keywords: tuple[tuple[str, Any], ...],
    classes: tuple[Value, ...],
    written: str,
) -> Value:
    arguments = (*template, *(v for _, v in keywords))
    operands, unknown = _standing(arguments, Operand), _standing(arguments, Number)
    if len(operands) > MAX_MEASURED or len(unknown) > MAX_UNKNOWN or "polynomial" in str(operator):
        return Value.UNKNOWN  # polynomials of a high degree take for ever
    results: list[tuple[torch.Tensor, torch.Tensor]] = []
    for chosen in itertools.product(*(number.values() for number in unknown)):
        values = [value for value, _ in chosen]

        def call(*tensors: torch.Tensor, values: list[Any] = values) -> Any:
            left, others = iter(tensors), iter(values)
            args = [_filled(a, left, others) for a in template]
            kwargs = {k: _filled(v, left, others) for k, v in keywords}
            return operator(*args, **kwargs)

        # without them ``ids == 50256`` would look as if it were never true
        around = [x for x in numbers((*arguments, *values)) if abs(x) <= _HIGHEST]
        tier = max((tier for _, tier in chosen), default=Tier.PLAIN)
        pairs = [(value, operand.dtype) for value, operand in zip(classes, operands, strict=True)]
        results += measure(call, pairs, around, tier) or ()
    by_output: dict[torch.dtype, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for result, tiers in results:
        by_output.setdefault(result.dtype, []).append((result, tiers))
    found = [conclude(*map(torch.cat, zip(*pairs, strict=True))) for pairs in by_output.values()]
    return join(found) if found else Value.UNKNOWN


def _standing(arguments: object, kind: type[Any]) -> list[Any]:
    """What stands for something among arguments, nested ones included."""
    if isinstance(arguments, (tuple, list)):
        return [found for argument in arguments for found in _standing(argument, kind)]
    return [arguments] if isinstance(arguments, kind) else []


def _filled(argument: Any, tensors: Iterator[torch.Tensor], values: Iterator[Any]) -> Any:
    """An argument of a template with what stands for something filled in."""
    if isinstance(argument, tuple):
        return tuple(_filled(one, tensors, values) for one in argument)
    if isinstance(argument, Operand):
        return next(tensors)
    return next(values) if isinstance(argument, Number) else argument


def numbers(arguments: object) -> list[int | float]:
    """The numbers among arguments, nested ones included."""
    if isinstance(arguments, (tuple, list)):
        return [number for argument in arguments for number in numbers(argument)]
    return [arguments] if isinstance(arguments, (int, float)) and not isinstance(arguments, bool) else []


class Operand:
    """Stands for a tensor operand in an argument template."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __hash__(self) -> int:
        return hash(self.dtype)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Operand) and other.dtype == self.dtype

    def __repr__(self) -> str:
        return f"Operand({self.dtype})"


@dataclass(frozen=True)
class Number:
    """Stands for a number that is known at no time before the call, such as the size of an input."""

    kind: type[int] | type[float] | type[bool]
    positive: bool = False
    """Whether it is above zero."""
    nonnegative: bool = False

    def values(self) -> list[tuple[int | float | bool, Tier]]:
        """Values it may have; the unusual ones are taken for what full models do not meet in a divisor."""
        if self.kind is bool:
            return [(False, Tier.PLAIN), (True, Tier.PLAIN)]
        usual: list[int | float] = [*_SIZES, *(-x for x in _SIZES)]
        other: list[int | float] = [*_OTHER_SIZES, *(-x for x in _OTHER_SIZES)]
        if self.kind is float:
            usual, other = [*map(float, usual)], [*map(float, other), *_FRACTIONS, *(-x for x in _FRACTIONS)]
        fits = _above if self.positive else _not_below if self.nonnegative else _any
        return [(x, t) for xs, t in ((usual, Tier.PLAIN), (other, Tier.LARGE)) for x in xs if fits(x)]
