"""Adapters in float32 on a bfloat16 base: the same loss and gradients, without float32 copies of activations."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from shearfx.training.losses import causal_loss
from shearfx.training.mixed_precision import mixed_precision
from tests.tiny_models import fresh, learn_something

LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
IDS = torch.arange(40).reshape(4, 10) % 17
BATCH = {"input_ids": IDS, "labels": IDS}


def wrapped(dtype: torch.dtype) -> nn.Module:
    """As PEFT makes it: factors in float32 whatever the base is."""
    model = learn_something(fresh("llama", LORA, dtype=dtype))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    return model


def step(model: nn.Module) -> tuple[float, Tensor]:
    loss = causal_loss(model, BATCH, None, 0.0)
    loss.backward()
    return float(loss.detach()), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_loss_and_gradients_are_those_of_float32_but_for_rounding() -> None:
    low = wrapped(torch.bfloat16)
    high = copy.deepcopy(low).float()
    (loss, gradient), (expected, direction) = step(low), step(high)
    assert gradient.dtype == torch.float32
    assert loss == pytest.approx(expected, rel=2e-2)  # bfloat16 has three digits
    assert float(torch.cosine_similarity(gradient, direction, 0)) > 0.99


class Products(TorchDispatchMode):
    """Counts matrix products in float32."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mm.default and result.dtype == torch.float32:
            self.count += 1
        return result


def test_no_product_is_in_float32() -> None:
    model = wrapped(torch.bfloat16)
    with Products() as inside, mixed_precision(model):
        model(input_ids=IDS)
    with Products() as outside:
        model(input_ids=IDS)
    assert inside.count == 0 < outside.count


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_models_are_left_alone(dtype: torch.dtype) -> None:
    model = learn_something(fresh("llama", LORA, dtype=dtype))
    plain = model(input_ids=IDS).logits
    with mixed_precision(model):
        assert torch.equal(model(input_ids=IDS).logits, plain)


def test_recomputed_activations_are_the_same() -> None:
    model = wrapped(torch.bfloat16)
    _, direct = step(model.train())
    model.zero_grad()
    model.enable_input_require_grads()  # type: ignore[operator]
    model.gradient_checkpointing_enable()  # type: ignore[operator]
    _, recomputed = step(model)
    torch.testing.assert_close(recomputed, direct)
