"""Masking: the full-size model with the removed structures zeroed. What a cut model has to agree with."""

from __future__ import annotations

import copy

import torch
from torch import nn

from shearfx.architectures import shapes
from shearfx.fewer_layers import before_cuts
from shearfx.pruning_plan import PruningPlan


def mask(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """A full-size copy of the model in which every floating parameter slice of a removed structure is zero.

    Buffers stay as they are: cutting must not depend on them. Layers that go whole are not masked but left out.

    Raises:
        PlanError: the plan was made for another model.
    """
    model = before_cuts(model, plan)
    plan.check_fits(shapes(model), type(model).__name__)
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in masked.named_parameters():
            if parameter.is_floating_point():
                for axis, kept in plan.kept.get(name, {}).items():
                    removed = torch.ones(parameter.shape[axis], dtype=torch.bool)
                    removed[kept] = False
                    parameter.index_fill_(axis, removed.nonzero().flatten().to(parameter.device), 0)
    return masked
