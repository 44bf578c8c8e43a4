"""Adapters that are kept in float32 and compute in the precision of their base."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def mixed_precision(model: nn.Module) -> Iterator[None]:
    """For the while, float32 adapters of a bfloat16 base compute in bfloat16; of any other model, nothing changes.

    PEFT keeps the factors of such adapters in float32, for the small steps that an optimiser takes, and for that copies
    the input of every adapter to float32 and computes there: a second set of activations, and the slowest products of
    the step. Here the small factors are rounded instead, once a step.
    """
    base = {p.dtype for p in model.parameters() if not p.requires_grad and p.is_floating_point()}
    trained = {p.dtype for p in model.parameters() if p.requires_grad}
    if base != {torch.bfloat16} or trained != {torch.float32}:
        yield
        return
    from peft.helpers import disable_input_dtype_casting

    device = next(model.parameters()).device.type
    with disable_input_dtype_casting(model), torch.autocast(device, torch.bfloat16):
        yield
