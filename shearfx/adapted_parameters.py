"""LoRA adapters on parameters that are no layer's weight: the fused experts of a mixture, and what routes to them.

PEFT keeps the factors of all experts side by side, and adds their product to the parameter while the module runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from shearfx.low_rank import active_adapters, adapts_parameter

EXPERTS = 3
"""Dims of a parameter that holds a matrix for each expert."""


@dataclass(frozen=True, eq=False)
class AdaptedParameter:
    """One adapter: ``scaling * B_e @ A_e`` is added to matrix ``e`` of a frozen parameter."""

    path: str
    """Of the adapter's layer in the live model."""
    parameter: str
    """What the module inside calls it."""
    a: Tensor
    """``[experts, rank, in]``; one expert of a parameter with two dims."""
    b: Tensor
    """``[experts, out, rank]``."""
    scaling: float
    transposed: bool
    """Whether each matrix is ``[in, out]``."""

    @property
    def name(self) -> str:
        """Of the parameter, in the wrapped model."""
        return f"{self.path}.base_layer.{self.parameter}"

    def parts(self, weight: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Of each expert: its part of a tensor shaped like the parameter, ``[out, in]``, A and B."""
        stack = weight if weight.dim() == EXPERTS else weight[None]
        for one, a, b in zip(stack, self.a.detach(), self.b.detach(), strict=True):
            yield (one.T if self.transposed else one), a, b


def adapted_parameters(model: nn.Module) -> list[AdaptedParameter]:
    """The active LoRA adapters of a live model that are on bare parameters.

    Raises:
        PlanError: an adapter is more than ``scaling * B @ A``, is merged already, or several are active at once.
    """
    found = []
    for path, name, module in active_adapters(model):
        if not adapts_parameter(module):
            continue
        parameter: Tensor = module.get_param()
        a, b = module.lora_A[name].weight, module.lora_B[name].weight
        stacked = parameter.dim() == EXPERTS
        experts = len(parameter) if stacked else 1
        transposed = stacked and bool(getattr(module.get_base_layer(), "is_transposed", False))
        found.append(
            AdaptedParameter(
                path, module.parameter_name, a.unflatten(0, (experts, -1)),
                b.unflatten(1, (-1, experts)).permute(2, 0, 1), float(module.scaling[name]), transposed,
            )
        )  # fmt: skip
    return found


def experts_of(model: nn.Module) -> list[str]:
    """Names of the parameters that hold a matrix for each expert."""
    return [
        f"{path}.{name}"
        for path, module in model.named_modules() if hasattr(module, "num_experts")
        for name, parameter in module.named_parameters(recurse=False) if parameter.dim() == EXPERTS
    ]  # fmt: skip
