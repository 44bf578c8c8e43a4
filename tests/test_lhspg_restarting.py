"""After a merge: LHSPG's moments and learning rate are what the options say, and the function is what it was.

Source of what is asked: LoRAShear, Algorithm 4, line 9; ReLoRA (arXiv 2307.05695), section 3.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shearfx.optim import LHSPG
from shearfx.optim.schedule import Schedule
from tests.tiny_models import by_hand, fresh, furthest, learn_something, optimizer, output_of, traced, train

LORA: dict[str, Any] = {"target_modules": ["one", "two"], "modules_to_save": ["three"]}


def halves(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Adapters in one group of parameters, the layer that is trained whole in another."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [{"params": [p for name, p in named if ("lora_" in name) == adapters]} for adapters in (True, False)]


@settings(max_examples=40)
@given(
    variant=st.sampled_from(["adamw", "sgd"]), moments=st.sampled_from(["keep", "reset"]), rise=st.integers(0, 4),
    warmup=st.integers(0, 2), periods=st.integers(1, 3), length=st.integers(1, 4),
    merge=st.sampled_from(["period", "end"]), seed=st.integers(0, 99),
)  # fmt: skip
def test_after_a_merge_the_variant_goes_on_as_asked(
    variant: Any, moments: Any, rise: int, warmup: int, periods: int, length: int, merge: Any, seed: int
) -> None:
    """Beside the plain optimiser, whose B, state and rates are set by hand; bit for bit."""
    model, plain = fresh("perceptron", LORA), fresh("perceptron", LORA)
    kind: Any = torch.optim.AdamW if variant == "adamw" else torch.optim.SGD
    own: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1} | ({"momentum": 0.8} if variant == "sgd" else {})
    schedule = Schedule(warmup, periods, length)
    opt = LHSPG(traced("perceptron")[1], model, halves(model), target=0, merge=merge, merge_moments=moments,
                merge_warmup=rise, warmup=warmup, periods=periods, period_length=length, variant=variant,
                **own)  # fmt: skip
    other = kind(halves(plain), **own)
    cosine = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (step + 2)) for o in (opt, other)]
    since = None
    for step in range(schedule.steps + 3):
        rates = [group["lr"] for group in other.param_groups]
        if since is not None and since < rise:  # of the adapters' group alone
            other.param_groups[0]["lr"] = rates[0] * ((since + 1) / (rise + 1))
        for one, stepper in ((model, opt), (plain, other)):
            by_hand(one, seed + step)
            stepper.step()
        for group, rate in zip(other.param_groups, rates, strict=True):
            group["lr"] = rate
        since = None if since is None else since + 1
        moment = schedule.at(step)
        ended = 0 <= moment.period < periods and moment.step == length - 1
        if ended and (merge == "period" or moment.period == periods - 1):
            since = 0
            for name, parameter in plain.named_parameters():
                if "lora_B" in name:
                    parameter.data.zero_()
                if "lora_" in name and moments == "reset":
                    other.state.pop(parameter, None)
        for scheduler in cosine:
            scheduler.step()
        assert [g["lr"] for g in opt.param_groups] == [g["lr"] for g in other.param_groups]
        for (name, mine), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
            if mine.requires_grad:
                assert torch.equal(mine, theirs), (step, name)


@pytest.mark.parametrize("moments", ["keep", "reset"])
@pytest.mark.parametrize("carrier", ["gates", "weights"])
def test_merging_does_not_change_the_function_whatever_becomes_of_the_moments(carrier: str, moments: str) -> None:
    model = learn_something(fresh("llama", {}, torch.float64))
    opt = optimizer("llama", model, carrier=carrier, merge="end", merge_moments=moments, merge_warmup=2, warmup=1,
                    periods=2, period_length=2)  # fmt: skip
    train("llama", model, opt, 4)
    before = output_of("llama", model)
    opt.merge_adapters()
    assert furthest(output_of("llama", model), before) <= 1e-10
    assert bool(opt.state) == (moments == "keep")
    train("llama", model, opt, 3, 4)
    assert furthest(output_of("llama", model), before) > 1e-3, "it learns on"
