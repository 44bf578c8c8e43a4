"""Stopped at any step and resumed on a base as shipped: LHSPG's run goes on bit for bit. And what else drives it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from shearfx.errors import PlanError
from shearfx.optim import LHSPG
from shearfx.saliency.combined import Combined
from tests.tiny_models import fresh, inputs_of, loss_of, optimizer, tied, traced, train

STEPS = 9
OPTIONS: dict[str, dict[str, Any]] = {
    "gates": {"merge": "end"},
    "gates fisher": {"merge": "never", "saliency": "fisher"},
    "gates taylor constant": {"saliency": "taylor", "penalty": "constant", "strength": 0.7},
    "gates merged": {"merge": "period", "saliency": "lora_taylor"},
    "gates restarted": {"merge": "period", "saliency": "lora_taylor", "merge_moments": "reset", "merge_warmup": 2},
    "gates compensated": {"compensate": [inputs_of("llama", 70), inputs_of("llama", 71)], "half_space_eps": 0.6},
    "gates sgd": {"merge": "period", "variant": "sgd", "momentum": 0.9},
    "weights": {"carrier": "weights", "merge": "end", "half_space_eps": 0.6},
    "weights merged": {"carrier": "weights", "merge": "period", "saliency": Combined()},
    "weights fisher": {"carrier": "weights", "merge": "never", "saliency": "fisher"},
}


def make(name: str, model: nn.Module, options: dict[str, Any]) -> LHSPG:
    return optimizer(name, model, **({"warmup": 1, "periods": 3, "period_length": 2} | options))


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """As checkpoints are written and read: nothing but tensors and plain numbers, strings, lists and dicts."""
    buffer = io.BytesIO()
    torch.save(state, buffer)  # noqa: TID251 - what transformers and accelerate do with any optimiser's state
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)  # type: ignore[no-any-return] # noqa: TID251


def same(one: nn.Module, other: nn.Module) -> None:
    for (name, mine), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


CASES = [pytest.param(options, torch.float32, id=name) for name, options in OPTIONS.items()]
CASES += [pytest.param(OPTIONS[name], torch.bfloat16, id=f"{name} bf16") for name in ("gates merged", "weights merged")]


@pytest.mark.parametrize(("options", "dtype"), CASES)
def test_stopped_anywhere_the_adapter_and_the_optimiser_are_enough(options: dict[str, Any], dtype: torch.dtype) -> None:
    name = "llama"
    whole = fresh(name, {"lora_dropout": 0.2}, dtype)
    opt = make(name, whole, options)
    losses, saved = [], []
    for step in range(STEPS):
        saved.append((get_peft_model_state_dict(whole), through_a_file(opt.state_dict())))
        saved[-1] = ({k: v.clone() for k, v in saved[-1][0].items()}, saved[-1][1])
        torch.manual_seed(step)
        whole.train()
        losses += train(name, whole, opt, 1, step)
    for stop in range(STEPS) if dtype == torch.float32 else (3, 4, 7):
        again = fresh(name, {"lora_dropout": 0.2}, dtype)
        set_peft_model_state_dict(again, saved[stop][0])
        other = make(name, again, options)
        other.load_state_dict(saved[stop][1])
        found = []
        for step in range(stop, STEPS):
            torch.manual_seed(step)
            again.train()
            found += train(name, again, other, 1, step)
        assert found == losses[stop:], f"stopped at {stop}"
        assert other.zeros == opt.zeros and other.history == opt.history
        same(again, whole)


@pytest.mark.parametrize("stops", [(3, 5), (4, 6), (2, 8)])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_stopped_twice_each_time_on_the_base_as_it_was_shipped(options: dict[str, Any], stops: tuple[int, int]) -> None:
    """What the weights were at the very first is known to a run that was resumed, too."""
    whole = fresh("llama", {"lora_dropout": 0.2})
    opt = make("llama", whole, options)
    for step in range(STEPS):
        torch.manual_seed(step)
        train("llama", whole.train(), opt, 1, step)
    model, other, done = fresh("llama", {"lora_dropout": 0.2}), None, 0
    for stop in (*stops, STEPS):
        saved = get_peft_model_state_dict(model), None if other is None else through_a_file(other.state_dict())
        model = fresh("llama", {"lora_dropout": 0.2})
        set_peft_model_state_dict(model, saved[0])
        other = make("llama", model, options)
        if saved[1] is not None:
            other.load_state_dict(saved[1])
        for step in range(done, stop):
            torch.manual_seed(step)
            train("llama", model.train(), other, 1, step)
        done = stop
    assert other is not None and other.zeros == opt.zeros
    same(model, whole)


@pytest.mark.parametrize("name", ["convolutions", "perceptron"])
@pytest.mark.parametrize("carrier", ["gates", "weights"])
@pytest.mark.parametrize("saliency", ["fisher", "magnitude", "lora_cosine"])
def test_full_training_resumes_from_model_and_optimiser(name: str, carrier: str, saliency: str) -> None:
    options = {"carrier": carrier, "saliency": saliency, "half_space_eps": 0.55}
    whole = fresh(name).train()
    opt = make(name, whole, options)
    saved = []
    for step in range(STEPS):
        saved.append(({k: v.clone() for k, v in whole.state_dict().items()}, through_a_file(opt.state_dict())))
        train(name, whole, opt, 1, step)
    for stop in range(STEPS):
        again = fresh(name).train()
        again.load_state_dict(saved[stop][0])
        other = make(name, again, options)
        other.load_state_dict(saved[stop][1])
        train(name, again, other, STEPS - stop, stop)
        assert other.zeros == opt.zeros and sum(map(len, opt.zeros.values())) == 9
        same(again, whole)


def test_a_whole_model_that_was_saved_after_merges_is_not_merged_again() -> None:
    options = OPTIONS["weights merged"]
    whole = fresh("llama", {})
    opt = make("llama", whole, options)
    train("llama", whole, opt, 4)
    weights, state = {k: v.clone() for k, v in whole.state_dict().items()}, through_a_file(opt.state_dict())
    train("llama", whole, opt, 5, 4)
    again = fresh("llama", {})
    again.load_state_dict(weights)
    other = make("llama", again, options)
    other.load_state_dict(state)
    train("llama", again, other, 5, 4)
    same(again, whole)


@pytest.mark.parametrize("carrier", ["gates", "weights"])
def test_another_base_is_refused(carrier: str) -> None:
    options = {"merge": "period", "carrier": carrier}
    model = fresh("llama", {})
    opt = make("llama", model, options)
    train("llama", model, opt, 4)
    state = opt.state_dict()
    again = fresh("llama", {})
    with torch.no_grad():
        next(p for n, p in again.named_parameters() if "q_proj.base_layer" in n)[0, 0] += 1
    with pytest.raises(PlanError, match="neither"):
        make("llama", again, options).load_state_dict(state)
    train("llama", model, opt, 3, 4)
    with pytest.raises(PlanError, match="load the base"):  # back, on a base that has been merged since
        opt.load_state_dict(state)


def test_merging_into_sixteen_bits_loses_no_more_than_one_rounding() -> None:
    """Ten small merges one after the other round away; computed from the original, the last one is rounded once."""
    model = fresh("llama", {}, torch.bfloat16)
    opt = optimizer("llama", model, merge="period", target=0, warmup=0, periods=10, period_length=1)
    (path, one), *_ = opt.adapters.items()
    original = one.weight.detach().float().clone()
    generator, total = torch.Generator().manual_seed(0), torch.zeros_like(original)
    for _ in range(10):
        with torch.no_grad():
            for adapter in opt.adapters.values():
                adapter.b.copy_(2e-3 * torch.rand(adapter.b.shape, generator=generator))
                adapter.a.copy_(torch.rand(adapter.a.shape, generator=generator))
            total += one.scaling * one.b.float() @ one.a.float()
        opt.merge_adapters()
    assert torch.equal(one.weight, (original + total).to(torch.bfloat16)), path
    naive = one.weight.detach().float() - original
    assert float((naive - total).norm() / total.norm()) < 0.1  # merged into 16 bits each time it is beyond 0.3


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"periods": 2}, "schedule"),
        ({"target": 8}, "target"),
        ({"carrier": "weights"}, "GateCarrier"),
        ({"tied": "ffn"}, "does not have"),
        ({"compensate": [inputs_of("llama", 70)]}, "without compensate"),
        ({"merge": "end"}, "merge='never', and this one has 'end'"),
        ({"half_space_eps": 0.3}, "half_space_eps="),
        ({"saliency": "magnitude"}, "saliency="),
        ({"penalty": "constant", "strength": 0.1}, "strength=0.0"),
    ],
)
def test_a_state_of_another_run_is_refused(changed: dict[str, Any], said: str) -> None:
    model = fresh("llama", {})
    opt = make("llama", model, {"merge": "never"})
    train("llama", model, opt, 3)
    if "tied" in changed:
        missing = next(iter(opt.redundant))
        changed = {"tied": [t for t in tied("llama") if t.groups[0].name != missing]}
    with pytest.raises(PlanError, match=said):
        make("llama", fresh("llama", {}), {"merge": "never"} | changed).load_state_dict(opt.state_dict())
    plain = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    with pytest.raises(PlanError, match="no state of LHSPG"):
        opt.load_state_dict(plain.state_dict())


# -- what else drives an optimiser ------------------------------------------------------------------------------


def test_schedulers_closures_and_groups_of_parameters() -> None:
    name = "perceptron"
    model, plain = fresh(name), fresh(name)
    parts = [list(m.parameters()) for m in (model, plain)]
    halves: Any = [[{"params": part[:2], "lr": 0.1}, {"params": part[2:]}] for part in parts]
    opt = LHSPG(traced(name)[1], model, halves[0], target=0, merge="never", lr=0.01)
    other = torch.optim.AdamW(halves[1], lr=0.01, weight_decay=0.0)
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (step + 1)) for o in (opt, other)]
    for step in range(4):
        for one, stepper in ((model, opt), (plain, other)):

            def closure(one: nn.Module = one, stepper: Any = stepper, step: int = step) -> torch.Tensor:
                stepper.zero_grad()
                loss = loss_of(name, one, step)
                loss.backward()
                return loss

            assert stepper.step(closure) > 0
        for schedule in schedules:
            schedule.step()
        assert [g["lr"] for g in opt.param_groups] == [r * (1 / (step + 2)) for r in (0.1, 0.01)]
    same(model, plain)


def arguments(folder: Path, **more: Any) -> Any:
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=3, max_steps=8, save_steps=3, logging_steps=1, use_cpu=True,
        report_to=[], disable_tqdm=True, seed=3, **more,
    )  # fmt: skip


@pytest.mark.parametrize(("lora", "more"), [
    ({}, {"gradient_accumulation_steps": 2}), ({}, {"gradient_checkpointing": True}), (None, {}),
])  # fmt: skip
@pytest.mark.parametrize("options", [
    {"saliency": "fisher"}, {"carrier": "weights", "merge": "period", "saliency": "lora_magnitude"},
], ids=["gates", "weights"])  # fmt: skip
def test_trainer_goes_through_checkpoints(
    tmp_path: Path, lora: dict[str, Any] | None, more: dict[str, Any], options: dict[str, Any]
) -> None:
    from transformers import Trainer

    data = [{"input_ids": row, "labels": row} for row in torch.randint(3, 32, (60, 7))]

    def trainer(folder: Path) -> tuple[nn.Module, LHSPG, Trainer]:
        model = fresh("llama", lora)
        opt = make("llama", model, {"periods": 2} | options)
        schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 1 - step / 10)
        return model, opt, Trainer(model, arguments(folder, **more), train_dataset=data, optimizers=(opt, schedule))

    model, opt, first = trainer(tmp_path)
    first.train()
    assert opt.steps == 8 and sum(map(len, opt.zeros.values())) == 9
    rates = [entry["learning_rate"] for entry in first.state.log_history if "learning_rate" in entry]
    assert rates == sorted(rates, reverse=True) and len(set(rates)) == 8
    for checkpoint in ("checkpoint-3", "checkpoint-6"):
        again, other, second = trainer(tmp_path / "again")
        second.train(resume_from_checkpoint=str(tmp_path / checkpoint))
        assert other.steps == 8 and other.zeros == opt.zeros
        same(again, model)


def test_accelerate_wraps_it() -> None:
    from accelerate import Accelerator

    model, plain = fresh("llama", {}), fresh("llama", {})
    opt, other = (make("llama", m, {"saliency": "fisher"}) for m in (model, plain))
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    wrapped, stepper = accelerator.prepare(model, opt)
    for step in range(16):
        with accelerator.accumulate(wrapped):
            accelerator.backward(loss_of("llama", wrapped, step))
            stepper.step()
            stepper.zero_grad()
        (loss_of("llama", plain, step) / 2).backward()
        if step % 2:
            other.step()
            other.zero_grad()
    assert opt.steps == 8
    assert opt.zeros == other.zeros
    same(model, plain)
