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


@pytest.mark.parametrize(
    ("made", "prunable"),
    [(tail, False), (open_sum, False), (summed_ellipsis, False), (traced_diagonal, False),
     (kept_diagonal, False), (masked_rows, False), (uneven_heads, False)],
)  # fmt: skip
def test_is_sound_or_refused(made: Callable[[Made, Tensor], Tensor], prunable: bool) -> None:
    torch.manual_seed(0)
    model, x = Made(made).eval(), torch.randn(3, 6)
    try:
        found = assert_sound(model, x, plans=8)
    except PlanError as error:
        assert "nothing" in str(error) and not prunable
    else:
        assert found.moved > 0
