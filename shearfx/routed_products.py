"""Matrix products of routed experts: rows sorted by expert, each multiplied with the matrix of its own."""

from __future__ import annotations

from typing import Any

import torch
import transformers.integrations.moe  # noqa: F401  registers the form of the product that takes every dtype and size
from torch.overrides import TorchFunctionMode

PRODUCT = torch.ops.transformers.grouped_mm_fallback.default
KERNELS = [getattr(torch, "_grouped_mm", None), getattr(torch.nn.functional, "grouped_mm", None)]
KERNEL_MULTIPLE = 8
"""What the kernels want dims to be multiples of: their rows begin at multiples of 16 bytes, of two each or more."""


class PlainProducts(TorchFunctionMode):
    """Inside, these products run, and are traced, as the operator that takes every dtype and every size: the kernel
    takes 16 and 32 bits only, and rows of some lengths."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in KERNELS:
            call = dict(zip(("rows", "experts"), args, strict=False)) | (kwargs or {})
            ranks = [getattr(call.get(name), "ndim", None) for name in ("rows", "experts", "offs")]
            if ranks == [2, 3, 1] and call.get("bias") is None and call.get("out_dtype") is None:
                return PRODUCT(call["rows"], call["experts"], call["offs"])
        return func(*args, **(kwargs or {}))
