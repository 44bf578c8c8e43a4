"""bfloat16 on processors that do not compute in it: products in float32, rounded afterwards, as such hardware does."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
PRODUCTS = {
    # in inference mode the first three come as they are, elsewhere as what they are made of
    aten.linear.default, aten.matmul.default, aten.scaled_dot_product_attention.default,
    aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
}  # fmt: skip


class Widened(TorchDispatchMode):
    """While it is on, products of bfloat16 tensors sum in float32 and are rounded once; torch's own kernels for
    processors without such instructions do the same, at a tenth of the speed."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in PRODUCTS or args[0].dtype is not torch.bfloat16:
            return func(*args, **kwargs)
        found = func(*pytree.tree_map(_wide, args), **pytree.tree_map(_wide, kwargs))
        if func is aten._scaled_dot_product_flash_attention_for_cpu.default:
            attended, sums = found
            return attended.bfloat16(), sums  # logarithms of sums, float32 in every precision
        return pytree.tree_map(lambda x: x.bfloat16(), found)


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype is torch.bfloat16 else value
