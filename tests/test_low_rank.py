"""Sums over slices of ``BA`` by thin products, equal to those of ``BA`` written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from shearfx import low_rank
from shearfx.adapters import base_name
from shearfx.live_adapters import adapters_of
from shearfx.low_rank import LowRank, spans
from shearfx.stacked_low_rank import StackedLowRank
from tests.tiny_models import fresh, learn_something


@st.composite
def products(draw: st.DrawFn) -> LowRank:
    """A layer with factors of all shapes that PEFT makes: linear, transposed, with a kernel, fused experts."""
    out, inp, rank = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 4))
    kind = draw(st.sampled_from(["linear", "transposed", "kernel", "experts", "experts transposed"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))

    def random(*shape: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))

    base, scaling = nn.Module(), draw(st.floats(-3, 3).filter(lambda s: abs(s) > 1e-3))
    if kind.startswith("experts"):
        count, turned = draw(st.integers(1, 4)), kind.endswith("transposed")
        base.weight = random(count, *((inp, out) if turned else (out, inp)))
        return StackedLowRank("layer", base, random(count * rank, inp), random(out, rank * count), scaling, turned)
    kernel = (3, 2) if kind == "kernel" else ()
    base.weight = random(inp, out) if kind == "transposed" else random(out, inp, *kernel)
    a, b = random(rank, inp, *kernel), random(out, rank, *(1 for _ in kernel))
    return LowRank("layer", base, a, b, scaling, kind == "transposed")


def written_out(one: LowRank) -> Tensor:
    """``scaling * BA``, shaped like the weight."""
    if isinstance(one, StackedLowRank):
        count = len(one.weight)
        a, b = one.a.detach().unflatten(0, (count, -1)), one.b.detach().unflatten(1, (-1, count))
        stacked = torch.einsum("eri,ore->eoi", a, b) * one.scaling
        return stacked.transpose(1, 2) if one.transposed else stacked
    product = (one.b.detach().flatten(1) @ one.a.detach().flatten(1)) * one.scaling
    return product.T if one.transposed else product.reshape(one.weight.shape)


@settings(max_examples=150)
@given(products(), st.data())
def test_squares_products_and_inner_products_of_slices(one: LowRank, data: st.DataObject) -> None:
    dim = data.draw(st.integers(0, 2 if isinstance(one, StackedLowRank) else 1))
    delta, weight = written_out(one).movedim(dim, 0), one.weight.detach().movedim(dim, 0)
    index = torch.tensor(data.draw(st.lists(st.integers(0, len(delta) - 1), unique=True, max_size=len(delta))))
    index = index.long()
    chunk, low_rank.CHUNK = low_rank.CHUNK, data.draw(st.integers(1, 40))  # parts of all sizes
    try:
        assert torch.allclose(one.squares(dim), delta.flatten(1).square().sum(1), rtol=1e-9, atol=1e-12)
        inner = (delta * weight).flatten(1).sum(1)
        assert torch.allclose(one.inner(dim), inner, rtol=1e-9, atol=1e-11)
        assert torch.allclose(one.inner(dim, index), inner[index], rtol=1e-9, atol=1e-11)
        assert torch.allclose(one.product(dim, index), delta[index], rtol=1e-10, atol=1e-12)
        if dim or not isinstance(one, StackedLowRank):
            thin, axis = one.thin(dim)
            assert thin.shape[axis] == len(delta)
        expected = one.weight.detach() + written_out(one)
        one.merge()
    finally:
        low_rank.CHUNK = chunk
    assert torch.allclose(one.weight, expected, rtol=1e-12, atol=1e-12)
    assert not one.b.any()


@given(products(), st.data())
def test_a_cut_adapter_adds_what_the_cut_weight_had(one: LowRank, data: st.DataObject) -> None:
    dims = st.sets(st.integers(0, 2 if isinstance(one, StackedLowRank) else 1))
    kept, expected, small = {}, written_out(one), torch.zeros_like(one.weight)
    for dim in data.draw(dims):
        stays = st.sets(st.integers(0, one.weight.shape[dim] - 1), min_size=1)
        kept[dim] = torch.tensor(sorted(data.draw(stays)))
        expected, small = expected.index_select(dim, kept[dim]), small.index_select(dim, kept[dim])
    for rows, a, b in one.parts(small, *one.cut(kept)):
        rows += one.scaling * (b @ a).reshape(rows.shape)
    assert torch.allclose(small, expected, rtol=1e-12, atol=1e-12)


@given(products(), st.data())
def test_what_is_cleared_adds_nothing_and_all_else_stays(one: LowRank, data: st.DataObject) -> None:
    dim = data.draw(st.integers(0, 2 if isinstance(one, StackedLowRank) else 1))
    gone = torch.tensor(sorted(data.draw(st.sets(st.integers(0, one.weight.shape[dim] - 1))))).long()
    expected = written_out(one).index_fill(dim, gone, 0)
    one.clear(dim, gone)
    assert torch.equal(written_out(one), expected)


@given(products(), st.integers(1, 3))
def test_joined_factors_add_what_they_add_together(one: LowRank, count: int) -> None:
    pairs = [(torch.randn_like(one.a), torch.randn_like(one.b)) for _ in range(count)]
    joined, each = one.weight.detach().clone(), one.weight.detach().clone()
    for rows, a, b in one.parts(joined, *one.joined(pairs)):
        rows += (b @ a).reshape(rows.shape)
    for pair in pairs:
        for rows, a, b in one.parts(each, *pair):
            rows += (b @ a).reshape(rows.shape)
    assert torch.allclose(joined, each, rtol=1e-12, atol=1e-12)


@given(st.integers(0, 50), st.integers(1, 10**7))
def test_spans_cover_all_and_stay_small(count: int, each: int) -> None:
    found = list(spans(count, each))
    assert [i for start, stop in found for i in range(start, stop)] == list(range(count))
    assert all((stop - start) * each <= max(low_rank.CHUNK, each) for start, stop in found)


class Layers(nn.Module):
    """One of each layer that PEFT adapts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.line = nn.Embedding(7, 6), nn.Linear(6, 5)
        self.one, self.two = nn.Conv1d(4, 6, 3), nn.Conv2d(3, 4, (2, 3))
        self.three, self.experts = nn.Conv3d(2, 3, 2), nn.Module()
        self.experts.up, self.experts.router = nn.Parameter(torch.randn(3, 4, 5)), nn.Parameter(torch.randn(3, 4))


@pytest.mark.parametrize("more", [{}, {"use_rslora": True}, {"lora_alpha": 7, "r": 4}])
def test_it_is_what_peft_adds(more: dict[str, Any]) -> None:
    options: dict[str, Any] = {"r": 2, "target_modules": ["embed", "line", "one", "two", "three"],
                               "target_parameters": ["experts.up", "experts.router"]} | more  # fmt: skip
    model = get_peft_model(Layers().double(), LoraConfig(**options), autocast_adapter_dtype=False)
    learn_something(model)
    found = adapters_of(model)
    assert len(found) == 7
    own = {base_name(name): parameter for name, parameter in model.named_parameters()}
    assert all(one.weight is own[base_name(one.name)] for one in found.values())
    modules = dict(model.named_modules())
    for path, one in found.items():
        module: Any = modules[path]
        assert torch.allclose(written_out(one), module.get_delta_weight("default"), rtol=1e-12)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_merging_is_pefts_merging(name: str) -> None:
    model: Any = learn_something(fresh(name, {}, torch.float64))
    other: Any = learn_something(fresh(name, {}, torch.float64))
    for one in adapters_of(model).values():
        one.merge()
    other.merge_adapter()
    for (key, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        if "lora_" not in key:
            assert torch.allclose(mine, theirs, rtol=1e-13, atol=1e-14), key


def test_grouped_convolutions_are_no_product() -> None:
    from shearfx.errors import PlanError

    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, groups=2)

    with pytest.warns(UserWarning, match="groups"):
        model = get_peft_model(Grouped(), LoraConfig(r=2, target_modules=["conv"]))
    with pytest.raises(PlanError, match="groups"):
        adapters_of(model)
