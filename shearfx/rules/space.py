"""Space: pooling, resampling, windows, and channels traded for space. Channels pass, space is pinned."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from shearfx.dims import Dim, prod
from shearfx.rules.registry import Dims, Site, rule, shape_of
from shearfx.values import Value

aten = torch.ops.aten
SLIDES = "pooling or resampling slides over it"
WINDOWS = "windows are laid out in its place"


def _t(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def _pool_samples() -> Iterable[tuple[Any, ...]]:
    lines, images, volumes = _t(2, 3, 8), _t(2, 3, 8, 8), _t(2, 3, 4, 4, 4)
    for rank, x in enumerate((lines, images, volumes), start=1):
        yield getattr(aten, f"max_pool{rank}d").default, (x, [2] * rank), {}
        yield getattr(aten, f"avg_pool{rank}d").default, (x, [3] * rank, [2] * rank, [1] * rank), {}
        yield getattr(aten, f"adaptive_avg_pool{rank}d").default, (x, [2] * rank), {}
    yield aten.adaptive_avg_pool2d.default, (images[0], [1, 1]), {}
    yield aten._adaptive_avg_pool2d.default, (images, [1, 1]), {}
    yield aten.adaptive_max_pool1d.default, (lines, [2]), {}
    yield aten.adaptive_max_pool2d.default, (images, [2, 2]), {}
    yield aten.max_pool2d_with_indices.default, (images, [2, 2]), {}
    yield aten.max_pool3d_with_indices.default, (volumes, [2, 2, 2]), {}


@rule(
    aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default, aten.avg_pool1d.default,
    aten.avg_pool2d.default, aten.avg_pool3d.default, aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default, aten._adaptive_avg_pool2d.default,
    aten.adaptive_max_pool1d.default, aten.adaptive_max_pool2d.default, aten.max_pool2d_with_indices.default,
    aten.max_pool3d_with_indices.default, samples=_pool_samples,
)  # fmt: skip
def pool(site: Site) -> Any:
    """Pooling: every channel by itself. Where positions are returned too, they are not zero at zero."""
    return _resampled(site, SLIDES)


def _upsample_samples() -> Iterable[tuple[Any, ...]]:
    lines, images, volumes = _t(2, 3, 4), _t(2, 3, 4, 4), _t(2, 3, 2, 2, 2)
    yield aten.upsample_nearest1d.vec, (lines, None, [2.0]), {}
    yield aten.upsample_linear1d.vec, (lines, None, False, [2.0]), {}
    yield aten.upsample_nearest2d.vec, (images, None, [2.0, 2.0]), {}
    yield aten.upsample_nearest2d.default, (images, [6, 6]), {}
    for kind in ("bilinear", "bicubic"):
        yield getattr(aten, f"upsample_{kind}2d").vec, (images, [6, 6], False, None), {}
        yield getattr(aten, f"upsample_{kind}2d").default, (images, [6, 6], False), {}
        yield getattr(aten, f"_upsample_{kind}2d_aa").default, (images, [3, 3], False), {}
    yield aten.upsample_nearest3d.vec, (volumes, None, [2.0, 2.0, 2.0]), {}
    yield aten.upsample_trilinear3d.vec, (volumes, None, False, [2.0, 2.0, 2.0]), {}
    yield aten.reflection_pad1d.default, (lines, [1, 1]), {}
    yield aten.replication_pad1d.default, (lines, [1, 1]), {}
    yield aten.reflection_pad2d.default, (images, [1, 1, 1, 1]), {}
    yield aten.replication_pad2d.default, (images, [1, 1, 1, 1]), {}


@rule(
    aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec, aten.upsample_bicubic2d.vec,
    aten.upsample_nearest2d.default, aten.upsample_bilinear2d.default, aten.upsample_bicubic2d.default,
    aten.upsample_nearest1d.vec, aten.upsample_linear1d.vec, aten.upsample_nearest3d.vec,
    aten.upsample_trilinear3d.vec, aten._upsample_bicubic2d_aa.default, aten._upsample_bilinear2d_aa.default,
    aten.reflection_pad1d.default, aten.reflection_pad2d.default, aten.replication_pad1d.default,
    aten.replication_pad2d.default, samples=_upsample_samples,
)  # fmt: skip
def resample(site: Site) -> Any:
    """Resampling, and padding with what is there: every channel by itself."""
    return _resampled(site, SLIDES)


def _resampled(site: Site, reason: str) -> Any:
    first = next(n for n in site.tensors() if n is not None)
    dims = site.dims(first)
    values = site.node.meta["val"]
    single = isinstance(values, torch.Tensor)
    name = str(site.node.target)
    space = next(int(d) for d in "123" if f"{d}d" in name)
    site.operands(first, transfer=_averaged if single and "bicubic" not in name else _linear if single else _finite)
    keep = len(dims) - space
    out: list[Dim] = [site.fresh(s) for s in shape_of(values if single else values[0])[keep:]]
    site.pin((*dims[keep:], *out), reason)
    result = (*dims[:keep], *out)
    return result if single else [result] * len(values)


def _averaged(values: list[Value]) -> Value:
    """Of averages and maxima: they keep the sign, but for a zero in the padding."""
    return Value.NONNEGATIVE if values[0] in (Value.POSITIVE, Value.NONNEGATIVE) else _linear(values)


def _linear(values: list[Value]) -> Value:
    return Value.ZERO if values[0] is Value.ZERO else _finite(values)


def _finite(values: list[Value]) -> Value:
    return Value.UNKNOWN if max(values) > Value.FINITE else Value.FINITE


def _unpool_samples() -> Iterable[tuple[Any, ...]]:
    pooled, indices = aten.max_pool2d_with_indices.default(_t(2, 3, 4, 4), [2, 2])
    yield aten.max_unpool2d.default, (pooled, indices, [4, 4]), {}


@rule(aten.max_unpool2d.default, samples=_unpool_samples)
def unpool(site: Site) -> Dims:
    """Written to places found by pooling: every channel by itself."""
    dims, places = site.dims("self"), site.dims("indices")
    for a, b in zip(dims[:-2], places[:-2], strict=True):
        site.equate(a, b)
    out = tuple(site.fresh(s) for s in site.shape()[-2:])
    site.pin((*dims[-2:], *places[-2:], *out), SLIDES)
    site.operands(site.arg("self"), transfer=_linear)
    return (*dims[:-2], *out)


def _grid_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.grid_sampler.default, (_t(2, 3, 4, 4), torch.rand(2, 5, 6, 2).double(), 0, 0, False), {}
    yield aten.grid_sampler_2d.default, (_t(2, 3, 4, 4), torch.rand(2, 5, 6, 2).double(), 1, 0, False), {}


@rule(aten.grid_sampler.default, aten.grid_sampler_2d.default, samples=_grid_samples)
def grid_sample(site: Site) -> Dims:
    """``n c s..., n t... 2 -> n c t...``: interpolated at places given by data."""
    dims, grid = site.dims("input"), site.dims("grid")
    site.equate(dims[0], grid[0])
    site.pin((*dims[2:], *grid[1:]), "interpolated at places given by data")
    site.operands(site.arg("input"), site.arg("grid"), transfer=_interpolated)
    site.record.carried = [(dims[0], (0, 1)), (dims[1], (0,))]
    return (dims[0], dims[1], *grid[1:-1])


def _interpolated(values: list[Value]) -> Value:
    if max(values) > Value.FINITE:
        return Value.UNKNOWN
    return Value.ZERO if values[0] is Value.ZERO else Value.FINITE


# -- channels and space --------------------------------------------------------------------------------


def _shuffle_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.pixel_shuffle.default, (_t(2, 12, 2, 3), 2), {}
    yield aten.pixel_unshuffle.default, (_t(2, 3, 4, 6), 2), {}


@rule(aten.pixel_shuffle.default, aten.pixel_unshuffle.default, samples=_shuffle_samples)
def pixel_shuffle(site: Site) -> Dims:
    """``c*r*r h w -> c h*r w*r``, and back: the factor is never cut, nor is space."""
    dims = site.dims("self")
    down = site.node.target is aten.pixel_unshuffle.default
    factor = site.arg("downscale_factor" if down else "upscale_factor")
    square = site.fresh(factor), site.fresh(factor)
    out = tuple(site.fresh(s) for s in site.shape()[-2:])
    site.pin((*square, *dims[-2:], *out), "channels and space are traded for each other")
    channels = dims[-3] if down else site.fresh(site.shape()[-3])
    if not down:
        site.equate(dims[-3], prod((channels, *square)))
    site.operands(site.arg("self"), transfer=lambda v: v[0])
    return (*dims[:-3], prod((channels, *square)) if down else channels, *out)


def _groups_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.channel_shuffle.default, (_t(2, 12, 3), 3), {}
    yield aten.native_channel_shuffle.default, (_t(2, 12, 3, 2), 4), {}


@rule(aten.channel_shuffle.default, aten.native_channel_shuffle.default, samples=_groups_samples)
def channel_shuffle(site: Site) -> Dims:
    """``g*c -> c*g``."""
    dims = site.dims("self")
    group = site.fresh(site.arg("groups"))
    inner = site.fresh(dims[1].size // site.arg("groups"))
    site.equate(dims[1], prod((group, inner)))
    site.sizes("groups", group)
    site.operands(site.arg("self"), transfer=lambda v: v[0])
    return (dims[0], prod((inner, group)), *dims[2:])


def _window_samples() -> Iterable[tuple[Any, ...]]:
    geometry = [2, 2], [1, 1], [0, 0], [2, 2]
    yield aten.im2col.default, (_t(2, 3, 4, 6), *geometry), {}
    yield aten.im2col.default, (_t(3, 4, 4), *geometry), {}
    yield aten.col2im.default, (_t(2, 12, 6), [4, 6], *geometry), {}
    yield aten.col2im.default, (_t(12, 4), [4, 4], *geometry), {}


@rule(aten.im2col.default, aten.col2im.default, samples=_window_samples)
def windows(site: Site) -> Dims:
    """``c h w -> c*k*k t`` (each window a column), and back as a sum."""
    dims, shape = site.dims("self"), site.shape()
    unfolding = site.node.target is aten.im2col.default
    kernel = site.arg("kernel_size")
    window = site.fresh(kernel[0] * kernel[-1])
    site.operands(site.arg("self"), transfer=_linear)
    if unfolding:
        columns = site.fresh(shape[-1])
        site.pin((window, columns, *dims[-2:]), WINDOWS)
        return (*dims[:-3], prod((dims[-3], window)), columns)
    channels = site.fresh(shape[-3])
    site.equate(dims[-2], prod((channels, window)))
    out = tuple(site.fresh(s) for s in shape[-2:])
    site.pin((window, dims[-1], *out), WINDOWS)
    return (*dims[:-2], channels, *out)
