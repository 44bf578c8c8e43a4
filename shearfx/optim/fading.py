"""The half-space test and the ramp of LHSPG, structure by structure.

Source: LoRAShear, Algorithm 4, lines 6 to 9, and equation (2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Penalty = Literal["ramp", "constant"]


@dataclass(frozen=True)
class Rule:
    """How structures fade, and when they fall to zero before the period ends."""

    penalty: Penalty = "ramp"
    strength: float = 0.0
    epsilon: float = 0.0

    @property
    def tests(self) -> bool:
        """Whether there is a half-space test at all."""
        return not math.isinf(self.epsilon)

    @property
    def looks(self) -> bool:
        """Whether lengths of weights are needed."""
        return self.tests or self.penalty == "constant"

    def factor(self, left: int, norm: Tensor, gate: Tensor) -> Tensor:
        """See :func:`trial_factor`."""
        return trial_factor(self.penalty, left, norm, gate, self.strength)

    def falls(self, factor: Tensor, inner: Tensor, norm: Tensor, left: int) -> Tensor:
        """See :func:`falls`."""
        return falls(factor, inner, norm, left, self.epsilon)


def trial_factor(penalty: Penalty, left: int, norm: Tensor, gate: Tensor, strength: float) -> Tensor:
    """By what the trial iterate multiplies a structure's present weights before what was learnt is added.

    Equation (2) subtracts ``lambda_g x_g / ||x_g||``. The ramp has ``lambda_g = ||x_g|| / left``, so that a structure
    fades by equal amounts and is gone at the last step; ``constant`` has ``lambda_g = strength`` (Figure 3).

    Args:
        penalty: the form of lambda.
        left: steps left in the period, this one included.
        norm: ``||x_g||`` of the weights as they are in the model, gates aside; ``[n]``.
        gate: what they are multiplied by at present; ``[n]``.
        strength: lambda of the constant penalty.

    Returns:
        Numbers from 0 to 1, ``[n]``.
    """
    if penalty == "ramp":
        return torch.full_like(gate, 1.0 - 1.0 / left)
    present = (gate * norm).clamp(min=torch.finfo(norm.dtype).tiny)
    return (1.0 - strength / present).clamp(min=0.0)


def falls(factor: Tensor, inner: Tensor, norm: Tensor, left: int, epsilon: float) -> Tensor:
    """Whether a structure is projected to zero: bool ``[n]``.

    The half-space test is ``<trial, x> < epsilon ||x||^2`` with ``trial = factor x + d``; at the last step of a
    period all structures fall.

    Args:
        factor: of :func:`trial_factor`.
        inner: ``<x, d>``, ``d`` being what was learnt for the structure; ``[n]``.
        norm: ``||x||``; ``[n]``.
        left: steps left in the period, this one included.
        epsilon: of the half-space; ``-inf`` never fires.
    """
    if left <= 1:
        return torch.ones_like(factor, dtype=torch.bool)
    if math.isinf(epsilon):
        return torch.zeros_like(factor, dtype=torch.bool)
    square = norm.square()
    return factor * square + inner < epsilon * square
