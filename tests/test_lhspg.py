"""LHSPG: what fades, when, how far, and what is left alone.

Source of what is asked: LoRAShear, Algorithm 4.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import shearfx
from shearfx.errors import PlanError
from shearfx.graph import Graph
from shearfx.optim import LHSPG
from shearfx.optim.fading import falls, trial_factor
from shearfx.optim.schedule import Schedule
from shearfx.precision import double_precision, doubled
from tests.tiny_models import (
    by_hand,
    fresh,
    furthest,
    inputs_of,
    learn_something,
    optimizer,
    output_of,
    scores_of,
    tied,
    traced,
    train,
)
from tests.zoo import float_outputs

CARRIERS = ("gates", "weights")


def count(zeros: Mapping[str, list[int]]) -> int:
    return sum(map(len, zeros.values()))


def size_after(opt: LHSPG) -> int:
    names = {t.name for t in opt.graph.parameters()}
    return sum(math.prod(shape) for name, shape in opt.plan().shapes_after().items() if name in names)


# -- how many, and when ------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    target=st.integers(1, 16), warmup=st.integers(0, 3), periods=st.integers(1, 6), length=st.integers(1, 4),
    carrier=st.sampled_from(CARRIERS), ranking=st.sampled_from(["loss", "relative"]), seed=st.integers(0, 99),
    epsilon=st.sampled_from([-math.inf, 0.0, 0.6]), scale=st.sampled_from([1.0, 1e-15, 1e15]),
)  # fmt: skip
def test_an_equal_share_more_is_zero_after_each_period_and_stays(
    target: int, warmup: int, periods: int, length: int, carrier: str, ranking: Any, seed: int, epsilon: float,
    scale: float,
) -> None:  # fmt: skip
    model = fresh("perceptron")
    scores = {name: score * scale for name, score in scores_of("perceptron", seed).items()}
    opt = optimizer("perceptron", model, target=target, warmup=warmup, periods=periods, period_length=length,
                    carrier=carrier, ranking=ranking, scores=scores, half_space_eps=epsilon)  # fmt: skip
    schedule = Schedule(warmup, periods, length)
    before: dict[str, list[int]] = {}
    counts: list[int] = []
    for step in range(schedule.steps + 2):
        by_hand(model, step)
        opt.step()
        zeros = opt.zeros
        for name, gone in before.items():
            assert set(gone) <= set(zeros[name]), "a redundant structure came back"
        before = zeros
        done = max(0, step + 1 - warmup) // length
        if (step + 1 - warmup) % length == 0 or done >= periods:
            assert count(zeros) == target * min(done, periods) // periods
        if (step + 1 - warmup) % length == 0 and 0 < done <= periods:
            counts.append(count(zeros))
    assert counts[-1] == count(opt.zeros) == target
    shares = [b - a for a, b in zip([0, *counts], counts, strict=False)]
    assert max(shares) - min(shares) <= 1, "shares are equal but for remainders"


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_the_least_salient_go_however_small_scores_are(scale: float) -> None:
    """Scores of structures that are gone are put below all others, which must not drown what the others differ by."""
    model, graph = fresh("perceptron"), traced("perceptron")[1]
    one, two = (g for g in graph.groups if g.certificate == "exact" and g.size > 1)
    scores = {g.name: scale * (2.0 + 2 * torch.arange(g.size) + i) for i, g in enumerate((one, two))}
    opt = optimizer(
        "perceptron", model, target=12, warmup=0, periods=12, period_length=1, scores=scores, ranking="loss"
    )
    for step in range(8):
        by_hand(model, step)
        opt.step()
        taken = [list(range((step + 2) // 2)), list(range((step + 1) // 2))]
        assert opt.zeros == {g.name: gone for g, gone in zip((one, two), taken, strict=True) if gone}
    opt.scorer.scores = {name: score.flip(0) for name, score in scores.items()}  # what is gone stays gone
    for step in range(8, 12):
        by_hand(model, step)
        opt.step()
        assert all(set(range(4)) <= set(gone) for gone in opt.zeros.values()) and count(opt.zeros) == step + 1


@settings(max_examples=20)
@given(target=st.floats(0.01, 0.5), periods=st.integers(1, 4))
def test_shares_of_parameters_are_met_to_half_a_step(target: float, periods: int) -> None:
    model = fresh("perceptron")
    opt = optimizer("perceptron", model, target=target, unit="params", warmup=0, periods=periods, period_length=1)
    total = traced("perceptron")[1].total_params
    step = max(g.params for t in tied("perceptron") for g in t.groups)
    for period in range(periods):
        by_hand(model, period)
        opt.step()
        saved = total - size_after(opt)
        assert opt.history[-1]["saved"] == saved
        assert abs(saved - target * total * (period + 1) / periods) <= step / 2 + 1


# -- the trial and its test -------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(st.data())
def test_a_structure_falls_if_its_trial_leaves_the_half_space_or_the_period_ends(data: st.DataObject) -> None:
    """Equation (2) and line 8 with every vector written out."""
    seed, width = data.draw(st.integers(0, 10**6)), data.draw(st.integers(1, 6))
    left, epsilon = data.draw(st.integers(1, 12)), data.draw(st.floats(-2, 0.99))
    penalty: Any = data.draw(st.sampled_from(["ramp", "constant"]))
    strength = data.draw(st.floats(0.01, 3))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, width, generator=generator, dtype=torch.float64)
    d = data.draw(st.floats(0, 2)) * torch.randn(4, width, generator=generator, dtype=torch.float64)
    norm = x.norm(dim=1)
    factor = trial_factor(penalty, left, norm, torch.ones(4, dtype=torch.float64), strength)
    found = falls(factor, (x * d).sum(1), norm, left, epsilon)
    for i in range(4):
        size = float(norm[i]) / left if penalty == "ramp" else min(strength, float(norm[i]))
        trial = x[i] - size * x[i] / norm[i] + d[i]
        margin = float(trial @ x[i] - epsilon * norm[i] ** 2)
        if abs(margin) > 1e-9:
            assert bool(found[i]) == (margin < 0 or left == 1)


def displaced(model: nn.Module) -> dict[str, Tensor]:
    """What every adapted weight has learnt, ``gamma B A`` written out, by the base's own name."""
    from peft.tuners.lora import LoraLayer

    found = {}
    for path, module in model.named_modules():
        if isinstance(module, LoraLayer):
            name = path.removeprefix("base_model.model.") + ".weight"
            layer: Any = module
            found[name] = layer.get_delta_weight("default").detach().clone()
    return found


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): p.detach().clone()
        for name, p in model.named_parameters() if "lora_" not in name
    }  # fmt: skip


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("epsilon", [0.0, 0.62])
@pytest.mark.parametrize("penalty", ["ramp", "constant"])
def test_weights_fade_as_equation_two_says(name: str, epsilon: float, penalty: str) -> None:
    """Every step of a period beside the formula, ``BA`` written out: frozen slices, rows of B, columns of A."""
    model = learn_something(fresh(name, {}, torch.float64), size=0.4)
    graph = traced(name)[1]
    length = 5
    opt = optimizer(name, model, carrier="weights", merge="never", warmup=0, periods=1, period_length=length,
                    half_space_eps=epsilon, penalty=penalty, strength=0.4, lr=0.03,
                    tied=tied(name, ["ffn"]))  # fmt: skip
    groups = {g.name: g for g in graph.groups}
    expected = weights(model)
    deltas: dict[str, Tensor] = {}
    opt.inner.register_step_post_hook(lambda *_: deltas.update(displaced(model)))  # before anything fades
    fallen: set[tuple[str, int]] = set()
    early = 0
    for step in range(length):
        by_hand(model, step)
        opt.step()
        for group, gone in opt.redundant.items():
            members = [m for m in groups[group].members if m.name in expected]
            for i in gone:
                if (group, i) in fallen:
                    continue
                x = [expected[m.name].movedim(m.dim, 0)[m.indices[i]] for m in members]
                d = [
                    deltas[m.name].movedim(m.dim, 0)[m.indices[i]] if m.name in deltas else torch.zeros_like(part)
                    for m, part in zip(members, x, strict=True)
                ]
                norm = math.sqrt(sum(float(part.square().sum()) for part in x))
                size = norm / (length - step) if penalty == "ramp" else min(0.4, norm)
                trial = [part - size * part / norm + change for part, change in zip(x, d, strict=True)]
                inner = sum(float((t * part).sum()) for t, part in zip(trial, x, strict=True))
                if inner < epsilon * norm**2 or step == length - 1:
                    fallen.add((group, i))
                    early += step < length - 1
                    trial = [torch.zeros_like(part) for part in x]
                for m, part in zip(members, trial, strict=True):
                    expected[m.name].movedim(m.dim, 0)[m.indices[i]] = part
        for key, weight in weights(model).items():
            assert torch.allclose(weight, expected[key], rtol=1e-10, atol=1e-12), (step, key)
        found = {(group, i) for group, gone in opt.zeros.items() for i in gone}
        assert found == fallen
    assert early or epsilon == 0.0 or penalty == "constant"


@pytest.mark.parametrize("penalty", ["ramp", "constant"])
@pytest.mark.parametrize("epsilon", [0.0, 0.62])
def test_without_adapters_weights_fade_from_what_the_step_made(epsilon: float, penalty: str) -> None:
    """Full training: ``d`` is what the optimiser's step changed. Two groups meet in one weight."""
    name, length = "perceptron", 4
    model = fresh(name, dtype=torch.float64)
    graph = traced(name)[1]
    opt = optimizer(name, model, carrier="weights", warmup=0, periods=1, period_length=length, half_space_eps=epsilon,
                    penalty=penalty, strength=0.3, lr=0.05, target=2, scores=only(name, graph, 2))  # fmt: skip
    groups = {g.name: g for g in graph.groups}
    stepped: dict[str, Tensor] = {}
    opt.inner.register_step_post_hook(lambda *_: stepped.update(weights(model)))
    fallen: set[tuple[str, int]] = set()
    for step in range(length):
        before = weights(model)
        by_hand(model, step)
        opt.step()
        expected, factors = {key: w.clone() for key, w in stepped.items()}, {}
        picked = [(group, i) for group, gone in opt.redundant.items() for i in gone]
        assert len({group for group, _ in picked}) == 2
        for group, i in picked:
            own = [(m.name, m.dim, int(m.indices[i])) for m in groups[group].members]
            x, after = (torch.cat([w[n].select(dim, j).flatten() for n, dim, j in own]) for w in (before, stepped))
            if (group, i) not in fallen:
                norm = float(x.norm())
                size = norm / (length - step) if penalty == "ramp" else min(0.3, norm)
                trial = after - size * x / norm
                if float(trial @ x) < epsilon * norm**2 or step == length - 1:
                    fallen.add((group, i))
                factors[group, i] = size / norm
            for n, dim, j in own:
                expected[n].select(dim, j).sub_(factors.get((group, i), 0.0) * before[n].select(dim, j))
        for group, i in fallen:
            for m in groups[group].members:
                expected[m.name].select(m.dim, int(m.indices[i])).zero_()
        for key, weight in weights(model).items():
            assert torch.allclose(weight, expected[key], rtol=1e-10, atol=1e-12), (step, key)
        assert {(group, i) for group, gone in opt.zeros.items() for i in gone} == fallen


def only(name: str, graph: Graph, each: int) -> dict[str, Tensor]:
    """Scores by which the first structures of every group go first."""
    return {g.name: (torch.arange(g.size) >= each // 2).double() for g in graph.groups}


@pytest.mark.parametrize("epsilon", [0.0, 0.55, 0.8])
def test_gates_shut_as_the_half_space_of_the_weights_says(epsilon: float) -> None:
    """The same test with gates: the gate scales weights and what was learnt alike."""
    name, length = "llama", 5
    model = learn_something(fresh(name, {}, torch.float64), size=0.4)
    graph = traced(name)[1]
    opt = optimizer(name, model, merge="never", warmup=0, periods=1, period_length=length, half_space_eps=epsilon,
                    lr=0.03)  # fmt: skip
    groups, base = {g.name: g for g in graph.groups}, weights(model)
    gates: dict[tuple[str, int], float] = {}
    early = 0
    for step in range(length):
        by_hand(model, step)
        opt.step()
        deltas, left = displaced(model) if step < length - 1 else {}, length - step
        for group, gone in opt.redundant.items():
            members = [m for m in groups[group].members if m.name in base]
            for i in gone:
                gate = gates.get((group, i), 1.0)
                x = [base[m.name].movedim(m.dim, 0)[m.indices[i]] for m in members]
                d = [deltas[m.name].movedim(m.dim, 0)[m.indices[i]] if m.name in deltas else part * 0
                     for m, part in zip(members, x, strict=True)]  # fmt: skip
                square = sum(float(part.square().sum()) for part in x)
                inner = sum(float((part * change).sum()) for part, change in zip(x, d, strict=True))
                if gate and (left == 1 or (1 - 1 / left) * square + inner < epsilon * square):
                    early += left > 1
                    gate = 0.0
                gates[group, i] = gate * (1 - 1 / left)
                assert float(opt.gates.values[group][i]) == pytest.approx(gates[group, i], rel=1e-6)
    assert early or epsilon == 0.0
    assert torch.equal(torch.cat([w.flatten() for w in weights(model).values()]),
                       torch.cat([w.flatten() for w in base.values()]))  # fmt: skip


# -- merging ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(("merge", "merges"), [("end", 1), ("period", 3), ("never", 0)])
def test_merges_come_at_the_end_or_each_period_or_never(name: str, merge: str, merges: int) -> None:
    model = fresh(name, {})
    opt = optimizer(name, model, merge=merge, warmup=1, periods=3, period_length=2)
    for step in range(8):
        train(name, model, opt, 1, step)
        done = {"end": step >= 6, "period": step in (2, 4, 6), "never": False}[merge]
        fresh_b = not any(adapter.b.any() for adapter in opt.adapters.values())
        assert fresh_b == (done if merge == "period" else step == 6 and merge == "end")
    assert len(opt.merger.events) == merges


def test_a_tied_weight_is_not_merged_into() -> None:
    with pytest.raises(PlanError, match="another layer's"):
        optimizer("gpt2", fresh("gpt2", {"target_modules": ["lm_head", "c_fc"]}))


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "convolutions", "perceptron"])
def test_each_periods_end_is_a_smaller_model_that_computes_the_same(name: str, carrier: str) -> None:
    lora: dict[str, Any] | None = {} if name in ("llama", "gpt2") else None
    model = fresh(name, lora, torch.float64)
    opt = optimizer(name, model, target=6, carrier=carrier, merge="period", warmup=1, periods=3, period_length=2)
    sizes = []
    for period in range(3):
        train(name, model, opt, 3 if not period else 2, 2 * period + bool(period))
        small = constructed(name, model, opt)
        assert furthest(small, output_of(name, model)) <= 1e-10
        sizes.append(size_after(opt))
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3


def constructed(name: str, model: nn.Module, opt: LHSPG) -> Tensor:
    """What the smaller model computes that the optimiser's plan cuts out of the merged base."""
    graph, inputs = traced(name)[1], inputs_of(name, 99)
    merged = copy.deepcopy(traced(name)[0]).double()
    merged.load_state_dict(weights(model), strict=False)
    small = doubled(shearfx.construct(merged, opt.plan(), form="fx", graph=graph))
    with torch.no_grad(), double_precision():
        found = small(**inputs) if isinstance(inputs, dict) else small(inputs.double())
    return float_outputs(found)[0]
