"""Views: operators that rearrange dims without touching numbers. A reshape says: product of dims = product of dims."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from shearfx.dims import ONE, Dim, prod, quotient
from shearfx.rules.registry import Dims, Replacement, Site, is_one, rule
from shearfx.values import join

aten = torch.ops.aten


def _t(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def _reshape_samples() -> Iterable[tuple[Any, ...]]:
    for target in (aten.view.default, aten.reshape.default, aten._unsafe_view.default):
        yield target, (_t(2, 12), [2, 3, 4]), {}
        yield target, (_t(2, 3, 4), [2, -1]), {}
        yield target, (_t(4, 6), [8, 3]), {}
        yield target, (_t(2, 3, 4), [24]), {}
        yield target, (_t(6, 1, 4), [3, 2, 2, 2]), {}


@rule(aten.view.default, aten.reshape.default, aten._unsafe_view.default, samples=_reshape_samples)
def reshape(site: Site) -> Dims:
    """The row-major product of the dims stays what it was."""
    site.operands(site.arg("self"), transfer=join)
    out = _reshaped(site, site.dims("self"))
    site.sizes("shape" if site.node.target is aten.reshape.default else "size", out)
    return out


def _reshaped(site: Site, dims: Dims) -> Dims:
    """Dims of the result for the traced shape; dims that stay in place keep their very term."""
    shape = site.shape()
    front = 0
    while front < min(len(shape), len(dims)) and dims[front].size == shape[front]:
        front += 1
    back = 0
    while back < min(len(shape), len(dims)) - front and dims[-1 - back].size == shape[-1 - back]:
        back += 1
    middle = tuple(site.fresh(size) for size in shape[front : len(shape) - back])
    rest = dims[front : len(dims) - back]
    if middle or rest:
        site.equate(prod(rest), prod(middle))
    return (*dims[:front], *middle, *dims[len(dims) - back :])


def _flatten_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.flatten.using_ints, (_t(2, 3, 4, 5), 1, 2), {}
    yield aten.flatten.using_ints, (_t(2, 3, 4),), {}


@rule(aten.flatten.using_ints, samples=_flatten_samples)
def flatten(site: Site) -> Dims:
    """Some neighbouring dims become their product."""
    site.operands(site.arg("self"), transfer=join)
    return _reshaped(site, site.dims("self"))


def _unflatten_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.unflatten.int, (_t(2, 12, 5), 1, [3, 4]), {}
    yield aten.unflatten.int, (_t(2, 12), -1, [-1, 4]), {}


@rule(aten.unflatten.int, samples=_unflatten_samples)
def unflatten(site: Site) -> Dims:
    """One dim becomes a product."""
    site.operands(site.arg("self"), transfer=join)
    out = _reshaped(site, site.dims("self"))
    axis = site.axis("dim", len(site.dims("self")))
    site.sizes("sizes", out[axis : axis + len(site.arg("sizes"))])
    return out


def _permute_samples() -> Iterable[tuple[Any, ...]]:
    x = _t(2, 3, 4, 5)
    yield aten.permute.default, (x, [0, 2, -1, 1]), {}
    yield aten.transpose.int, (x, 1, -1), {}
    yield aten.swapaxes.default, (x, 1, 2), {}
    yield aten.movedim.int, (x, 1, -1), {}
    yield aten.t.default, (_t(3, 4),), {}
    yield aten.numpy_T.default, (x,), {}
    yield aten.mT.default, (x,), {}
    yield aten.swapdims.default, (x, 1, 2), {}
    yield aten.moveaxis.int, (x, 1, -1), {}
    yield aten.movedim.intlist, (x, [0, 1], [2, 0]), {}
    yield aten.moveaxis.intlist, (x, [0, 1], [2, 0]), {}


@rule(
    aten.permute.default, aten.transpose.int, aten.swapaxes.default, aten.movedim.int, aten.t.default,
    aten.numpy_T.default, aten.mT.default, aten.swapdims.default, aten.moveaxis.int, aten.movedim.intlist,
    aten.moveaxis.intlist, samples=_permute_samples,
)  # fmt: skip
def permute(site: Site) -> Dims:
    """Dims change places: the operator, run on a tensor of distinct sizes, shows where each goes."""
    node = site.node
    x = next(n for n in site.tensors() if n is not None)
    dims = site.dims(x)
    probe = torch.empty([i + 2 for i in range(len(dims))], device="meta")
    moved = node.target(probe, *node.args[1:], **node.kwargs)  # type: ignore[operator]
    site.operands(x, transfer=join)
    return tuple(dims[size - 2] for size in moved.shape)


def _squeeze_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.squeeze.dim, (_t(2, 1, 4), 1), {}
    yield aten.squeeze.dim, (_t(2, 3, 4), 1), {}
    yield aten.squeeze.dims, (_t(1, 3, 1, 4), [0, 2]), {}
    yield aten.squeeze.default, (_t(1, 3, 1, 4),), {}
    yield aten.unsqueeze.default, (_t(3, 4), -1), {}


@rule(aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default, aten.unsqueeze.default, samples=_squeeze_samples)
def squeeze(site: Site) -> Dims:
    """Dims of size one come and go."""
    site.operands(site.arg("self"), transfer=join)
    dims = [dim for dim in site.dims("self") if not is_one(dim.size)]
    result = tuple(ONE if is_one(size) else dims.pop(0) for size in site.shape())
    assert not dims, f"{site.node}: a dim was lost"
    if site.node.target is not aten.unsqueeze.default:  # a dim that is cut down to one index stays
        gone = tuple(i for i, dim in enumerate(site.dims("self")) if is_one(dim.size) and i in _squeezed(site))
        site.record.replace = Replacement(aten.squeeze.dims, (gone,))
    return result


def _squeezed(site: Site) -> list[int]:
    rank = len(site.dims("self"))
    return list(range(rank)) if site.node.target is aten.squeeze.default else site.axes("dim", rank)


def _expand_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.expand.default, (_t(2, 1, 4), [2, 3, 4]), {}
    yield aten.expand.default, (_t(4), [3, -1]), {}
    yield aten.expand_as.default, (_t(2, 1, 4), _t(2, 3, 4)), {}
    yield aten.broadcast_to.default, (_t(2, 1, 4), [2, 3, 4]), {}


@rule(aten.expand.default, aten.broadcast_to.default, samples=_expand_samples)
def expand(site: Site) -> Dims:
    """A stretched dim is free: nothing ties how often a number is repeated."""
    site.operands(site.arg("self"), transfer=join)
    out = _stretched(site, site.dims("self"))
    site.sizes("size", out)
    return out


def _stretched(site: Site, dims: Dims) -> Dims:
    shape = site.shape()
    padded = (ONE,) * (len(shape) - len(dims)) + dims
    stretched = [is_one(dim.size) and not is_one(size) for dim, size in zip(padded, shape, strict=True)]
    out = [site.fresh(size) if new else dim for dim, size, new in zip(padded, shape, stretched, strict=True)]
    for dim, before in zip(out, padded, strict=True):
        if dim is not before:
            site.role("repeated", dim)
    return tuple(out)


@rule(aten.expand_as.default, samples=lambda: list(_expand_samples())[2:3])
def expand_as(site: Site) -> Dims:
    """Stretched to the dims of the other tensor."""
    site.operands(site.arg("self"), transfer=join)
    return site.broadcast([site.dims("self"), site.dims("other")])


def _view_as_samples() -> Iterable[tuple[Any, ...]]:
    for target in (aten.view_as.default, aten.reshape_as.default):
        yield target, (_t(2, 12), _t(2, 3, 4)), {}
        yield target, (_t(6, 4), _t(2, 3, 4)), {}


@rule(aten.view_as.default, aten.reshape_as.default, samples=_view_as_samples)
def view_as(site: Site) -> Dims:
    """Reshaped to the dims of the other tensor."""
    site.operands(site.arg("self"), transfer=join)
    site.equate(prod(site.dims("self")), prod(site.dims("other")))
    return site.dims("other")


def _repeat_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.repeat.default, (_t(2, 3), [1, 2, 1]), {}
    yield aten.repeat.default, (_t(2, 3), [2, 3]), {}
    yield aten.tile.default, (_t(2, 3), [3]), {}
    yield aten.repeat_interleave.self_int, (_t(2, 3), 4, 1), {}
    yield aten.repeat_interleave.self_int, (_t(2, 3), 2), {}


@rule(aten.repeat.default, aten.tile.default, samples=_repeat_samples)
def repeat(site: Site) -> Dims:
    """``x`` repeated ``n`` times along a dim is ``n * x``."""
    site.operands(site.arg("self"), transfer=join)
    dims = site.dims("self")
    argument = "repeats" if site.node.target is aten.repeat.default else "dims"
    repeats = site.arg(argument)
    dims = (ONE,) * (len(repeats) - len(dims)) + dims
    given = len(repeats)  # tile may name fewer than there are dims
    repeats = [1] * (len(dims) - given) + list(repeats)
    counts: list[Dim] = []
    for dim, count, size in zip(dims, repeats, site.shape(), strict=True):
        times = count if isinstance(count, int) else quotient(size, dim.size)
        if times is None:
            return site.opaque(dims, "repeated as often as the input's size says")
        counts.append(site.fresh(times))
        site.role("repeated", counts[-1])
    site.sizes(argument, tuple(counts[len(counts) - given :]))
    return tuple(prod((count, dim)) for count, dim in zip(counts, dims, strict=True))


@rule(aten.repeat_interleave.self_int, samples=lambda: list(_repeat_samples())[2:])
def repeat_interleave(site: Site) -> Dims:
    """Each index repeated ``n`` times in a row is ``x * n``."""
    site.operands(site.arg("self"), transfer=join)
    dims = site.dims("self")
    if not isinstance(site.arg("repeats"), int):
        return site.opaque(dims, "repeated as often as the input's size says")
    count = site.fresh(site.arg("repeats"))
    site.role("repeated", count)
    site.sizes("repeats", count)
    axis = None if site.arg("dim") is None else site.axis("dim", len(dims))
    out = prod((*dims, count)) if axis is None else prod((dims[axis], count))
    if site.arg("output_size") is not None:
        site.sizes("output_size", out)
    return (out,) if axis is None else (*dims[:axis], out, *dims[axis + 1 :])


def _complex_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.view_as_complex.default, (_t(3, 4, 2),), {}
    yield aten.view_as_real.default, (torch.view_as_complex(_t(3, 4, 2)),), {}


@rule(aten.view_as_complex.default, aten.view_as_real.default, samples=_complex_samples)
def complex_view(site: Site) -> Dims:
    """Pairs of real numbers become complex ones, or the reverse; the pair itself is never cut."""
    site.operands(site.arg("self"), transfer=join)
    dims = site.dims("self")
    if site.node.target is aten.view_as_real.default:
        pair = site.fresh(2)
        site.pin(pair, "the real and imaginary part of a complex number")
        return (*dims, pair)
    site.pin(dims[-1], "the real and imaginary part of a complex number")
    return dims[:-1]


def _unfold_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.unfold.default, (_t(2, 3, 8), -1, 4, 2), {}


@rule(aten.unfold.default, samples=_unfold_samples)
def unfold(site: Site) -> Dims:
    """Windows slide over one dim; the others pass."""
    site.operands(site.arg("self"), transfer=join)
    dims = list(site.dims("self"))
    axis = site.axis("dimension", len(dims))
    site.pin(dims[axis], "windows slide over it")
    shape = site.shape()
    windows = site.fresh(shape[axis]), site.fresh(shape[-1])
    site.pin(windows, "windows slide over it")
    return (*dims[:axis], windows[0], *dims[axis + 1 :], windows[1])


def _diagonal_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.diagonal.default, (_t(3, 4, 5), 0, 1, 2), {}
    yield aten.diagonal.default, (_t(4, 3, 4), 1, 0, -1), {}


@rule(aten.diagonal.default, samples=_diagonal_samples)
def diagonal(site: Site) -> Dims:
    """Rows and columns are matched by position, so both are pinned; the others pass."""
    site.operands(site.arg("self"), transfer=join)
    dims = site.dims("self")
    axes = {site.axis("dim1", len(dims)), site.axis("dim2", len(dims))}
    out = site.fresh(site.shape()[-1])
    site.pin([*(dims[axis] for axis in axes), out], "a diagonal is taken by position")
    return (*(dim for i, dim in enumerate(dims) if i not in axes), out)
