"""The statistics kernels, whole, on the host: against float64, and the same bits whatever the order of threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shearfx.cuda.launching import Launcher
from shearfx.cuda.statistics import Lines, Statistics, unfit
from shearfx.low_rank import LowRank
from tests.cuda_host.building import HostLauncher
from tests.cuda_host.guarded import Guarded

KINDS = [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float32, torch.float32)]
MORE = [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16), (torch.float32, torch.bfloat16)]
CPU = torch.device("cpu")


class Case:
    """A weight with an adapter or a gradient between walls of NaN, and what its slices' sums are in float64."""

    def __init__(
        self, data: st.DataObject, kinds: tuple[torch.dtype, torch.dtype], rank: int, most: int, device: str = "cpu"
    ) -> None:
        draw = data.draw
        generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
        n, m = draw(st.integers(1, most)), draw(st.integers(1, most))
        n, m = draw(
            st.sampled_from([(n, m), (n, 8 * m), (8 * n, m), (n, 8 * m), (8 * n, m), (1, m), (n, 1), (n, 1100)])
        )
        self.dim = draw(st.integers(0, 1))
        transposed, turned = draw(st.booleans()), draw(st.booleans())
        out, inp = (m, n) if transposed else (n, m)

        def guarded(*shape: int, dtype: torch.dtype, turned: bool = False) -> Guarded:
            value = torch.randn(*shape, generator=generator)
            width = shape[0] if turned else shape[-1]
            # rows that start at multiples of 16 bytes and end between them are where vectors could read too much
            gap, shift = draw(st.sampled_from([(0, 0), (3, 0), (-width % 8, 0), (-width % 8, 0), (0, 1), (8, 4)]))
            where = {"gap": gap, "shift": shift}
            return Guarded(value.to(dtype), turned=turned, device=device, **where)

        self.weight = guarded(n, m, dtype=kinds[0], turned=turned)
        self.adapter = self.beside = None
        scaling = draw(st.sampled_from([0.5, -2.0]))
        wide = self.weight.tensor.double()
        self.d = torch.zeros_like(wide)
        size = torch.zeros_like(wide)  # of what products are made of, to say what their error may be
        if rank:
            a, b = guarded(rank, inp, dtype=kinds[1]), guarded(out, rank, dtype=kinds[1])
            base = nn.Module()
            base.weight = nn.Parameter(self.weight.tensor, requires_grad=False)
            self.adapter = LowRank("layer", base, nn.Parameter(a.tensor), nn.Parameter(b.tensor), scaling, transposed)
            self.d, size = scaling * (b.tensor.double() @ a.tensor.double()), b.tensor.double().abs()
            size = abs(scaling) * (size @ a.tensor.double().abs())
            self.d, size = (self.d.T, size.T) if transposed else (self.d, size)
        elif draw(st.booleans()):
            gradient = guarded(n, m, dtype=kinds[1], turned=turned)
            self.beside, self.d = gradient.tensor, scaling * gradient.tensor.double()
            size = self.d.abs()
        self.index = None
        count = (n, m)[self.dim]
        which = draw(st.sampled_from(["all", "beside each other", "anywhere", "anywhere"]))
        if which == "anywhere":
            chosen = torch.randperm(count, generator=generator)[: draw(st.integers(count // 2, count))]
            self.index = chosen.sort().values.to(device)
        elif which == "beside each other":
            self.index = torch.arange(draw(st.integers(0, count)), count).to(device)
        self.scaling = scaling
        take = slice(None) if self.index is None else self.index
        x, d, size = (t.movedim(self.dim, 0)[take] for t in (wide, self.d, size))
        self.expected = torch.stack([x.square().sum(1), (x * d).sum(1), d.square().sum(1)])
        self.scale = torch.stack([x.square().sum(1), (x.abs() * size).sum(1), size.square().sum(1)])

    @property
    def lines(self) -> Lines:
        return Lines(self.weight.tensor, self.dim, self.index, self.adapter, self.beside, self.scaling)


def check(cases: list[Case], tensor_cores: bool, seed: int) -> None:
    launchers = [HostLauncher(tensor_cores=tensor_cores, seed=order) for order in (seed, seed + 1)]
    compare(cases, launchers)
    assert all(len(launcher.launches) <= 5 + len(cases) for launcher in launchers)


def compare(cases: list[Case], launchers: Sequence[Launcher]) -> None:
    found = []
    for launcher in launchers:
        assert not any(unfit(case.lines, launcher.device) for case in cases)
        statistics = Statistics(launcher, [case.lines for case in cases])
        found.append(statistics.run())
    assert torch.equal(found[0], found[1]), "other bits with another order of threads and blocks"
    for case, got in zip(cases, statistics.split(found[0]), strict=True):
        # 2^-15 for sums of two bfloat16; what float32 loses in sums of at most 1100 numbers is below 2^-15 of them too
        assert bool(((got.double() - case.expected).abs() <= case.scale * 2.0**-14).all())
        exact = ((got[0].double() - case.expected[0]).abs() <= case.expected[0] * 2.0**-14).all()
        assert bool(exact) and case.weight.untouched_beside()


@settings(max_examples=20)
@given(st.data(), st.sampled_from(KINDS), st.integers(0, 16), st.integers(0, 2), st.integers(0, 9))
def test_sums_are_those_of_float64(data: st.DataObject, kinds: Any, rank: int, tensor_cores: bool, seed: int) -> None:
    check([Case(data, kinds, rank, 40)], tensor_cores > 0, seed)


@settings(max_examples=6)
@given(st.data(), st.sampled_from([17, 31, 64, 65, 128]), st.integers(0, 9))
def test_higher_ranks(data: st.DataObject, rank: int, seed: int) -> None:
    check([Case(data, KINDS[0], rank, 20)], data.draw(st.booleans()), seed)


@settings(max_examples=8)
@given(st.data(), st.lists(st.tuples(st.sampled_from(KINDS[:2]), st.integers(0, 16)), min_size=2, max_size=5))
def test_many_weights_at_once(data: st.DataObject, of: list[Any]) -> None:
    check([Case(data, kinds, rank, 20) for kinds, rank in of], True, 0)


@pytest.mark.slow  # each pair of kinds and each width of ranks is compiled anew
@settings(max_examples=60)
@given(st.data(), st.sampled_from(KINDS + MORE), st.integers(1, 128), st.booleans(), st.integers(0, 9))
def test_all_kinds_and_ranks(data: st.DataObject, kinds: Any, rank: int, tensor_cores: bool, seed: int) -> None:
    check([Case(data, kinds, rank, 60)], tensor_cores, seed)


@pytest.mark.parametrize("tensor_cores", [True, False])
@pytest.mark.parametrize("dim", [0, 1])
def test_several_windows_and_warps_in_any_order(dim: int, tensor_cores: bool) -> None:
    """Barriers hold back warps that are ahead, and columns that lie apart are not read as if they were neighbours."""
    torch.manual_seed(0)
    base = nn.Module()
    base.weight = nn.Parameter(torch.randn(300, 160).bfloat16(), requires_grad=False)
    one = LowRank("layer", base, nn.Parameter(torch.randn(8, 160)), nn.Parameter(torch.randn(300, 8)), 0.5, False)
    index = torch.randperm(base.weight.shape[dim])[:50].sort().values
    lines = [Lines(base.weight, dim, chosen, one) for chosen in (None, index)]
    found = [Statistics(HostLauncher(tensor_cores=tensor_cores, seed=s), lines).run() for s in range(8)]
    assert all(torch.equal(found[0], other) for other in found)
    expected = torch.cat([one.inner(dim), one.inner(dim, index)])
    assert bool(((found[0][1] - expected).abs() <= 1e-5 * (found[0][0] * found[0][2]).sqrt()).all())


def test_two_products_lose_less_than_bfloat16_would() -> None:
    """The stated error is of sums of two bfloat16: with one each it would be a hundred times larger."""
    torch.manual_seed(0)
    base = nn.Module()
    base.weight = nn.Parameter(torch.randn(32, 1000).bfloat16(), requires_grad=False)
    one = LowRank("layer", base, nn.Parameter(torch.randn(8, 1000)), nn.Parameter(torch.randn(32, 8)), 1.0, False)
    found = Statistics(HostLauncher(), [Lines(base.weight, 0, None, one)]).run()[1].double()
    w, a, b = base.weight.double(), one.a.detach().double(), one.b.detach().double()
    expected, size = (w * (b @ a)).sum(1), w.norm(dim=1) * (b @ a).norm(dim=1)
    rounded = (w * (b.bfloat16().double() @ a.bfloat16().double())).sum(1)
    error, coarse = ((v - expected).abs() / size for v in (found, rounded))
    assert float(error.max()) < 1e-5 and float(coarse.max()) > 3 * float(error.max())


def strided(shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    return torch.zeros(4096).as_strided(shape, stride)


@pytest.mark.parametrize(("weight", "why"), [
    (torch.zeros(4, 4, dtype=torch.uint8), "torch.uint8"), (torch.zeros(4, 4).double(), "torch.float64"),
    (torch.zeros(4, 4, device="meta"), "on meta"), (torch.zeros(4, 4, 3), "3 dims"),
    (strided((4, 4), (16, 2)), "beside each other"), (torch.zeros(4, 4).to_sparse(), "layout"),
])  # fmt: skip
def test_what_kernels_cannot_read_is_named(weight: Tensor, why: str) -> None:
    assert why in str(unfit(Lines(weight), CPU))


def test_too_high_a_rank_is_named() -> None:
    base = nn.Module()
    base.weight = nn.Parameter(torch.zeros(4, 4))
    one = LowRank("layer", base, nn.Parameter(torch.zeros(129, 4)), nn.Parameter(torch.zeros(4, 129)), 1.0, False)
    assert "rank 129" in str(unfit(Lines(base.weight, 0, None, one), CPU))
