"""Sums over the slices of weights and of what was learnt for them, of all weights at once where kernels can."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from shearfx.cuda import choosing
from shearfx.cuda.statistics import Lines, Statistics
from shearfx.errors import PlanError, message
from shearfx.low_rank import LowRank, plain_weight, spans, wider

Key: TypeAlias = tuple[str, int]
"""Name of a live parameter, and a dim of it."""


@dataclass(frozen=True, eq=False)
class Place:
    """A parameter along one of its dims."""

    module: nn.Module
    leaf: str
    dim: int
    adapter: LowRank | None
    gradient: Tensor | None
    """What stands in an adapter's place: ``d`` is its negative."""

    @property
    def parameter(self) -> Tensor:
        """As it is kept."""
        found: Tensor = getattr(self.module, self.leaf)
        return found.detach()

    @property
    def lines(self) -> Lines:
        """As kernels see it."""
        return Lines(self.parameter, self.dim, None, self.adapter, self.gradient, -1.0)


def along_all(places: Mapping[Key, Place], kernels: choosing.Kernels) -> dict[Key, tuple[Tensor, Tensor, Tensor]]:
    """``||x||^2``, ``<x, d>`` and ``||d||^2`` of every slice; each float64 ``[size]`` on the CPU.

    Raises:
        PlanError: weights are on the meta device.
    """
    # some quantisers keep a weight under another name
    kept = {
        k: place.lines for k, place in places.items() if isinstance(getattr(place.module, place.leaf, None), Tensor)
    }
    found: dict[Key, tuple[Tensor, Tensor, Tensor]] = {}
    for where, keys in choosing.fitting(kept, kernels).items():
        statistics = Statistics(where, [kept[key] for key in keys])
        parts = statistics.run().cpu().double().split([one.count for one in statistics.lines], dim=1)
        found |= {key: (part[0], part[1], part[2]) for key, part in zip(keys, parts, strict=True)}
    return {key: found[key] if key in found else _along(place) for key, place in places.items()}


def _along(place: Place) -> tuple[Tensor, Tensor, Tensor]:
    weight = plain_weight(place.module) if place.leaf == "weight" else place.parameter
    if weight.is_meta:
        what = f"a saliency looks at weights, and a {place.leaf} is on the meta device"
        raise PlanError(message(what, todo="load them"))
    squares = _sums(weight, weight, place.dim)
    if place.adapter is not None:
        one = place.adapter
        return squares, one.inner(place.dim).cpu().double(), one.squares(place.dim).cpu().double()
    if place.gradient is None:
        zero = torch.zeros_like(squares)
        return squares, zero, zero
    gradient = place.gradient
    return squares, -_sums(weight, gradient, place.dim), _sums(gradient, gradient, place.dim)


def _sums(left: Tensor, right: Tensor, dim: int) -> Tensor:
    """The sum of products along each slice, a part of the tensors at a time; float64 ``[size]`` on the CPU."""
    dtype = wider(left.dtype)
    total = torch.zeros(left.shape[dim], dtype=dtype, device=left.device)
    others = [i for i in range(left.dim()) if i != dim]
    for start, stop in spans(len(left), left[0].numel()):
        part = left[start:stop].to(dtype) * right[start:stop].to(dtype)
        if dim == 0:
            total[start:stop] = part.sum(others) if others else part
        else:
            total += part.sum(others)
    return total.cpu().double()
