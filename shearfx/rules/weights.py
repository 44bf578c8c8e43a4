"""Gates and weights with a twist: gated linear units, per-channel slopes, normalised weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from shearfx.dims import concat
from shearfx.rules.registry import Dims, Site, is_one, rule
from shearfx.values import Value

aten = torch.ops.aten


def _t(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def _glu_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.glu.default, (_t(2, 8),), {}
    yield aten.glu.default, (_t(2, 6, 3), 1), {}


@rule(aten.glu.default, samples=_glu_samples)
def glu(site: Site) -> Dims:
    """``a + a -> a``: the first half times the sigmoid of the second."""
    dims = site.dims("self")
    axis = site.axis("dim", len(dims))
    half = site.fresh(site.shape()[axis])
    site.equate(dims[axis], concat((half, half)))
    site.operands(site.arg("self"), transfer=_kept_zero)
    return (*dims[:axis], half, *dims[axis + 1 :])


def _kept_zero(values: list[Value]) -> Value:
    if max(values) > Value.FINITE:
        return Value.UNKNOWN
    return Value.ZERO if values[0] is Value.ZERO else Value.FINITE


def _prelu_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.prelu.default, (_t(2, 3, 4), _t(3)), {}
    yield aten.prelu.default, (_t(2, 3, 4), _t(1)), {}
    yield aten.prelu.default, (_t(4), _t(1)), {}


@rule(aten.prelu.default, samples=_prelu_samples)
def prelu(site: Site) -> Dims:
    """A slope for each channel (dim 1), or one for all."""
    dims, slope = site.dims("self"), site.dims("weight")
    site.operands(site.arg("self"), site.arg("weight"), transfer=_sloped)
    channel = 1 if len(dims) > 1 else 0
    site.record.carried = [(dim, (0, 1) if i == channel else (0,)) for i, dim in enumerate(dims)]
    if slope and not is_one(slope[0].size):
        site.equate(dims[channel], slope[0])
    return dims


def _sloped(values: list[Value]) -> Value:
    if max(values) > Value.FINITE:
        return Value.UNKNOWN
    return values[0]


def _weight_norm_samples() -> Iterable[tuple[Any, ...]]:
    yield aten._weight_norm.default, (_t(4, 3, 2), _t(4, 1, 1), 0), {}
    yield aten._weight_norm.default, (_t(4, 3, 2), _t(1, 1, 2), 2), {}


@rule(aten._weight_norm.default, samples=_weight_norm_samples)
def weight_norm(site: Site) -> Dims:
    """``g * v / |v|``, the length taken over all dims but one: over those, a zero more or less changes nothing.

    Along that one, a zeroed row has no length to be divided by: the masked model is not a number there.
    """
    v, g = site.dims("v"), site.dims("g")
    axis = site.axis("dim", len(v))
    site.equate(v[axis], g[axis])
    for i, dim in enumerate(v):
        if i == axis:
            site.approximates(dim, "weight norm divides by the length of each row, and a zeroed row has none: fold it "
                              "first (torch.nn.utils.parametrize.remove_parametrizations)")  # fmt: skip
        else:
            site.contracts(dim, lambda values: values[0], carriers=(0,))
    site.operands(site.arg("v"), site.arg("g"), transfer=lambda values: values[0])
    site.record.carried = [(dim, (0, 1) if i == axis else (0,)) for i, dim in enumerate(v)]
    return v
