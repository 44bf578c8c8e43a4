"""What is taken for zero is zero: of inputs and buffers of any size, sign, part and finiteness."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from shearfx.analysis import trace
from shearfx.graph import Graph
from shearfx.values import MAX_MEASURED, Number, Operand, Tier, Value, measure_operator, numbers

aten = torch.ops.aten
inf = math.inf


class Masked(nn.Module):
    """``sum(cos(W x + b) * mask)``: if the mask is zero for certain, any row of ``W`` is as good as zero."""

    seen: Tensor

    def __init__(self, mask: Callable[[Tensor, Tensor, Tensor], Tensor], seen: Tensor) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.out = nn.Linear(6, 12), nn.Linear(1, 3)
        self.register_buffer("seen", seen)
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        out: Tensor = self.out((y.cos() * self.mask(self.seen, x, y)).sum(-1, keepdim=True))
        return out


def positions(x: Tensor) -> Tensor:
    return torch.ones(x.shape[:1], dtype=torch.int64).cumsum(0)[:, None]


def part(z: Tensor) -> Tensor:
    return torch.view_as_complex(z.unflatten(-1, (6, 2))).imag.sum()


MASKS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], Tensor]] = {
    "a remainder of a size": (lambda m, x, y: m % x.shape[0], torch.arange(12)),
    "before the last": (lambda m, x, y: positions(x) < x.shape[0], torch.zeros(1)),
    "a power of a size": (lambda m, x, y: (0 * m + 0) ** (x.shape[0] - 3), torch.zeros(12)),
    "a fraction of a size": (lambda m, x, y: m ** (x.shape[0] / 2 - 0.5) - m, torch.rand(12)),
    "a time": (lambda m, x, y: m > 1_500_000_000, torch.full((12,), 1_600_000_000)),
    "the largest number": (lambda m, x, y: m == 2**63 - 1, torch.full((12,), 2**63 - 1)),
    "a high threshold": (lambda m, x, y: nn.functional.threshold(m, 2e6, 0), torch.full((12,), 3e6)),
    "a very low score": (lambda m, x, y: m < -1e30, torch.full((12,), torch.finfo(torch.float32).min)),
    "hundreds": (lambda m, x, y: m.round(decimals=-2), torch.full((12,), 270.0)),
    "the high bits": (lambda m, x, y: m.abs() >> 6, torch.full((12,), 1000)),
    "very high bits": (lambda m, x, y: m >> 50, torch.full((12,), 2**60)),
    "an imaginary part": (lambda m, x, y: part(m), torch.rand(12)),
    "that of a spectrum": (lambda m, x, y: torch.fft.rfft(m)[1].imag, torch.rand(12)),
    "infinite": (lambda m, x, y: m.isinf(), torch.full((12,), -inf)),
    "equal to infinity": (lambda m, x, y: m == -inf, torch.full((12,), -inf)),
    "not below infinity": (lambda m, x, y: ~(m < inf), torch.full((12,), inf)),
    "not finite": (lambda m, x, y: ~m.isfinite(), torch.full((12,), inf)),
    "not a number": (lambda m, x, y: m.isnan(), torch.full((12,), math.nan)),
    "unlike itself": (lambda m, x, y: m != m, torch.full((12,), math.nan)),
    "an underflow of softmax": (lambda m, x, y: (m.softmax(-1) == 0).sum(), torch.tensor([0.0, -1e9])),
    "an underflow, cast": (lambda m, x, y: ~m.exp().bool(), torch.full((12,), -1e9)),
    "a small exponential": (lambda m, x, y: m.exp() < 1e-6, torch.full((12,), -20.0)),
    "the angle of minus zero": (lambda m, x, y: torch.atan2(y, -y), torch.zeros(1)),
    "the sign of minus zero": (lambda m, x, y: torch.signbit(-y), torch.zeros(1)),
    "the angle of a complex minus zero": (lambda m, x, y: torch.complex(-y, y).angle(), torch.zeros(1)),
    "the sign of a number written as minus zero": (
        lambda m, x, y: (torch.copysign(m, 0.0) < 0) | (torch.copysign(m, -0.0) < 0), torch.ones(12),
    ),
    "the imaginary part of one": (
        lambda m, x, y: torch.view_as_real(torch.ones(12, dtype=torch.cdouble))[:, 1] == 0, torch.zeros(1),
    ),
}  # fmt: skip


def exact(graph: Graph) -> list[str]:
    return [group.name for group in graph.groups if group.certificate in ("exact", "compensated")]


def analysed(name: str) -> Graph:
    mask, seen = MASKS[name]
    model = Masked(mask, seen.double() if seen.is_floating_point() else seen).double()
    return trace(model, torch.randn(3, 6, dtype=torch.float64))


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_that_is_rarely_true_is_not_always_zero(name: str) -> None:
    graph = analysed(name)
    assert not exact(graph)
    assert not any("failed" in pin.reason for pin in graph.pins)


SURELY: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "times zero": lambda m, x, y: 0 * m,
    "over the number of rows": lambda m, x, y: torch.zeros_like(m) / x.shape[0],
    "a power of two": lambda m, x, y: torch.zeros_like(m) ** 2,
    "without infinities": lambda m, x, y: torch.zeros_like(m).nan_to_num(),
    "clamped": lambda m, x, y: torch.zeros_like(m).clamp(-1, 1),
    "a tangent": lambda m, x, y: torch.zeros_like(m).tanh() * x.shape[0],
    "over an exponential": lambda m, x, y: torch.zeros_like(m) / m.exp(),
}


@pytest.mark.parametrize("name", SURELY)
def test_what_is_zero_for_certain_is_known_to_be(name: str) -> None:
    model = Masked(SURELY[name], torch.rand(12)).double()
    assert exact(trace(model, torch.randn(3, 6, dtype=torch.float64)))


# -- measured against random numbers ----------------------------------------------------------------------

REAL = torch.float64
WHOLE = torch.int64
COMPLEX = torch.complex128
_X, _N, _Z = Operand(REAL), Operand(WHOLE), Operand(COMPLEX)
_SMALL = st.sampled_from([0, 1, 2, 3, 6, 20, 50])
_ANY = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-30, 1e30, 64.0, 1e9]),
    st.floats(-1e12, 1e12),
    st.floats(-30, 30),
)


def _held(number: float) -> int:
    """A whole number that int64 holds, and those next to it."""
    return int(max(-(2.0**62), min(number, 2.0**62)))


OPERATORS: dict[str, tuple[Any, Callable[[Any], tuple[Any, ...]]]] = {
    "greater": (aten.gt.Scalar, lambda c: (_X, c)),
    "less": (aten.lt.Scalar, lambda c: (_X, c)),
    "equal": (aten.eq.Scalar, lambda c: (_X, c)),
    "whole, greater": (aten.gt.Scalar, lambda c: (_N, _held(c))),
    "whole, equal": (aten.eq.Scalar, lambda c: (_N, _held(c))),
    "threshold": (aten.threshold.default, lambda c: (_X, c, 0.0)),
    "hard shrink": (aten.hardshrink.default, lambda c: (_X, abs(c))),
    "clamp": (aten.clamp.default, lambda c: (_X, 0.0, c)),
    "copysign": (aten.copysign.Scalar, lambda c: (_X, c)),
    "sign": (aten.signbit.default, lambda c: (_X,)),
    "infinite": (aten.isinf.default, lambda c: (_X,)),
    "not a number": (aten.isnan.default, lambda c: (_X,)),
    "angle": (aten.atan2.default, lambda c: (_X, _X)),
    "angle of complex": (aten.angle.default, lambda c: (_Z,)),
    "imaginary part": (aten.imag.default, lambda c: (_Z,)),
    "size of complex": (aten.abs.default, lambda c: (_Z,)),
    "floor": (aten.floor.default, lambda c: (_X,)),
    "exponential": (aten.exp.default, lambda c: (_X,)),
    "negative": (aten.neg.default, lambda c: (_X,)),
    "product": (aten.mul.Tensor, lambda c: (_X, _X)),
    "less than another": (aten.lt.Tensor, lambda c: (_X, _X)),
    "logical not": (aten.logical_not.default, lambda c: (_X,)),
}


def drawn(data: st.DataObject, value: Value, dtype: torch.dtype, near: list[float]) -> Any:
    """A number of a class, of any size; floating ones that the class calls positive may have become zero."""
    if value is Value.ZERO:
        signs = st.sampled_from([0.0, -0.0])
        return data.draw(st.builds(complex, signs, signs) if dtype.is_complex else signs)
    if dtype.is_complex:
        return complex(data.draw(_ANY), data.draw(_ANY))
    number = data.draw(st.one_of(_ANY, st.sampled_from([x for c in near for x in (c, c + 1, c - 1)] or [1.0])))
    if dtype is WHOLE:
        number = _held(number)
        assume(value is not Value.POSITIVE or number != 0)
    elif value is Value.FINITE:
        number = data.draw(st.sampled_from([number] * 7 + [inf, -inf, math.nan]))
    return abs(number) if value in (Value.POSITIVE, Value.NONNEGATIVE) else number


@given(data=st.data())
def test_what_is_measured_as_zero_is_zero_of_any_numbers(data: st.DataObject) -> None:
    operator, template = OPERATORS[data.draw(st.sampled_from(sorted(OPERATORS)))]
    arguments = template(data.draw(st.one_of(_ANY, _SMALL)))
    operands = [a for a in arguments if isinstance(a, Operand)]
    known = st.sampled_from([Value.ZERO, Value.POSITIVE, Value.NONNEGATIVE, Value.FINITE])
    classes = tuple(data.draw(known) for _ in operands)
    claimed = measure_operator(operator, arguments, (), classes)
    near = [float(n) for n in numbers(arguments)]
    tensors = iter(
        torch.tensor([drawn(data, value, a.dtype, near)], dtype=a.dtype)
        for a, value in zip(operands, classes, strict=True)
    )
    result = operator(*(next(tensors) if isinstance(a, Operand) else a for a in arguments))
    if claimed is Value.ZERO and bool(torch.isfinite(result).all()):
        assert not bool(result.any()), (operator, arguments, classes)
    if claimed in (Value.POSITIVE, Value.NONNEGATIVE) and bool(torch.isfinite(result).all()):
        assert bool((result >= 0).all()), (operator, arguments, classes)


@given(size=st.integers(1, 5000), offset=st.integers(-5, 5), value=st.floats(-100, 100))
def test_numbers_that_follow_sizes_are_none_in_particular(size: int, offset: int, value: float) -> None:
    for operator, operand in ((aten.pow.Tensor_Scalar, 0.0), (aten.remainder.Scalar, value), (aten.lt.Scalar, value)):
        known = Value.ZERO if operand == 0.0 else Value.FINITE
        claimed = measure_operator(operator, (_X, Number(int)), (), (known,))
        result = operator(torch.tensor([operand], dtype=REAL), size + offset)
        assert claimed is not Value.ZERO or not bool(torch.isfinite(result).all()) or not bool(result.any())


@pytest.mark.parametrize("kind", [int, float, bool])
@pytest.mark.parametrize(("positive", "nonnegative"), [(False, False), (False, True), (True, True)])
def test_a_number_has_values_of_its_sign(kind: Any, positive: bool, nonnegative: bool) -> None:
    values = Number(kind, positive, nonnegative).values()
    assert any(tier is Tier.PLAIN for _, tier in values)
    assert all(type(x) is kind for x, _ in values)
    if kind is not bool:
        assert (0 in [x for x, _ in values]) is not positive
        assert any(x < 0 for x, _ in values) is not nonnegative


def test_sizes_that_divide_are_not_zero() -> None:
    assert measure_operator(aten.div.Tensor, (_X, Number(int)), (), (Value.ZERO,)) is Value.ZERO
    assert measure_operator(aten.div.Tensor, (_X, Number(int)), (), (Value.FINITE,)) is Value.FINITE


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        (aten.special_hermite_polynomial_h.default, (_X, _X)),  # of a degree of a thousand million
        (aten.mul.Tensor, (_X,) * (MAX_MEASURED + 1)),
        (aten.clamp.default, (_X, Number(int), Number(int), Number(int))),
        (aten.bitwise_not.default, (_X,)),
        (aten.full.default, ([2], 0.0)),
        (aten.nonzero.default, (_X,)),
    ],
)
def test_what_cannot_be_measured_is_not_known(operator: Any, arguments: tuple[Any, ...]) -> None:
    arguments = tuple(tuple(a) if isinstance(a, list) else a for a in arguments)
    classes = tuple(Value.ZERO for a in arguments if isinstance(a, Operand))
    assert measure_operator(operator, arguments, (), classes) is Value.UNKNOWN


def test_overflow_is_left_to_the_full_model_and_underflow_is_not_told_from_positive() -> None:
    assert measure_operator(aten.exp.default, (_X,), (), (Value.FINITE,)) is Value.POSITIVE
    assert measure_operator(aten.log.default, (_X,), (), (Value.POSITIVE,)) is Value.FINITE
    assert measure_operator(aten.log.default, (_X,), (), (Value.NONNEGATIVE,)) is Value.MASKED
    assert measure_operator(aten.gt.Scalar, (_X, 0), (), (Value.POSITIVE,)) is Value.NONNEGATIVE
