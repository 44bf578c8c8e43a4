"""Small modules that once were cut wrongly, each made to fool one step of the analysis."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from shearfx.errors import PlanError
from shearfx.testing import assert_sound


class Made(nn.Module):
    """Three layers of 12, 12 and 6 outputs, what a function makes of them, and a layer that reads 12."""

    def __init__(self, made: Callable[[Made, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(6, 6)
        self.out = nn.Linear(12, 5)
        self.square = nn.Parameter(torch.randn(4, 4))
        self.made = made

    def forward(self, x: Tensor) -> Tensor:
        return self.made(self, x)


def tail(m: Made, x: Tensor) -> Tensor:
    """First halves cannot be reconciled, second ones are added index by index."""
    y = m.a(x)
    mixed = y[:, :6].view(-1, 2, 3).transpose(1, 2).reshape(-1, 6)
    found: Tensor = m.out(torch.cat([mixed, m.c(x)], 1) + y)
    return found


def open_sum(m: Made, x: Tensor) -> Tensor:
    """A running sum over batch and features."""
    found: Tensor = m.out(m.a(x) * torch.ones(x.shape[0] * 12, dtype=x.dtype).cumsum(0).view(-1, 12))
    return found


def summed_ellipsis(m: Made, x: Tensor) -> Tensor:
    return torch.einsum("b...,bo->bo", m.a(x).cos(), m.b(x))


def traced_diagonal(m: Made, x: Tensor) -> Tensor:
    return torch.einsum("ii,bj->b", m.square, m.a(x).cos())


def kept_diagonal(m: Made, x: Tensor) -> Tensor:
    found: Tensor = m.out(torch.einsum("ii,bj->bj", m.square, m.a(x)))
    return found


def masked_rows(m: Made, x: Tensor) -> Tensor:
    found: Tensor = m.out(m.a(x)[x[:, 0] > 0])
    return found.sum(0)


def uneven_heads(m: Made, x: Tensor) -> Tensor:
    """Twelve query heads, three for keys and six for values."""
    key = m.b(x).view(-1, 3, 4).mean(-1)
    q, k, v = (part.view(1, -1, n, 1).transpose(1, 2) for part, n in ((m.a(x), 12), (key, 3), (m.c(x), 6)))
    mixed = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    found: Tensor = m.out(mixed.transpose(1, 2).reshape(-1, 12))
    return found


def several_results(m: Made, x: Tensor) -> Tensor:
    found: Tensor = m.out(torch.frexp(m.a(x))[0])
    return found


def places_of_what_is_true(m: Made, x: Tensor) -> Tensor:
    y = m.a(x)
    found: Tensor = m.out(y * torch.where(y > 0)[0].sum())
    return found


def uneven_chunks(m: Made, x: Tensor) -> Tensor:
    """Of a batch: sizes that algebra does not add up."""
    found: Tensor = m.out(torch.cat([chunk * 2 for chunk in m.a(x).chunk(2, 0)], 0))
    return found


REFUSED = (open_sum, summed_ellipsis, traced_diagonal, kept_diagonal, masked_rows, several_results,
           places_of_what_is_true, uneven_chunks)  # fmt: skip


@pytest.mark.parametrize("made", REFUSED)
def test_what_is_not_followed_is_refused(made: Callable[[Made, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    with pytest.raises(PlanError, match="nothing"):
        assert_sound(Made(made).eval(), torch.randn(3, 6), plans=8)


@pytest.mark.parametrize("made", [tail, uneven_heads])
def test_what_is_left_beside_it_is_cut_soundly(made: Callable[[Made, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    assert assert_sound(Made(made).eval(), torch.randn(3, 6), plans=8).moved > 0
