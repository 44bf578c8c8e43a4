"""Each period's end is a smaller sound model, in anyone's loop, in Trainer and from a checkpoint afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn

import shearfx
from shearfx.errors import PlanError
from shearfx.optim import LHSPG
from shearfx.precision import double_precision, doubled
from shearfx.selection import Tied
from tests.tiny_models import (
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

Kept = dict[int, tuple[nn.Module, torch.Tensor]]


def expressible(name: str) -> list[Tied]:
    """What the model's own class can be cut in, each by itself."""
    return tied(name, {"llama": ["ffn"], "gpt2": ["ffn", "heads"]}.get(name, []))


def heads_first(name: str) -> dict[str, torch.Tensor]:
    """Scores by which heads go before all else."""
    kinds = {g.name: g.kind for g in traced(name)[1].groups}
    return {group: score * (kinds[group] != "heads") for group, score in scores_of(name).items()}


def computed(name: str, small: nn.Module) -> torch.Tensor:
    """What a small model of either form computes, in float64."""
    inputs = inputs_of(name, 99)
    with torch.no_grad(), double_precision():
        found = small(**inputs) if isinstance(inputs, dict) else small(inputs.double())
    return float_outputs(found)[0]


@pytest.mark.parametrize("carrier", ["gates", "weights"])
@pytest.mark.parametrize(("name", "merge", "adapter"), [
    ("gpt2", "period", "merge"), ("gpt2", "never", "merge"), ("gpt2", "end", "keep"), ("llama", "never", "keep"),
    ("perceptron", "never", "merge"), ("convolutions", "never", "merge"),
])  # fmt: skip
def test_the_model_of_each_period_computes_what_the_gated_one_computed(
    name: str, merge: str, adapter: Any, carrier: str
) -> None:
    lora: dict[str, Any] | None = {"lora_dropout": 0.1} if name in ("llama", "gpt2") else None
    if lora and adapter == "keep":
        lora |= {"modules_to_save": ["lm_head"]} if name == "llama" else {}
    model = fresh(name, lora, torch.float64)
    kept: Kept = {}

    def keep(opt: LHSPG, period: int) -> None:
        training = model.training
        kept[period] = (opt.construct(adapter).eval(), output_of(name, model.eval()))
        model.train(training)

    target = {"llama": 0.15, "gpt2": 0.42, "perceptron": 0.5, "convolutions": 0.4}[name]
    opt = optimizer(name, model, tied=expressible(name), form="module", unit="params", target=target, floor=0.0,
                    ranking="loss", scores=heads_first(name), warmup=1, periods=3, period_length=2, merge=merge,
                    carrier=carrier, on_period=keep)  # fmt: skip
    if lora:
        learn_something(model)
        model.train()
    train(name, model, opt, 8)
    sizes = [sum(p.numel() for n, p in small.named_parameters() if "lora" not in n) for small, _ in kept.values()]
    assert list(kept) == [0, 1, 2] and sizes == sorted(set(sizes), reverse=True)
    for period, (small, before) in kept.items():
        assert isinstance(small, PeftModel) == (adapter == "keep" and lora is not None)
        assert type(small) is type(model) or lora
        assert furthest(computed(name, small), before) <= 1e-10, period
        plan = opt.plan(period)
        base: Any = small.get_base_model() if isinstance(small, PeftModel) else small
        if not isinstance(small, PeftModel):
            after = plan.shapes_after()
            assert {n: tuple(p.shape) for n, p in base.named_parameters()}.items() <= after.items()
    if name == "gpt2":  # attributes were solved for: without them the class would not run
        assert any("split_size" in changes for changes in opt.plan().attributes.values())


def test_the_fx_form_holds_what_no_class_can() -> None:
    name, model = "llama", learn_something(fresh("llama", {}, torch.float64))
    kept: Kept = {}

    def keep(opt: LHSPG, period: int) -> None:
        kept[period] = (opt.construct(), output_of(name, model))

    opt = optimizer(name, model, warmup=0, periods=2, period_length=2, merge="never", tied=tied(name), target=25,
                    on_period=keep)  # fmt: skip
    train(name, model, opt, 4)
    assert len(kept) == 2 and isinstance(kept[0][0], torch.fx.GraphModule)
    for small, before in kept.values():
        assert furthest(computed(name, doubled(small)), before) <= 1e-10
    with pytest.raises(PlanError, match="PEFT"):
        opt.construct("keep")
    with pytest.raises(PlanError, match="no adapter="):
        opt.construct("merged")  # type: ignore[arg-type]


def test_keeping_models_changes_nothing_of_the_run() -> None:
    """Gates, hooks and what was collected are put back as they were."""
    losses = []
    for keep in (None, lambda opt, period: (opt.construct(), opt.plan(), opt.state_dict())):
        model = fresh("llama", {"lora_dropout": 0.2})
        torch.manual_seed(0)
        options: dict[str, Any] = {"saliency": "fisher", "merge": "never", "on_period": keep}
        opt = optimizer("llama", model.train(), warmup=2, periods=3, period_length=2, **options)
        losses.append(train("llama", model, opt, 10))
        assert opt.gates.attached
        opt.detach()
        opt.construct()
        assert not opt.gates.attached and not any(m._forward_pre_hooks for m in model.modules())
    assert losses[0] == losses[1]


@pytest.mark.parametrize("compensate", [None, [inputs_of("llama", 70)]])
def test_evaluating_in_inference_mode_between_steps_changes_nothing(compensate: Any) -> None:
    """What gates make for a forward pass is used again by those that train."""
    losses: list[list[float]] = []
    for evaluate in (False, True):
        model = fresh("llama", {})
        opt = optimizer("llama", model, warmup=1, periods=2, period_length=2, merge="never", compensate=compensate)
        losses.append([])
        for step in range(6):
            losses[-1] += train("llama", model, opt, 1, step)
            if evaluate:
                with torch.inference_mode():
                    model(**inputs_of("llama"))
    assert losses[0] == losses[1]


def test_afterwards_a_checkpoint_of_a_periods_end_is_enough(tmp_path: Path) -> None:
    name = "gpt2"
    options: dict[str, Any] = {"tied": expressible(name), "form": "module", "target": 0.4, "unit": "params",
                               "floor": 0.0, "warmup": 1, "periods": 3, "period_length": 2,
                               "merge": "period"}  # fmt: skip
    saved: dict[int, Any] = {}

    def keep(opt: LHSPG, period: int) -> None:
        adapter = {key: value.clone() for key, value in get_peft_model_state_dict(opt.model).items()}
        small, plan = opt.construct(), opt.plan()
        shearfx.save(small, plan, tmp_path / str(period))
        saved[period] = (adapter, opt.state_dict(), plan)

    model = fresh(name, {}, torch.float64)
    opt = optimizer(name, model, on_period=keep, **options)
    train(name, model, opt, 9)
    for period, (adapter, state, plan) in saved.items():
        again = fresh(name, {}, torch.float64)
        set_peft_model_state_dict(again, adapter)
        other = optimizer(name, again, **options)
        other.load_state_dict(state)
        assert other.periods_ended == period + 1 and other.steps == 3 + 2 * period
        with double_precision():
            loaded = shearfx.load(tmp_path / str(period))
        made = other.construct()
        weights, read = made.state_dict(), loaded.state_dict()
        assert weights.keys() == read.keys() and all(torch.equal(weights[key], read[key]) for key in weights)
        # where tensors begin in memory, products may be rounded otherwise
        assert furthest(output_of(name, made), output_of(name, loaded)) <= 1e-12
        assert opt.plan(period).cuts == plan.cuts == other.plan().cuts, "told of any period afterwards"
        assert opt.plan(period).attributes == plan.attributes


def test_what_is_not_a_periods_end_is_refused() -> None:
    model = fresh("llama", {})
    opt = optimizer("llama", model, warmup=1, periods=2, period_length=3, merge="never")
    assert opt.plan().cuts == () and opt.periods_ended == 0
    train("llama", model, opt, 5)
    assert opt.periods_ended == 1 and opt.plan(0).cuts == opt.plan().cuts
    with pytest.raises(PlanError, match="half faded"):
        opt.construct()
    for period in (1, -1, 7):
        with pytest.raises(PlanError, match="has not ended"):
            opt.plan(period)
    train("llama", model, opt, 5, 5)
    assert opt.periods_ended == 2
    opt.construct()


@pytest.mark.parametrize("lora", [{}, None])
def test_trainer_keeps_the_model_of_each_period(tmp_path: Path, lora: dict[str, Any] | None) -> None:
    """Through the callback, and from Trainer's own checkpoints."""
    from transformers import Trainer, TrainingArguments

    name = "llama"
    rows = torch.randint(3, 32, (60, 7), generator=torch.Generator().manual_seed(0))
    kept: Kept = {}

    def keep(opt: LHSPG, period: int) -> None:
        opt.model.eval()
        kept[period] = (opt.construct().eval(), output_of(name, opt.model))
        opt.model.train()

    model = fresh(name, lora, torch.float64)
    options: dict[str, Any] = {"tied": expressible(name), "form": "module", "unit": "params", "target": 0.15,
                               "floor": 0.0, "warmup": 2, "periods": 2, "period_length": 2,
                               "merge": "never"}  # fmt: skip
    opt = optimizer(name, model, on_period=keep, **options)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=3, max_steps=7, save_steps=2, use_cpu=True, report_to=[],
        disable_tqdm=True, seed=3,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 1.0)
    data = [{"input_ids": row, "labels": row} for row in rows]
    Trainer(model, arguments, train_dataset=data, optimizers=(opt, schedule)).train()
    assert list(kept) == [0, 1]
    for small, before in kept.values():
        assert furthest(computed(name, small), before) <= 1e-10

    checkpoint = tmp_path / "checkpoint-4"  # the first period's end
    again: Any = fresh(name, lora, torch.float64)
    if lora is None:
        again.load_state_dict(load_file(checkpoint / "model.safetensors"), strict=False)
    else:
        again.load_adapter(checkpoint, "default", is_trainable=True)
    other = optimizer(name, again, **options)
    other.load_state_dict(torch.load(checkpoint / "optimizer.pt"))  # noqa: TID251 - as Trainer itself does
    assert other.steps == 4
    assert torch.equal(computed(name, other.construct().eval()), computed(name, kept[0][0]))
