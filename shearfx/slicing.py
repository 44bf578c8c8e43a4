"""Cutting tensors: kept slices of parameters and buffers, compensated where a norm's mean changes its divisor."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from shearfx.pruning_plan import Compensation, PruningPlan


def cut_tensor(tensor: torch.Tensor, kept: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """The tensor at the kept indices of some of its dims.

    Dims are cut one after the other, the one that drops most first, so that no index grid is ever built.
    """
    order = sorted(kept, key=lambda axis: len(kept[axis]) / tensor.shape[axis])
    for axis in order:
        tensor = take(tensor, axis, kept[axis])
    return tensor


def take(tensor: torch.Tensor, axis: int, kept: torch.Tensor) -> torch.Tensor:
    """``tensor.index_select(axis, kept)``, by plain slicing where the kept indices are one run."""
    if len(kept) and int(kept[-1]) - int(kept[0]) == len(kept) - 1:
        return tensor.narrow(axis, int(kept[0]), len(kept))
    return tensor.index_select(axis, kept.to(tensor.device))


def compensate(weight: torch.Tensor, how: Compensation) -> torch.Tensor:
    """The weight of a root-mean-square norm after its dim was cut, computed in float64."""
    factor = math.sqrt(how.before / how.after)
    return ((weight.double() + how.offset) * factor - how.offset).to(weight.dtype)


def cut_named(name: str, tensor: torch.Tensor, plan: PruningPlan) -> torch.Tensor:
    """What is left of a named parameter or buffer; the very tensor where nothing changes. Never a mere view."""
    kept = plan.kept.get(name)
    result = tensor if kept is None else cut_tensor(tensor, kept)
    for how in compensations_of(plan).get(name, ()):
        result = compensate(result, how)
    return result.contiguous() if result._base is None else result.contiguous().clone()


def compensations_of(plan: PruningPlan) -> dict[str, list[Compensation]]:
    """Compensations by each name of the weight they change."""
    found: dict[str, list[Compensation]] = {}
    for how in plan.compensations:
        for name in plan.aliases.get(how.weight, (how.weight,)):
            found.setdefault(name, []).append(how)
    return found
