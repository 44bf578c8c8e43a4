"""Knowledge distribution: what masked copies lose, measured on a live model that is bit for bit the same afterwards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import shearfx
from shearfx.errors import PlanError
from shearfx.knowledge import estimate, knowledge_distribution, name_of
from shearfx.precision import double_precision
from shearfx.pruning_plan import of_cuts
from shearfx.selection import Tied
from tests.knowledge_cases import (
    MODELS,
    RATIOS,
    Case,
    analysed,
    assert_same,
    case,
    slowly,
    state,
)

# -- what is measured ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_rows_are_what_masked_copies_lose(name: str) -> None:
    this, found = case(name), analysed(name)
    loss, reference = this.naive(this.model)
    assert found.loss == pytest.approx(loss, rel=1e-10)
    assert [(row.name, row.ratio) for row in found.rows] == [(name_of(t), r) for t in this.tied for r in RATIOS]
    groups = {g.name: g for g in this.graph.groups}
    moved = 0.0
    for row in found.rows:
        group = groups[row.name]
        assert row.shut == min(max(1, int(row.ratio * group.size + 0.5)), group.size - 1)
        kept = sorted(torch.argsort(this.scores[group.name])[row.shut :].tolist())
        plan = of_cuts(this.graph, {group.name: kept})
        loss, log_p = this.naive(shearfx.mask(this.model, plan))
        kl = sum(float(F.kl_div(p, q, log_target=True, reduction="sum")) for p, q in zip(log_p, reference, strict=True))
        assert row.kl is not None
        assert row.loss == pytest.approx(loss, rel=1e-10)
        assert row.kl == pytest.approx(kl / sum(map(len, log_p)), rel=1e-9, abs=1e-13)
        assert row.perplexity == pytest.approx(math.exp(loss), rel=1e-10)
        assert row.deviation == pytest.approx(math.exp(loss) - math.exp(found.loss), rel=1e-9, abs=1e-9)
        assert row.relative == pytest.approx(row.deviation / found.perplexity, rel=1e-9, abs=1e-12)
        assert row.share == pytest.approx(taken(this.model, plan.kept), rel=1e-9)
        moved = max(moved, row.kl)
    assert moved > 1e-4  # or there would have been nothing to compare


def taken(model: nn.Module, kept: Mapping[str, Mapping[int, Any]]) -> float:
    """The share of a model's parameters that is not kept."""
    left = total = 0
    for name, parameter in model.named_parameters():
        sizes = [len(kept.get(name, {}).get(axis, range(size))) for axis, size in enumerate(parameter.shape)]
        total, left = total + parameter.numel(), left + math.prod(sizes)
    return 1 - left / total


@pytest.mark.parametrize("name", [*MODELS, "albert"])
def test_the_model_is_what_it_was(name: str) -> None:
    this = case(name)
    this.model.train()
    next(iter(this.model.children())).eval()
    before = state(this.model)
    try:
        this.analyse(loss=this.loss or language_loss)
        assert_same(this.model, before)
    finally:
        this.model.eval()


def language_loss(model: nn.Module, batch: Any) -> Tensor:
    batch = batch if isinstance(batch, dict) else {"input_ids": batch}
    logits: Tensor = model(**batch).logits
    return logits.square().mean()


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("llama", RuntimeError),
        pytest.param("mixtral", KeyboardInterrupt, marks=pytest.mark.slow),
        ("t5", KeyboardInterrupt),
    ],
)
@slowly
@given(after=st.integers(0, 30))
def test_the_model_is_what_it_was_after_an_interrupt(name: str, error: type[BaseException], after: int) -> None:
    """Wherever a layer is interrupted: while layers are found, checked, recorded, or gates shut."""
    this = case(name)
    left = after

    def interrupt(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise error

    last = [m for path, m in this.model.named_modules() if path.endswith(("down_proj", "mlp", "DenseReluDense"))][-1]
    hook = last.register_forward_hook(interrupt)
    before = state(this.model)
    try:
        with pytest.raises(error):
            this.analyse(reuse=after % 2 == 0)
            raise error  # there were fewer calls than that
        assert_same(this.model, before)
    finally:
        hook.remove()


# -- cost and progress -------------------------------------------------------------------------------------


@pytest.mark.parametrize("reuse", [True, False])
def test_cost_is_said_before_and_is_what_it_takes(reuse: bool) -> None:
    this = case("llama")
    calls = {"model": 0, "layers": 0}
    model: Any = this.model
    hooks = [model.register_forward_hook(lambda *_: calls.update(model=calls["model"] + 1))]
    for layer in model.model.layers:
        ran = layer.self_attn.register_forward_hook(lambda *_: calls.update(layers=calls["layers"] + 1))
        hooks.append(ran)
    said: list[Any] = []
    told: list[tuple[int, int]] = []
    try:
        cost = estimate(this.graph, model, this.batches, tied=this.tied, ratios=RATIOS, reuse=reuse)
        calls.update(model=0, layers=0)
        announce = lambda c: said.append((c, told.copy()))  # noqa: E731
        found = this.analyse(announce=announce, progress=lambda *now: told.append(now), reuse=reuse)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(said) == 1 and said[0][1] == []
    announced = said[0][0]
    assert (announced.passes, announced.reused, announced.layers) == (cost.passes, cost.reused, cost.layers)
    assert told == [(i + 1, cost.passes) for i in range(cost.passes)]
    assert cost.passes <= calls["model"] <= cost.passes + cost.reference
    assert found.reused == pytest.approx(cost.reused)
    if reuse:
        assert cost.layers == 2 and cost.recorded > 0
        measured = cost.passes * cost.layers * (1 - cost.reused)
        assert measured <= calls["layers"] <= measured + cost.reference * cost.layers
        assert "of 2 layers, 25% of them reused" in str(cost)


# -- bad requests ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ratios": ()}, "ratios"),
        ({"ratios": (0.5, 1.0)}, "ratios"),
        ({"ratios": (0.5, 0.5)}, "ratios"),
        ({"tied": []}, "no node group"),
        ({"scores": {}}, "scores"),
        ({"loss": lambda model, batch: torch.zeros(2)}, "no scalar"),
        ({"loss": lambda model, batch: torch.tensor(math.nan)}, "loss of batch 0"),
    ],
)
def test_requests_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    this = case("llama")
    before = state(this.model)
    with pytest.raises(PlanError, match=said):
        this.analyse(**options)
    assert_same(this.model, before)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "no batches"),
        (torch.ones(2, 5, dtype=torch.long), "not batches"),
        ([{"nonsense": torch.ones(1, 2)}], "neither labels nor input_ids"),
        ([{"input_ids": torch.ones(1, 5, dtype=torch.long), "nonsense": 3, "labels": [1]}], "labels"),
        ([torch.ones(2, 1, dtype=torch.long)], "over 0 tokens"),
        ([3], "not token ids"),
    ],
)
def test_data_that_the_model_cannot_take_is_named(data: Any, said: str) -> None:
    this = case("llama")
    with pytest.raises(PlanError, match=said):
        knowledge_distribution(this.graph, this.model, data, tied=this.tied, scores=this.scores)


def test_groups_that_are_tied_lose_in_proportion() -> None:
    this = case("llama")
    heads = [t.groups[0] for t in this.tied if t.groups[0].kind == "ffn"]
    both = Tied(tuple(heads), (1,) * len(heads))
    (found,) = this.analyse(tied=[both], ratios=(0.5,)).rows
    assert found.groups == tuple(g.name for g in heads) and found.layer is None
    assert found.shut == sum(g.size // 2 for g in heads) and found.of == sum(g.size for g in heads)
    kept = {g.name: sorted(torch.argsort(this.scores[g.name])[g.size // 2 :].tolist()) for g in heads}
    loss, _ = this.naive(shearfx.mask(this.model, of_cuts(this.graph, kept)))
    assert found.loss == pytest.approx(loss, rel=1e-10)


def test_the_base_s_analysis_serves_the_model_with_adapters() -> None:
    this = Case("llama")
    plain = this.analyse()
    wrapped: Any = get_peft_model(this.model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    with double_precision():
        found = knowledge_distribution(
            this.graph, wrapped.double(), this.batches, tied=this.tied, scores=this.scores, ratios=RATIOS
        )
    assert found.reused > 0.1
    for a, b in zip(plain.rows, found.rows, strict=True):  # B starts at zero
        assert a.loss == pytest.approx(b.loss, rel=1e-10)
