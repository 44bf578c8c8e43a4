"""Random chains of operators between two layers, made of what models do to features and of what could fool an
analysis: whatever is cut of them is cut soundly."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shearfx.errors import PlanError
from shearfx.testing import assert_sound

WIDTH = 12
LONG = int(os.environ.get("SHEARFX_EXAMPLES", "1000"))


class Chained(nn.Module):
    """A layer, operators on its 12 features one after the other, and what reads them."""

    def __init__(self, chain: list[str], read: str, skip: bool, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 5)
        self.square = nn.Parameter(0.5 * torch.randn(WIDTH, WIDTH))
        self.vector, self.table = nn.Parameter(0.5 * torch.randn(WIDTH)), nn.Parameter(torch.randn(WIDTH, 3, 1))
        self.register_buffer("fixed", torch.randn(WIDTH))
        self.register_buffer("order", torch.randperm(WIDTH))
        self.chain, self.read, self.skip = chain, read, skip

    def forward(self, x: Tensor) -> Tensor:
        y = start = self.first(x)
        for name in self.chain:
            y = OPERATORS[name](self, y)
        return READS[self.read](self, y + start if self.skip else y)


def _rms(y: Tensor) -> Tensor:
    return y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-2)


def _blocks(y: Tensor, rows: int) -> Tensor:
    return y.view(-1, rows, WIDTH // rows)


def _swapped(y: Tensor, rows: int) -> Tensor:
    return _blocks(y, rows).transpose(1, 2).reshape(-1, WIDTH)


def _gram(y: Tensor) -> Tensor:
    blocks = _blocks(y, 3)
    return ((blocks.mT @ blocks).tanh() @ blocks.mT).flatten(1)


def _attention(y: Tensor) -> Tensor:
    blocks = _blocks(y, 3)
    return F.scaled_dot_product_attention(blocks, blocks, blocks).flatten(1)


def _turned(m: Chained, y: Tensor) -> Tensor:
    by = torch.polar(torch.ones(6, dtype=y.dtype), m.vector[:6].to(y.dtype))
    return torch.view_as_real(torch.view_as_complex(_blocks(y, 6)) * by).flatten(1)


OPERATORS: dict[str, Callable[[Chained, Tensor], Tensor]] = {
    "relu": lambda m, y: y.relu(),
    "cos": lambda m, y: y.cos(),
    "sigmoid": lambda m, y: y.sigmoid(),
    "linear": lambda m, y: F.linear(y, m.square),
    "transposed linear": lambda m, y: y @ m.square,
    "times a parameter": lambda m, y: y * m.vector,
    "plus a parameter": lambda m, y: y + m.vector,
    "times a buffer": lambda m, y: y * m.get_buffer("fixed"),
    "plus a buffer": lambda m, y: y + m.get_buffer("fixed"),
    "its own gate": lambda m, y: y * y.sigmoid(),
    "gated by its sum": lambda m, y: y * y.sum(-1, keepdim=True).tanh(),
    "without its mean": lambda m, y: y - y.mean(-1, keepdim=True),
    "root mean square": lambda m, y: _rms(y) * (1 + m.vector),
    "normalized": lambda m, y: F.normalize(y, dim=-1),
    "divided by its sum": lambda m, y: y / (1 + y.abs().sum(-1, keepdim=True)),
    "softmax over rows": lambda m, y: _blocks(y, 3).softmax(1).flatten(1),
    "softmax over columns": lambda m, y: _blocks(y, 4).softmax(-1).flatten(1),
    "swapped 3 and 4": lambda m, y: _swapped(y, 3),
    "swapped 2 and 6": lambda m, y: _swapped(y, 2),
    "rotated halves": lambda m, y: torch.cat([-y[:, 6:], y[:, :6]], 1),
    "rotated pairs": lambda m, y: torch.stack([-y[:, 1::2], y[:, ::2]], -1).flatten(1),
    "gated linear unit": lambda m, y: F.glu(torch.cat([y, y.sin()], 1), 1),
    "half twice": lambda m, y: y[:, :6].repeat(1, 2),
    "half interleaved": lambda m, y: y[:, :6].repeat_interleave(2, 1),
    "one row for all": lambda m, y: _blocks(y, 3)[:, :1].expand(-1, 3, -1).reshape(-1, WIDTH),
    "groups of four": lambda m, y: F.conv1d(y[:, :, None], m.table, groups=4)[:, :, 0],
    "depthwise": lambda m, y: F.conv1d(y[:, :, None], m.table[:, :1], groups=WIDTH)[:, :, 0],
    "group norm": lambda m, y: F.group_norm(y, 4),
    "padded": lambda m, y: F.pad(y[:, 2:], (1, 1), value=0.5),
    "beside ones": lambda m, y: torch.cat([y[:, :9], y.new_ones(y.shape[0], 3)], 1),
    "gram": lambda m, y: _gram(y),
    "outer": lambda m, y: (y[:, :3, None] * y[:, None, :4]).flatten(1),
    "attention": lambda m, y: _attention(y),
    "einsum": lambda m, y: torch.einsum("bi,ij,bj->bj", y, m.square, y.cos()),
    "symmetric": lambda m, y: y @ (m.square + m.square.T),
    "normalized weight": lambda m, y: F.linear(y, F.normalize(m.square, dim=1)),
    "where": lambda m, y: torch.where(y > 0, y, m.vector),
    "maximum": lambda m, y: torch.maximum(y, m.vector),
    "without its largest row": lambda m, y: y - _blocks(y, 3).amax(1).repeat(1, 3),
    "running sum": lambda m, y: _blocks(y, 3).cumsum(1).flatten(1),
    "permuted": lambda m, y: y[:, m.get_buffer("order")],
    "scattered": lambda m, y: torch.slice_scatter(y, y[:, 4:8].cos(), 1, 4, 8),
    "split": lambda m, y: torch.cat([part * (i + 1) for i, part in enumerate(y.split([5, 3, 4], 1))], 1),
    "across the batch": lambda m, y: (y.reshape(-1, 4) * m.vector[:4]).reshape(-1, WIDTH),
    "without the batch's mean": lambda m, y: y - y.mean(0, keepdim=True),
    "turned": _turned,
    "shuffled": lambda m, y: F.channel_shuffle(y[:, :, None, None], 3).flatten(1),
    "residual": lambda m, y: y + F.linear(y.tanh(), m.square),
    "half mixed, half another's": lambda m, y: torch.cat([_swapped(y.repeat(1, 2)[:, :WIDTH], 2)[:, :6], y[:, :6]], 1),
}

READS: dict[str, Callable[[Chained, Tensor], Tensor]] = {
    "linear": lambda m, y: m.last(y),
    "sum": lambda m, y: y.sum(-1, keepdim=True),
    "sum of squares": lambda m, y: y.pow(2).sum(-1, keepdim=True),
}


@st.composite
def chains(draw: st.DrawFn) -> Chained:
    chain = draw(st.lists(st.sampled_from(sorted(OPERATORS)), min_size=2, max_size=5))
    read = draw(st.sampled_from(["linear", "linear", *sorted(READS)]))
    return Chained(chain, read, draw(st.booleans()), draw(st.integers(0, 99))).eval()


def check(model: Chained) -> None:
    """Sound, or nothing can be cut."""
    x = torch.randn(3, 6)
    with torch.no_grad():
        assume(bool(model(x).isfinite().all()))
    try:
        assert_sound(model, x, plans=6)
    except PlanError as error:
        assert "nothing" in str(error)


@settings(max_examples=15)
@given(chains())
def test_chains_are_cut_soundly(model: Chained) -> None:
    check(model)


@pytest.mark.slow
@settings(max_examples=LONG)
@given(chains())
@pytest.mark.timeout(0)
def test_chains_are_cut_soundly_long(model: Chained) -> None:
    check(model)
