"""Compensation while structures fade: nothing at first, least squares at the end, and the cut computes the same."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shearfx.errors import PlanError
from shearfx.gating.collecting_gate import collected
from shearfx.gating.stand_ins import StandIn, fit
from shearfx.optim import LHSPG
from shearfx.precision import double_precision, doubled
from tests.tiny_models import fresh, furthest, inputs_of, learn_something, optimizer, output_of, tied, train
from tests.zoo import float_outputs


def computed(name: str, small: nn.Module) -> Tensor:
    inputs = inputs_of(name, 99)
    with torch.no_grad(), double_precision():
        found = doubled(small)(**inputs) if isinstance(inputs, dict) else doubled(small)(inputs.double())
    return float_outputs(found)[0]


@settings(max_examples=60)
@given(st.data())
def test_the_fit_is_that_of_the_reader_and_comes_in_as_the_gate_shuts(data: st.DataObject) -> None:
    """``W_R P`` is what least squares adds to ``W_S``; in between it is scaled by what the gate has shut."""
    size, seed = data.draw(st.integers(2, 9)), data.draw(st.integers(0, 10**6))
    order = torch.tensor(data.draw(st.permutations(range(size))))
    gone, kept = order[: size // 2].sort().values, order[size // 2 :].sort().values
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, size, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(size, size, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, size, generator=generator, dtype=torch.float64)
    one = fit(x.T @ x, gone, kept, 1e-12)
    y = x @ weight.T
    fitted = torch.linalg.lstsq(x[:, kept], y).solution.T
    assert torch.allclose(weight[:, kept] + weight[:, gone] @ one.factor, fitted, rtol=1e-5, atol=1e-5)
    for c in (1.0, 0.3, 0.0):
        gate = torch.ones(size, dtype=torch.float64)
        gate[gone] = c
        found = one.apply(x * gate, gate) @ weight.T
        expected = c * y + (1 - c) * (x[:, kept] @ (weight[:, kept] + weight[:, gone] @ one.factor).T)
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)


def two_stand_ins(data: st.DataObject, size: int) -> tuple[StandIn, StandIn, Any]:
    """One, a second that replaces some of what the first reads, and where further numbers of the example come from."""
    order = torch.tensor(data.draw(st.permutations(range(size))))
    one, two = sorted(data.draw(st.lists(st.integers(1, size - 1), min_size=2, max_size=2, unique=True)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    draw: Any = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    first = StandIn(order[:one], order[one:].sort().values, draw(one, size - one))
    return first, StandIn(order[one:two], order[two:].sort().values, draw(two - one, size - two)), draw


@settings(max_examples=60)
@given(st.data())
def test_stand_ins_one_after_the_other_are_one(data: st.DataObject) -> None:
    size = data.draw(st.integers(3, 10))
    first, second, draw = two_stand_ins(data, size)
    gate = torch.ones(size, dtype=torch.float64)
    gate[first.gone] = gate[second.gone] = 0
    x = draw(5, size) * gate
    both = second.after(first)
    assert torch.allclose(first.apply(second.apply(x, gate), gate), both.apply(x, gate), rtol=1e-9, atol=1e-9)


@settings(max_examples=60)
@given(st.data())
def test_derivatives_pass_a_gate_and_its_stand_ins_as_autograd_has_them(data: st.DataObject) -> None:
    size, count = data.draw(st.integers(3, 10)), data.draw(st.integers(0, 2))
    older, newer, draw = two_stand_ins(data, size)
    ones = (newer, older)[:count]
    gate = torch.ones(size, dtype=torch.float64)
    gate[older.gone], gate[newer.gone] = 0, data.draw(st.sampled_from([0.0, 0.25, 1.0]))
    x, weight = draw(2, 5, size).requires_grad_(), draw(2, 5, size)

    y = x * gate
    y.retain_grad()
    z = y
    for each in ones:
        z = each.apply(z, gate)
    (z * weight).sum().backward()
    assert x.grad is not None and y.grad is not None
    expected, x.grad = x.grad, None

    seen: list[Tensor] = []
    collector: Any = SimpleNamespace(
        number=0, along=lambda site, along: [((), along)], add=lambda where, axis, product, number: seen.append(product)
    )
    found = collected(x, gate, SimpleNamespace(axis=-1), collector, ones)  # type: ignore[arg-type]
    assert torch.equal(found, z)
    (found * weight).sum().backward()
    assert torch.allclose(x.grad, expected, rtol=1e-12, atol=1e-12)
    assert torch.allclose(seen[0], y * y.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("merge", ["never", "period"])
@pytest.mark.parametrize(("name", "adapter"), [("llama", "merge"), ("gpt2", "keep"), ("perceptron", "merge")])
def test_what_is_kept_of_a_period_computes_what_the_compensated_model_computed(
    name: str, adapter: Any, merge: str
) -> None:
    lora: dict[str, Any] | None = None if name == "perceptron" else {}
    model = fresh(name, lora, torch.float64)
    if lora is not None:
        learn_something(model)
    kept = []

    def keep(opt: LHSPG, period: int) -> None:
        assert opt.stand_ins is not None and opt.gates.stand_ins
        assert all(len(ones) == 1 for ones in opt.gates.stand_ins.values())
        kept.append((opt.construct(adapter), output_of(name, model)))

    kinds = ["heads"] if name == "llama" else ["ffn"] if name == "gpt2" else []
    batches = [inputs_of(name, seed) for seed in (70, 71)]
    if name == "perceptron":
        batches = [batch.double() for batch in batches]
    opt = optimizer(name, model, tied=tied(name, kinds) + (tied(name, ["ffn"]) if name == "llama" else []), merge=merge,
                    form="module" if adapter == "keep" else "fx", warmup=1, periods=3, period_length=2,
                    compensate=batches, on_period=keep)  # fmt: skip
    before = [output_of(name, model)]
    opt.inner.register_step_pre_hook(lambda *_: before.append(output_of(name, model)))
    train(name, model, opt, 1)
    now = output_of(name, model)
    train(name, model, opt, 1, 1)  # picks and fits, before it steps
    assert opt.gates.stand_ins and torch.equal(before[-1], now), "at open gates nothing has changed"
    train(name, model, opt, 6, 2)
    assert len(kept) == 3
    for small, gated in kept:
        assert furthest(computed(name, small), gated) <= 1e-10
    assert furthest(computed(name, opt.construct(adapter)), output_of(name, model)) <= 1e-10, "also steps later"
    with opt.gates.opened():
        assert furthest(output_of(name, model), kept[-1][1]) > 1e-6


def test_ending_a_period_does_not_change_the_function() -> None:
    """Columns of A of what is gone are not lost: they move to those of what stands in."""
    name = "llama"
    model = learn_something(fresh(name, {}, torch.float64), size=0.4)
    opt = optimizer(name, model, merge="never", warmup=0, periods=2, period_length=2,
                    compensate=[inputs_of(name, 70)])  # fmt: skip
    seen: list[Tensor] = []
    finish = opt.stand_ins.finish  # type: ignore[union-attr]

    def watched() -> None:
        seen.append(output_of(name, model))
        finish()
        seen.append(output_of(name, model))

    opt.stand_ins.finish = watched  # type: ignore[union-attr, method-assign]
    train(name, model, opt, 4)
    assert len(seen) == 4
    for i in (0, 2):  # the second time two stand-ins, one after the other, become one
        assert furthest(seen[i + 1], seen[i]) <= 1e-10
    assert torch.equal(output_of(name, model), seen[3])


def test_compensation_is_worth_it_and_needs_a_linear_reader() -> None:
    """Nothing is trained (a learning rate of 0): what fades is missed less where others stand in for it."""
    far = []
    for compensate in (None, [inputs_of("llama", seed) for seed in range(8)]):
        model = fresh("llama", {}, torch.float64)
        full = output_of("llama", model)
        opt = optimizer("llama", model, tied=tied("llama", ["ffn"]), target=20, lr=0.0, merge="never", warmup=0,
                        periods=2, period_length=2, compensate=compensate)  # fmt: skip
        train("llama", model, opt, 4)
        far.append(float((output_of("llama", model) - full).norm()))
    assert far[1] < 0.9 * far[0], "even of random weights some of it can be stood in for"
    with pytest.raises(PlanError, match="no linear layer"):
        model = fresh("convolutions")
        first = [t for t in tied("convolutions") if t.groups[0].size == 8]
        optimizer("convolutions", model, tied=first, target=2, compensate=[inputs_of("convolutions")])
