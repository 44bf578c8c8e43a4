"""What only a card can show: the same properties on the device itself, streams, and graphs. Skipped without one.

Beside these, where NVIDIA's tools are installed (see CONTRIBUTING.md):

    compute-sanitizer --tool memcheck  python -m pytest tests/test_cuda_on_card.py
    compute-sanitizer --tool racecheck python -m pytest tests/test_cuda_on_card.py
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shearfx.cuda import choosing
from shearfx.cuda.launching import Launcher
from shearfx.cuda.statistics import Lines, Statistics
from shearfx.cuda.stepping import Step
from shearfx.cuda.updating import Updating
from shearfx.low_rank import LowRank
from tests.test_cuda_statistics import KINDS, MORE, Case, compare
from tests.tiny_models import fresh, inputs_of, learn_something, optimizer, scores_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")


def card() -> Launcher:
    found = choosing.launcher(torch.device("cuda", 0), "cuda")
    assert found is not None
    return found


@settings(max_examples=60)
@given(st.data(), st.sampled_from(KINDS + MORE), st.integers(0, 128))
def test_sums_are_those_of_float64_and_the_same_bits_twice(data: st.DataObject, kinds: Any, rank: int) -> None:
    compare([Case(data, kinds, rank, 60, "cuda") for _ in range(data.draw(st.integers(1, 3)))], [card(), card()])


def layer(out: int, inp: int, rank: int, seed: int = 0) -> LowRank:
    torch.manual_seed(seed)
    base = nn.Module()
    base.weight = nn.Parameter(torch.randn(out, inp, device="cuda").bfloat16(), requires_grad=False)
    a, b = (nn.Parameter(torch.randn(*shape, device="cuda")) for shape in ((rank, inp), (out, rank)))
    return LowRank("layer", base, a, b, 0.5, False)


@pytest.mark.parametrize("rank", [16, 64])
@pytest.mark.parametrize("dim", [0, 1])
def test_sums_of_a_large_layer_on_another_stream(rank: int, dim: int) -> None:
    one = layer(4096, 11008, rank)
    statistics = Statistics(card(), [Lines(one.weight.detach(), dim, None, one)])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = [statistics.run() for _ in range(3)]
    stream.synchronize()
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    square = one.weight.double().square().sum(1 - dim)
    room = (square * one.squares(dim).double()).sqrt()
    assert bool(((found[0][0].double() - square).abs() <= 1e-5 * square).all())
    assert bool(((found[0][1].double() - one.inner(dim).double()).abs() <= 1e-4 * room).all())


@pytest.mark.parametrize("dim", [0, 1])
def test_a_step_on_scattered_slices_of_a_large_layer(dim: int) -> None:
    one = layer(2048, 5632, 16)
    before = one.weight.detach().clone()
    index = torch.randperm(before.shape[dim], device="cuda")[:700].sort().values
    delta = one.product(dim, index).flatten(1)
    Step(card(), [Lines(one.weight.detach(), dim, index, one)], [torch.arange(700)], 700).run(4)
    expected = (0.75 * before.movedim(dim, 0)[index].float() + delta).bfloat16()
    got = one.weight.detach().movedim(dim, 0)[index]
    torch.testing.assert_close(got, expected, rtol=2**-7, atol=1e-3)
    rest = torch.ones(before.shape[dim], dtype=torch.bool, device="cuda")
    rest[index] = False
    assert torch.equal(one.weight.detach().movedim(dim, 0)[rest], before.movedim(dim, 0)[rest])
    thin, axis = one.thin(dim)
    assert not thin.detach().movedim(axis, 0)[index].any()


@pytest.mark.parametrize("variant", ["adamw", "sgd"])
def test_updates_in_a_graph_go_on_counting(variant: Any) -> None:
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(n, device="cuda")) for n in (1, 300, 9000)]
    others = [nn.Parameter(p.detach().double()) for p in params]
    rate = torch.tensor(0.01, device="cuda")
    kind: Any = torch.optim.AdamW if variant == "adamw" else torch.optim.SGD
    mine, reference = kind(params, lr=rate), kind(others, lr=0.01)
    for p in params:
        p.grad = torch.zeros_like(p)
    updating = Updating(card(), variant)
    graph = torch.cuda.CUDAGraph()
    states = [copy.deepcopy(p.detach()) for p in params]
    updating.step(mine.param_groups, mine.state)  # loads and makes what a capture must not
    mine.state.clear()
    for p, state in zip(params, states, strict=True):
        p.data.copy_(state)
    updating.step(mine.param_groups, mine.state)
    with torch.cuda.graph(graph):
        updating.step(mine.param_groups, mine.state)
    for q in others:
        q.grad = torch.zeros_like(q)
    reference.step()
    for step in range(4):
        if step == 2:
            rate.fill_(0.001)
            reference.param_groups[0]["lr"] = 0.001
        for p, q in zip(params, others, strict=True):
            p.grad.copy_(torch.randn_like(p))  # type: ignore[union-attr]
            q.grad = p.grad.double()  # type: ignore[union-attr]
        graph.replay()
        reference.step()
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p.double(), q, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("carrier", ["gates", "weights"])
def test_training_with_kernels_is_training_with_torch(carrier: str) -> None:
    found = []
    for kernels in ("torch", "cuda"):
        model = learn_something(fresh("llama", {})).cuda()
        opt = optimizer("llama", model, target=0.3, warmup=1, periods=2, period_length=2, carrier=carrier,
                        kernels=kernels, scores=scores_of("llama"), half_space_eps=0.2)  # fmt: skip
        for step in range(6):
            ids = inputs_of("llama", seed=step)["input_ids"].cuda()
            model(input_ids=ids, labels=ids).loss.backward()
            opt.step()
            opt.zero_grad()
        found.append((opt.zeros, {k: v.detach().clone() for k, v in model.named_parameters()}))
    (zeros, slow), (again, fast) = found
    assert zeros == again and zeros
    for key, tensor in slow.items():
        torch.testing.assert_close(fast[key], tensor, rtol=2e-3, atol=2e-4)
