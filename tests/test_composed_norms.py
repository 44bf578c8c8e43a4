"""Root-mean-square norms written out: what is taken for one computes what one does, and looks like it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from shearfx.analysis import trace
from shearfx.testing import assert_sound

WIDTH = 12
Form = Callable[[nn.Parameter, Tensor], Tensor]


class Normed(nn.Module):
    """A linear layer, what a form makes of it with a weight, and another linear layer."""

    def __init__(self, form: Form, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.out = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 5)
        self.double()
        self.weight = nn.Parameter(torch.randn(WIDTH, dtype=dtype) + 1)
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        normed = self.form(self.weight, self.inner(x))
        out: Tensor = self.out(normed.real.double() + normed.imag if normed.is_complex() else normed)
        return out


def root(y: Tensor, epsilon: float = 1e-2, alpha: float = 1) -> Tensor:
    return torch.rsqrt(torch.add(y.pow(2).mean(-1, keepdim=True), epsilon, alpha=alpha))


def operator(y: Tensor, weight: Tensor, epsilon: float = 1e-3) -> Tensor:
    return functional.rms_norm(y, (WIDTH,), weight, epsilon)


def the_same_factor(w: Tensor, y: Tensor) -> Tensor:
    factor = 1 + w
    return y * root(y) * factor + y * factor


def two_epsilons(w: Tensor, y: Tensor) -> Tensor:
    factor, z = 1 + w, y.cos() * y
    return y * root(y) * factor + z * root(z, 1e-3) * factor


def a_shared_copy(w: Tensor, y: Tensor) -> Tensor:
    copy = w.clone()
    return operator(y, copy) + y * copy


def root_squared(w: Tensor, y: Tensor) -> Tensor:
    once = root(y)
    return (once * once) * w * y


def of_another(w: Tensor, y: Tensor) -> Tensor:
    return y.cos() * y * root(y) * w


UNLIKE: dict[str, Form] = {
    "the factor is used elsewhere": the_same_factor,
    "the factor is used by two norms": two_epsilons,
    "a copy of the weight is used elsewhere": a_shared_copy,
    "the root is squared": root_squared,
    "something else is normalised": of_another,
    "the offset is multiplied": lambda w, y: y * root(y) * torch.add(w, 1.0, alpha=3),
    "the epsilon is multiplied": lambda w, y: y * root(y, 1e-2, 30) * w,
    "the weight normalises itself": lambda w, y: y * operator(w, w),
    "the result is rounded": lambda w, y: (9 * y * root(9 * y)).to(torch.int64) * w,
    "what is normalised is rounded": lambda w, y: (y * 9 * root(y * 9)).to(torch.int64) * w,
    "the weight is rounded": lambda w, y: y * root(y) * (3 * w).to(torch.int64),
    "the weight is cast to whole numbers": lambda w, y: y * root(y) * w.to(torch.int64),
}

ALIKE: dict[str, Form] = {
    "plain": lambda w, y: y * root(y) * w,
    "with an offset": lambda w, y: (1 + w) * (y * root(y)),
    "the operator": lambda w, y: operator(y, w),
    "through casts and views": lambda w, y: (
        (y.clone() * root(y.view(-1, 2, 6).reshape(-1, WIDTH))).to(torch.float64) * w.clone()
    ),
    "divided by a root": lambda w, y: y / (y.square().mean(-1, keepdim=True) + 1e-2).sqrt() * w,
}


@pytest.mark.parametrize("name", UNLIKE)
def test_what_is_no_norm_is_not_compensated_as_one(name: str) -> None:
    model, x = Normed(UNLIKE[name]), torch.randn(3, 6, dtype=torch.float64)
    assert not trace(model, x).composed
    assert assert_sound(model, x, plans=4).moved > 0


@pytest.mark.parametrize("name", ALIKE)
def test_norms_written_in_many_ways_are_found(name: str) -> None:
    model, x = Normed(ALIKE[name]), torch.randn(3, 6, dtype=torch.float64)
    assert [norm.weight for norm in trace(model, x).composed] == ["weight"]
    assert assert_sound(model, x, plans=4).moved > 0


def test_a_complex_weight_is_not_compensated() -> None:
    model = Normed(ALIKE["plain"], torch.complex128)
    x = torch.randn(3, 6, dtype=torch.float64)
    assert not trace(model, x).composed
    assert assert_sound(model, x, plans=4).moved > 0
