"""The step's kernels, whole, on the host: against float64, redundant slices exactly zero, all else untouched."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shearfx.cuda.statistics import Lines
from shearfx.cuda.stepping import Clearing, Step
from shearfx.low_rank import LowRank
from tests.cuda_host.building import HostLauncher
from tests.cuda_host.guarded import Guarded

KINDS = [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float16, torch.float32)]
STEP_OF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10, torch.float32: 2.0**-20}
"""Of rounding what is stored, with room for sums in float32."""


class Layer:
    """A weight and perhaps an adapter between walls, some of its slices fading, and the same in float64."""

    def __init__(self, data: st.DataObject, kinds: tuple[torch.dtype, torch.dtype], structures: int) -> None:
        draw = data.draw
        self.generator = generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
        n, m, rank = draw(st.integers(1, 150)), draw(st.integers(1, 150)), draw(st.sampled_from([0, 1, 5, 16, 33]))
        transposed = draw(st.booleans())
        out, inp = (m, n) if transposed else (n, m)
        self.adapter = None
        self.weight = Guarded(
            torch.randn(n, m, generator=generator).to(kinds[0]),
            gap=draw(st.sampled_from([0, 4, 3])), shift=draw(st.sampled_from([0, 4, 1])), turned=draw(st.booleans()),
        )  # fmt: skip
        self.wide = self.weight.tensor.double()
        if rank:
            self.a = Guarded(torch.randn(rank, inp, generator=generator).to(kinds[1]))
            self.b = Guarded(torch.randn(out, rank, generator=generator).to(kinds[1]))
            base = nn.Module()
            base.weight = nn.Parameter(self.weight.tensor, requires_grad=False)
            one = LowRank("l", base, nn.Parameter(self.a.tensor), nn.Parameter(self.b.tensor), 0.25, transposed)
            self.adapter = one
            self.wide_a, self.wide_b = one.a.detach().double(), one.b.detach().double()
        self.cuts = [self.cut(data, draw(st.integers(0, 1)), structures) for _ in range(draw(st.integers(1, 2)))]

    def cut(self, data: st.DataObject, dim: int, structures: int) -> tuple[Lines, Tensor]:
        size = self.weight.tensor.shape[dim]
        count = data.draw(st.integers(0, size))
        start = data.draw(st.integers(0, size - count))
        index = torch.arange(start, start + count)
        if data.draw(st.booleans()):
            index = torch.randperm(size, generator=self.generator)[:count].sort().values
        slot = torch.randint(0, structures, (count,), generator=self.generator)
        return Lines(self.weight.tensor, dim, index, self.adapter), slot

    def displacement(self) -> Tensor:
        if self.adapter is None:
            return torch.zeros_like(self.wide)
        product = self.adapter.scaling * (self.wide_b @ self.wide_a)
        return product.T if self.adapter.transposed else product

    def sums(self, lines: Lines) -> tuple[Tensor, Tensor]:
        x, d = (t.movedim(lines.dim, 0)[lines.index] for t in (self.wide, self.displacement()))
        return x.square().sum(1), (x * d).sum(1)

    def fade(self, lines: Lines, factor: Tensor, gone: Tensor) -> None:
        """Equation (2) on the copy, and the adapter's own slices cleared."""
        x, d = (t.movedim(lines.dim, 0)[lines.index] for t in (self.wide, self.displacement()))
        self.wide.movedim(lines.dim, 0)[lines.index] = torch.where(gone[:, None], 0.0, factor[:, None] * x + d)
        if self.adapter is not None:
            if self.adapter.side(lines.dim) == "out":
                self.wide_b[lines.index] = 0
            else:
                self.wide_a[:, lines.index] = 0


@settings(max_examples=40)
@given(
    data=st.data(), kinds=st.sampled_from(KINDS[:2]), left=st.integers(1, 5), constant=st.booleans(),
    epsilon=st.sampled_from([-math.inf, 0.0, 0.7]), layers=st.integers(1, 3), seed=st.integers(0, 9),
)  # fmt: skip
def test_a_step_is_that_of_float64(
    data: st.DataObject, kinds: Any, left: int, constant: bool, epsilon: float, layers: int, seed: int
) -> None:
    structures, strength = data.draw(st.integers(1, 7)), data.draw(st.sampled_from([0.5, 8.0]))
    of = [Layer(data, kinds, structures) for _ in range(layers)]
    cuts = [(layer, *cut) for layer in of for cut in layer.cuts]
    launcher = HostLauncher(seed=seed)
    step = Step(launcher, [lines for _, lines, _ in cuts], [slot for *_, slot in cuts], structures)
    before = torch.rand(structures, generator=of[0].generator) < 0.2
    step.fallen.copy_(before)

    square, inner, size = (torch.zeros(structures, dtype=torch.double) for _ in range(3))
    for layer, lines, slot in cuts:
        length, along = layer.sums(lines)
        square.index_add_(0, slot, length)
        inner.index_add_(0, slot, along)
        size.index_add_(
            0, slot, (length * layer.displacement().movedim(lines.dim, 0)[lines.index].square().sum(1)).sqrt()
        )
    norm = square.sqrt()
    factor = (1 - strength / norm).clamp(min=0) if constant else torch.full_like(norm, 1 - 1 / left)
    margin = factor * square + inner - epsilon * square if math.isfinite(epsilon) else torch.ones_like(norm)
    step.run(left, constant=constant, strength=strength, epsilon=epsilon)

    fallen = step.fallen.bool()
    sure = margin.abs() > 1e-3 * (square + size)  # else a bit decides which side it is on
    expected = before | (margin < 0) | (left == 1)
    assert torch.equal(fallen[sure], expected[sure]) or left == 1
    assert left > 1 or bool(fallen.all())
    for layer, lines, slot in cuts:
        layer.fade(lines, step.factors.double()[slot], fallen[slot])
    assert left == 1 or torch.allclose(step.factors.double(), factor, rtol=1e-5, atol=1e-6)
    for layer in of:
        touched = torch.zeros(layer.wide.shape, dtype=torch.bool)
        for lines, slot in layer.cuts:
            touched.movedim(lines.dim, 0)[lines.index] = True
            rows = layer.weight.tensor.movedim(lines.dim, 0)[lines.index]
            assert not rows[fallen[slot]].any(), "a fallen slice is not exactly zero"
        got = layer.weight.tensor.double()
        room = STEP_OF[kinds[0]] * (layer.wide.abs() + 8)
        assert bool(((got - layer.wide).abs() <= 2 * room).all())
        assert layer.weight.untouched_beside(touched)
        if layer.adapter is not None:
            assert torch.equal(layer.a.tensor.double(), layer.wide_a)
            assert torch.equal(layer.b.tensor.double(), layer.wide_b)
            assert layer.a.untouched_beside(layer.wide_a == 0) and layer.b.untouched_beside(layer.wide_b == 0)


def test_launches_do_not_grow_with_layers() -> None:
    counts = []
    for layers in (1, 7):
        launcher = HostLauncher()
        lines = []
        for _ in range(layers):
            base = nn.Module()
            base.weight = nn.Parameter(torch.randn(6, 8).bfloat16(), requires_grad=False)
            one = LowRank("l", base, nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(6, 2)), 1.0, False)
            lines.append(Lines(base.weight.detach(), 0, torch.tensor([1, 4]), one))
        step = Step(launcher, lines, [torch.tensor([0, 1])] * layers, 2)
        step.run(3, epsilon=0.0)
        counts.append(launcher.launches)
    assert counts[0] == counts[1] == ["product_rows", "line_sums", "decide", "replace_lines", "clear_factors"]


def test_what_other_slices_add_counts_in_the_half_space_test() -> None:
    weight = torch.ones(2, 4)
    step = Step(HostLauncher(), [Lines(weight, 0, torch.tensor([0, 1]))], [torch.tensor([0, 1])], 2)
    step.run(2, epsilon=0.0, more=(torch.zeros(2), torch.tensor([0.0, -5.0])))
    assert step.fallen.tolist() == [0, 1] and weight.tolist() == [[0.5] * 4, [0.0] * 4]


@pytest.mark.parametrize("left", [1, 3])
def test_a_structure_without_slices_falls_with_the_period_only(left: int) -> None:
    step = Step(HostLauncher(), [], [], 3)
    step.run(left, epsilon=0.5)
    assert step.fallen.tolist() == [int(left == 1)] * 3


def test_clearing_leaves_weights_alone() -> None:
    base = nn.Module()
    base.weight = nn.Parameter(torch.randn(6, 8), requires_grad=False)
    one = LowRank("l", base, nn.Parameter(torch.ones(2, 8)), nn.Parameter(torch.ones(6, 2)), 1.0, False)
    before = base.weight.clone()
    index = torch.tensor([0, 5])
    Clearing.of(HostLauncher(), [Lines(base.weight, 0, index, one), Lines(base.weight, 1, index, one)]).run()
    assert torch.equal(base.weight, before)
    assert one.b.sum(1).tolist() == [0, 2, 2, 2, 2, 0] and one.a.sum(0).tolist() == [0, *[2] * 4, 0, 2, 2]
