"""Normalisations. Over the batch: channels pass. Over features: the size of the dim is part of the result."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from shearfx.dims import ONE, Dim, prod
from shearfx.rules.registry import Dims, Exit, Site, rule
from shearfx.values import Value, add, multiply

aten = torch.ops.aten


def _t(*shape: int) -> torch.Tensor:
    return torch.rand(shape, dtype=torch.float64) + 0.5


def _batch_samples() -> Iterable[tuple[Any, ...]]:
    x, c = _t(2, 3, 4, 4), (_t(3), _t(3), _t(3), _t(3))
    yield aten.batch_norm.default, (x, *c, False, 0.1, 1e-5, False), {}
    yield aten.batch_norm.default, (x, None, None, c[2], c[3], False, 0.1, 1e-5, False), {}
    yield aten._native_batch_norm_legit_no_training.default, (x, *c, 0.1, 1e-5), {}
    yield aten.batch_norm.default, (x, None, None, None, None, True, 0.0, 1e-5, False), {}


@rule(
    aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default, samples=_batch_samples,
)  # fmt: skip
def batch_norm(site: Site) -> Any:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` per channel, from running statistics (evaluation mode)."""
    tensors = site.tensors()
    x = site.dims(tensors[0])
    training = site.node.target is aten.batch_norm.default and site.arg("training")
    channel = x[1]
    for node in tensors[1:]:
        if node is not None:
            site.equate(channel, site.dims(node)[0])
    weight, bias = tensors[1], tensors[2]
    if training:  # of a weight, to standardise it, or where a module was left in training mode
        for i, dim in enumerate(x):
            if i != 1:
                site.approximates(dim, "a batch norm in training mode takes mean and variance over it")
    affine = _affine(weight is not None, bias is not None, zero=training)
    site.operands(tensors[0], weight, bias, transfer=affine)
    _carried(site, x, (1,))
    site.role("channels", channel)
    return x if isinstance(site.node.meta["val"], torch.Tensor) else [x, None, None]


def _carried(site: Site, x: Dims, axes: Iterable[int]) -> None:
    """Weight and bias have the normalised dims only."""
    site.record.carried = [(dim, (0, 1, 2) if i in axes else (0,)) for i, dim in enumerate(x)]


def _affine(weighted: bool, biased: bool, zero: bool = False) -> Any:
    """Of ``normalised * weight + bias``; ``zero`` where a channel of zeros has mean zero, by its own statistics."""

    def transfer(values: list[Value]) -> Value:
        normalised = Value.UNKNOWN if values[0] > Value.FINITE else Value.FINITE
        if zero and values[0] is Value.ZERO:
            normalised = Value.ZERO
        product = multiply([normalised, values[1]]) if weighted else normalised
        return add([product, values[-1]]) if biased else product

    return transfer


def _instance_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.instance_norm.default, (_t(2, 3, 4, 4), _t(3), _t(3), None, None, True, 0.1, 1e-5, False), {}


@rule(aten.instance_norm.default, samples=_instance_samples)
def instance_norm(site: Site) -> Dims:
    """Each channel of each sample by itself: channels pass, space is pinned."""
    tensors = site.tensors()
    x = site.dims(tensors[0])
    for node in tensors[1:]:
        if node is not None:
            site.equate(x[1], site.dims(node)[0])
    site.pin(x[2:], "an instance norm is over it")
    site.operands(*tensors[:3], transfer=_affine(tensors[1] is not None, tensors[2] is not None))
    _carried(site, x, (1,))
    site.role("channels", x[1])
    return x


def _layer_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.layer_norm.default, (_t(2, 3, 5), [5], _t(5), _t(5)), {}
    yield aten.layer_norm.default, (_t(2, 3, 5), [3, 5], _t(3, 5)), {}
    yield aten.native_layer_norm.default, (_t(2, 3, 5), [5], _t(5), _t(5), 1e-5), {}


@rule(aten.layer_norm.default, aten.native_layer_norm.default, samples=_layer_samples)
def layer_norm(site: Site) -> Any:
    """Mean and variance over the last dims: cutting one changes the others, so only by consent."""
    tensors = site.tensors()
    x = site.dims(tensors[0])
    shape = site.arg("normalized_shape")
    over = x[len(x) - len(shape) :]
    for node in tensors[1:]:
        if node is not None:
            for a, b in zip(over, site.dims(node), strict=True):
                site.equate(a, b)
    for dim in over:
        site.approximates(dim, "a layer norm takes mean and variance over it")
        site.role("normalised", dim)
    site.sizes("normalized_shape", over)
    weight, bias = tensors[1], tensors[2]
    site.operands(tensors[0], weight, bias, transfer=_affine(weight is not None, bias is not None))
    _carried(site, x, range(len(x) - len(shape), len(x)))
    if isinstance(site.node.meta["val"], torch.Tensor):
        return x
    statistics = (*x[: len(x) - len(shape)], *(ONE for _ in shape))
    return [x, statistics, statistics]


def _rms_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.rms_norm.default, (_t(2, 3, 5), [5], _t(5), 1e-6), {}
    yield aten.rms_norm.default, (_t(2, 3, 5), [5], None, 1e-6), {}


@rule(aten.rms_norm.default, samples=_rms_samples)
def rms_norm(site: Site) -> Dims:
    """Mean of squares over the last dims, ``n`` of them: exact after ``weight * sqrt(n/n')`` and ``eps * n/n'``.

    The weight is compensated through the composed operator (``passes.compose``); without one it is only approximate.
    """
    x = site.dims("input")
    shape = site.arg("normalized_shape")
    over = x[len(x) - len(shape) :]
    weight = site.arg("weight")
    if weight is not None:
        for a, b in zip(over, site.dims("weight"), strict=True):
            site.equate(a, b)
    for dim in over:
        reason = "a root mean square over numbers that are not zero where zeroed"
        exit_ = Exit(dim, "compensated", lambda v: v[0], reason, "a root mean square over it divides by its size")
        site.record.exits.append(exit_)
        site.role("normalised", dim)
    site.sizes("normalized_shape", over)
    site.operands(site.arg("input"), weight, transfer=multiply)
    _carried(site, x, range(len(x) - len(shape), len(x)))
    return x


def _group_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.group_norm.default, (_t(2, 6, 4), 3, _t(6), _t(6)), {}
    yield aten.group_norm.default, (_t(2, 6, 4, 4), 6, _t(6), _t(6)), {}


@rule(aten.group_norm.default, samples=_group_samples)
def group_norm(site: Site) -> Dims:
    """Channels are ``groups * c``: a whole group can go; within a group the statistics change."""
    tensors = site.tensors()
    x = site.dims(tensors[0])
    count = site.arg("num_groups")
    group = site.fresh(count)
    inner: Dim = site.fresh(x[1].size // count)
    channels = prod((group, inner))
    site.equate(x[1], channels)
    for node in tensors[1:]:
        if node is not None:
            site.equate(channels, site.dims(node)[0])
    site.approximates(inner, "a group norm takes mean and variance over it")
    site.pin(x[2:], "a group norm is over it")
    site.sizes("num_groups", group)
    site.role("channels", group)
    site.role("channels", inner)
    site.operands(*tensors[:3], transfer=_affine(tensors[1] is not None, tensors[2] is not None))
    _carried(site, x, (1,))
    return (x[0], channels, *x[2:])
