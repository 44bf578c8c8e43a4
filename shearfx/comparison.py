"""Comparing what two models return: the tolerance, and how far two outputs are apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from shearfx.errors import SoundnessError, message
from shearfx.precision import double_precision
from shearfx.tracing import evaluation

TOLERANCE = 1e-10
"""Largest error in float64, relative to the largest number of an output: thousands of roundings, no more."""
SHIPPED_TOLERANCE = 1e-5
"""The same for models compared in float32, as shipped."""


def outputs_of(module: nn.Module, inputs: Mapping[str, Any], double: bool) -> list[torch.Tensor]:
    """What a module returns that can be compared: floating tensors, or others where there are none."""
    with evaluation(module), torch.no_grad():
        if double:
            with double_precision():
                result = module(**inputs)
        else:
            result = module(**inputs)
    found = [t for t in pytree.tree_leaves(result) if isinstance(t, torch.Tensor)]
    # Whole numbers (the places of the largest logits) may change where two are equal but for rounding: they are
    # compared only where there is nothing else.
    real = [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in found]
    return [t for t in real if t.is_floating_point()] or [t.double() for t in found]


def compare(masked: list[torch.Tensor], cut: list[torch.Tensor], form: str) -> float:
    """The relative error of a form.

    Raises:
        SoundnessError: other shapes, or a number that is not finite.
    """
    if [t.shape for t in masked] != [t.shape for t in cut]:
        raise SoundnessError(
            message(
                f"the {form} form returns shapes {[tuple(t.shape) for t in cut]} where the masked original returns "
                f"{[tuple(t.shape) for t in masked]}",
                todo="please report it with the model and the plan",
            )
        )
    if not all(bool(torch.isfinite(t).all()) for t in (*masked, *cut)):
        raise SoundnessError(
            message(
                "an output is not finite, so nothing can be compared",
                where=f"{form} form",
                todo="check that the full model's output is finite on these inputs",
            )
        )
    return relative_error(masked, cut)


def relative_error(expected: list[torch.Tensor], actual: list[torch.Tensor]) -> float:
    """Maximum over the outputs of max|a - b| / max|a|."""
    worst = 0.0
    for a, b in zip(expected, actual, strict=True):
        if a.numel():
            scale = float(a.abs().max()) or 1.0
            worst = max(worst, float((a - b).abs().max()) / scale)
    return worst
