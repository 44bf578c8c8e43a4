"""A gate in the forward pass of training, whose derivative is collected on the way back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from shearfx.gating.collector import Collector
from shearfx.gating.sites import GateSite
from shearfx.gating.stand_ins import StandIn


def collected(
    x: Tensor, vector: Tensor | None, site: GateSite, collector: Collector, stand_ins: Sequence[StandIn] = ()
) -> Tensor:
    """``x * vector`` with what stands in for what is shut; activation times gradient goes to the collector.

    What comes out is what is kept for the way back, as the layer that reads it keeps it anyway: a second tensor of its
    size at every gate would be a tenth of the memory of training.

    Args:
        x: the activation, which wants a gradient.
        vector: gates, shaped to broadcast; None where all are open.
        site: where it is gated.
        collector: told on the way back.
        stand_ins: for inputs of a layer, in the order in which they come in.
    """
    y: Tensor = _Collected.apply(x, vector, site, collector, stand_ins)  # type: ignore[no-untyped-call]
    return y


class _Collected(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, vector: Tensor | None, site: GateSite, collector: Collector, stand_ins: Sequence[StandIn]
    ) -> Tensor:
        y = x.view_as(x) if vector is None else x * vector
        before = [one.come_in(y, vector) for one in stand_ins if vector is not None]
        ctx.site, ctx.collector, ctx.number, ctx.stand_ins = site, collector, collector.number, stand_ins
        ctx.save_for_backward(y, vector, *before)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        y, vector, *before = ctx.saved_tensors
        if before:
            gradient = gradient.clone()
            for one, was in zip(reversed(ctx.stand_ins), reversed(before), strict=True):
                one.turn_back(gradient, vector)
                y = y.index_copy(-1, one.gone.to(y.device), was)
        for where_of, along in ctx.collector.along(ctx.site, y):
            ctx.collector.add(where_of, ctx.site.axis, along * gradient, ctx.number)
        return (gradient if vector is None else gradient * vector), None, None, None, None
