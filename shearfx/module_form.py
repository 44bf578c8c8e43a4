"""The original class with sliced parameters and adjusted attributes."""

from __future__ import annotations

from torch import nn

from shearfx.pruning_plan import PruningPlan


def construct_module(model: nn.Module, plan: PruningPlan, *, consume: bool = False) -> nn.Module:
    """The smaller model in its own class."""
    raise NotImplementedError
