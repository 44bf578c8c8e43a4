"""Gates in weights that are formed anew whenever their module runs: parameters with adapters on them.

PEFT registers a parametrization that adds ``B A`` before such a module runs, and takes it off afterwards. A gate is one
more, after that: it multiplies the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from shearfx.gating.collector import Collector
from shearfx.gating.sites import GatedWeight
from shearfx.slices import product_along

Factors = Callable[[GatedWeight, Tensor], "Tensor | None"]
"""From a place and the weight to what the weight is multiplied by there, shaped to broadcast; None where all is one."""


class FormedWeights:
    """Puts gates on formed weights while their modules run.

    Args:
        places: of weights that modules form.
        factors: what each is multiplied by now.
        collector: who is told of derivatives on the way back, if anyone is.
        is_open: whether all gates stand open, so that modules are left alone.
    """

    def __init__(
        self,
        places: Iterable[GatedWeight],
        factors: Factors,
        collector: Callable[[], Collector | None],
        is_open: Callable[[], bool],
    ) -> None:
        self._of: dict[nn.Module, dict[str, list[GatedWeight]]] = {}
        for place in places:
            self._of.setdefault(place.module, {}).setdefault(place.leaf, []).append(place)
        self._factors, self._collector, self._is_open = factors, collector, is_open
        self._hooks: list[Any] = []

    def attach(self) -> None:
        """Gate from now on."""
        for module, leaves in self._of.items():
            put: list[str] = []

            def before(
                module: nn.Module, _: Any, leaves: dict[str, list[GatedWeight]] = leaves, put: list[str] = put
            ) -> None:
                for leaf, places in leaves.items() if not self._is_open() else ():
                    gate = _Gate(places, self._factors, self._collector())
                    if parametrize.is_parametrized(module, leaf):
                        module.parametrizations[leaf].append(gate)  # type: ignore[index, union-attr]
                    else:  # adapters are off for the while
                        parametrize.register_parametrization(module, leaf, gate, unsafe=True)
                    put.append(leaf)

            def after(module: nn.Module, _: Any, output: Any, put: list[str] = put) -> None:
                while put:
                    leaf = put.pop()
                    chain: Any = module.parametrizations[leaf]  # type: ignore[index]
                    if len(chain) > 1:
                        del chain[-1]
                    else:
                        parametrize.remove_parametrizations(module, leaf, leave_parametrized=False)

            self._hooks.append(module.register_forward_pre_hook(before))
            self._hooks.append(module.register_forward_hook(after, always_call=True))  # after an exception too

    def detach(self) -> None:
        """Gate no more."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


class _Gate(nn.Module):
    """Multiplies a weight."""

    def __init__(self, places: Sequence[GatedWeight], factors: Factors, collector: Collector | None) -> None:
        super().__init__()
        self.places, self.factors, self.collector = places, factors, collector

    def forward(self, weight: Tensor) -> Tensor:
        factors = [self.factors(place, weight) for place in self.places]
        present = [factor for factor in factors if factor is not None]
        if self.collector is not None and torch.is_grad_enabled():
            # a derivative is asked for here, whether or not anything before this place wants one
            weight = weight if weight.requires_grad else weight.detach().requires_grad_()
            gated: Tensor = _Collected.apply(weight, self.places, self.collector, *present)  # type: ignore[no-untyped-call]
            return gated
        for factor in present:
            weight = weight * factor
        return weight


class _Collected(torch.autograd.Function):
    """Weight times gradient goes to a collector on the way back; what comes out is what is kept for that, as the
    product that reads it keeps it anyway."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, places: Sequence[GatedWeight], collector: Collector, *factors: Tensor
    ) -> Tensor:
        y = weight.view_as(weight)
        for factor in factors:
            y = y * factor
        ctx.places, ctx.collector, ctx.number = places, collector, collector.number
        ctx.save_for_backward(y, *factors)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        y, *factors = ctx.saved_tensors
        for place in ctx.places:
            along = product_along(y, gradient, place.axis)
            ctx.collector.add_whole(place.group, place.where, along, ctx.number)
        for factor in factors:
            gradient = gradient * factor
        return gradient, None, None, *(None for _ in factors)
