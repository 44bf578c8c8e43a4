"""Products in bfloat16 on processors that do not compute in it: what is imitated, and that nothing is missed."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.widened import Widened
from tests import zoo

SLOW = ("mm", "linear", "matmul", "scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu")


class Native(TorchDispatchMode):
    """Notes products of bfloat16 tensors that come by."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's modes have no types
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name.endswith(SLOW) and any(isinstance(a, Tensor) and a.dtype is torch.bfloat16 for a in args):
            self.seen.add(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("way", [torch.inference_mode, torch.no_grad, contextlib.nullcontext])
def test_no_product_is_left_in_bfloat16(way: Any) -> None:
    model = zoo.get("llama").build().to(torch.bfloat16)
    with Native() as native, Widened(), way():  # type: ignore[no-untyped-call]
        logits: Tensor = model.module(*model.args, **model.kwargs).logits
        if torch.is_grad_enabled():
            logits.float().square().mean().backward()
    assert logits.dtype is torch.bfloat16
    assert not native.seen


def test_sums_are_those_of_float32_rounded_once() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(300, 7).bfloat16(), torch.randn(5, 300).bfloat16()
    wanted = torch.nn.functional.linear(x.float(), layer.weight.float(), layer.bias.float()).bfloat16()
    for way in (torch.inference_mode, torch.no_grad):
        with Widened(), way():  # type: ignore[no-untyped-call]
            assert torch.equal(layer(x), wanted)
