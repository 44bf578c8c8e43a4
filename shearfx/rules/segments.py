"""Segments: operators that join dims end to end or take them apart. A concatenation is a ``Sum`` of dims."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from shearfx.dims import ONE, ZERO, Dim, concat, prod
from shearfx.rules.registry import Dims, Replacement, Site, is_one, rule, size_of
from shearfx.values import Value, join, of_number

aten = torch.ops.aten


def _t(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def _cat_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.cat.default, ([_t(2, 3, 4), _t(2, 5, 4), _t(2, 1, 4)], 1), {}
    for target in (aten.cat.default, aten.concat.default, aten.concatenate.default):
        yield target, ([_t(2, 3), _t(2, 4)], -1), {}
    yield aten.hstack.default, ([_t(2, 3), _t(2, 4)],), {}
    yield aten.hstack.default, ([_t(3), _t(4)],), {}
    yield aten.vstack.default, ([_t(2, 3, 2), _t(4, 3, 2)],), {}
    yield aten.vstack.default, ([_t(3), _t(3)],), {}


_STACKS: dict[Any, int] = {aten.hstack.default: 1, aten.vstack.default: 0}


@rule(aten.cat.default, aten.concat.default, aten.concatenate.default, *_STACKS, samples=_cat_samples)
def cat(site: Site) -> Dims:
    """The dim is the sum of the parts; the other dims are shared."""
    nodes = [n for n in site.tensors() if n is not None]
    shapes = [site.dims(n) for n in nodes]
    rank = len(site.shape())
    stacked = _STACKS.get(site.node.target)
    axis = site.axis("dim", rank) if stacked is None else min(stacked, rank - 1)
    if stacked is not None:  # vectors on top of each other are rows
        shapes = [(ONE,) * (rank - len(dims)) + dims for dims in shapes]
    nodes = [n for n, dims in zip(nodes, shapes, strict=True) if len(dims) == rank]  # legacy: empty vectors pass
    shapes = [dims for dims in shapes if len(dims) == rank]
    site.joins(nodes)
    for i, first in enumerate(shapes[0]):
        if i != axis:
            for dims in shapes[1:]:
                site.equate(first, dims[i])
    joined = concat(dims[axis] for dims in shapes)
    return (*shapes[0][:axis], joined, *shapes[0][axis + 1 :])


def _stack_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.stack.default, ([_t(2, 3), _t(2, 3)], 1), {}
    yield aten.stack.default, ([_t(2, 3), _t(2, 3)], -1), {}


@rule(aten.stack.default, samples=_stack_samples)
def stack(site: Site) -> Dims:
    """A new dim of single indices."""
    nodes = [n for n in site.tensors() if n is not None]
    shapes = [site.dims(n) for n in nodes]
    axis = site.axis("dim", len(site.shape()))
    site.joins(nodes)
    for dims in shapes[1:]:
        for a, b in zip(shapes[0], dims, strict=True):
            site.equate(a, b)
    return (*shapes[0][:axis], concat([ONE] * len(nodes)), *shapes[0][axis:])


# -- taking apart ------------------------------------------------------------------------------------


def _slice_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.slice.Tensor, (_t(2, 8), 1, 0, 4), {}
    yield aten.slice.Tensor, (_t(2, 8), 1, 3, 7), {}
    yield aten.slice.Tensor, (_t(2, 8), 1, -3), {}
    yield aten.slice.Tensor, (_t(2, 8), 1, 0, -2), {}
    yield aten.slice.Tensor, (_t(2, 8), 1, 1, 9223372036854775807, 2), {}
    yield aten.slice.Tensor, (_t(2, 8), 1, 0, 9223372036854775807, 4), {}


@rule(aten.slice.Tensor, samples=_slice_samples)
def slice_(site: Site) -> Dims:
    """``x = before + result + after``; with a step, ``x = result * step`` at one index of the step."""
    dims = site.dims("self")
    axis = site.axis("dim", len(dims))
    dim, size = dims[axis], site.shape()[axis]
    site.operands(site.arg("self"), transfer=join)
    start, end, step = site.arg("start"), site.arg("end"), site.arg("step")
    if (start is None or start == 0) and size == dim.size and step == 1:
        return dims
    bounds = [b for b in (start, end, step) if b is not None]
    if site.solver.pinned(dim) or not all(isinstance(b, int) for b in bounds):
        site.pin(dim, "cut at a bound that comes from the input's size")
        return _with(dims, axis, _pinned(site, size, "a part of a pinned dim"))
    assert isinstance(dim.size, int)
    start, end, step = slice(start, end, step).indices(dim.size)
    if step != 1:
        return _with(dims, axis, _strided(site, dim, start, end, step, size))
    before, part, after = site.fresh(start), site.fresh(end - start), site.fresh(dim.size - end)
    site.equate(dim, concat((before, part, after)))
    site.record.constants += [("start", start), ("end", end)]  # bounds from the end would move with the size
    site.sizes("start", before)
    site.sizes("end", concat((before, part)))
    return _with(dims, axis, part)


def _strided(site: Site, dim: Dim, start: int, end: int, step: int, size: Any) -> Dim:
    whole = dim.size % step == 0 and start < step and size == dim.size // step
    if not whole:
        site.pin(dim, f"every {step}th index from {start} to {end} does not divide it evenly")
        return _pinned(site, size, "a part of a pinned dim")
    before, after, outer = site.fresh(start), site.fresh(step - start - 1), site.fresh(size)
    stride = concat((before, ONE, after))
    site.equate(dim, prod((outer, stride)))
    site.record.constants.append(("start", start))
    site.sizes("start", before)
    site.sizes("step", stride)
    return outer


def _pinned(site: Site, size: Any, reason: str) -> Dim:
    dim = site.fresh(size)
    site.pin(dim, reason)
    return dim


def _with(dims: Dims, axis: int, *new: Dim) -> Dims:
    return (*dims[:axis], *new, *dims[axis + 1 :])


def _narrow_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.narrow.default, (_t(2, 8), 1, 2, 3), {}


@rule(aten.narrow.default, samples=_narrow_samples)
def narrow(site: Site) -> Dims:
    """A slice by start and length."""
    dims = site.dims("self")
    axis = site.axis("dim", len(dims))
    site.operands(site.arg("self"), transfer=join)
    start, length, dim = site.arg("start"), site.arg("length"), dims[axis]
    if site.solver.pinned(dim) or not (isinstance(start, int) and isinstance(length, int)):
        site.pin(dim, "cut at a bound that comes from the input's size")
        return _with(dims, axis, _pinned(site, site.shape()[axis], "a part of a pinned dim"))
    start %= dim.size
    before, part = site.fresh(start), site.fresh(length)
    site.equate(dim, concat((before, part, site.fresh(dim.size - start - length))))
    site.record.constants.append(("start", start))
    site.sizes("start", before)
    site.sizes("length", part)
    return _with(dims, axis, part)


def _select_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.select.int, (_t(2, 8, 3), 1, 2), {}
    yield aten.select.int, (_t(2, 8, 3), 1, -1), {}


@rule(aten.select.int, samples=_select_samples)
def select(site: Site) -> Dims:
    """One index of a dim: ``x = before + 1 + after``."""
    dims = site.dims("self")
    axis = site.axis("dim", len(dims))
    site.operands(site.arg("self"), transfer=join)
    dim, index = dims[axis], site.arg("index")
    if is_one(dim.size) or site.solver.pinned(dim):
        return _with(dims, axis)
    if not isinstance(index, int):
        site.pin(dim, "indexed by the input's size")
        return _with(dims, axis)
    before = site.fresh(index % dim.size)
    site.equate(dim, concat((before, ONE, site.fresh(dim.size - index % dim.size - 1))))
    site.record.constants.append(("index", index % dim.size))
    site.sizes("index", before)
    return _with(dims, axis)


def _split_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.split.Tensor, (_t(2, 8), 3, 1), {}
    yield aten.chunk.default, (_t(2, 8), 2, 1), {}
    yield aten.split_with_sizes.default, (_t(2, 8), [1, 4, 3], -1), {}
    yield aten.unbind.int, (_t(2, 3, 4), 1), {}
    yield aten.tensor_split.sections, (_t(2, 7), 3, 1), {}
    yield aten.unsafe_split.Tensor, (_t(2, 8), 3, 1), {}
    yield aten.unsafe_chunk.default, (_t(2, 8), 2, 1), {}
    yield aten.split.sizes, (_t(2, 8), [1, 4, 3], 1), {}


@rule(
    aten.split.Tensor, aten.chunk.default, aten.split_with_sizes.default, aten.unsafe_split.Tensor,
    aten.unsafe_chunk.default, aten.split.sizes, aten.tensor_split.sections, samples=_split_samples,
)  # fmt: skip
def split(site: Site) -> list[Dims | None]:
    """``x`` is the sum of the parts."""
    dims = site.dims("self")
    axis = site.axis("dim", len(dims))
    site.operands(site.arg("self"), transfer=join)
    parts = [_part(site, dims[axis], value.shape[axis]) for value in site.node.meta["val"]]
    if not site.solver.pinned(dims[axis]):
        site.equate(dims[axis], concat(parts))
        site.record.replace = Replacement(aten.split_with_sizes.default, (tuple(parts), axis))
    return [_with(dims, axis, part) for part in parts]


def _part(site: Site, dim: Dim, size: Any) -> Dim:
    if site.solver.pinned(dim):
        return _pinned(site, size_of(size), "a part of a pinned dim")
    return site.fresh(size_of(size))


@rule(aten.unbind.int, samples=lambda: list(_split_samples())[3:4])
def unbind(site: Site) -> list[Dims | None]:
    """Every index by itself: the dim is a sum of ones."""
    dims = site.dims("self")
    axis = site.axis("dim", len(dims))
    site.operands(site.arg("self"), transfer=join)
    count = len(site.node.meta["val"])
    if not site.solver.pinned(dims[axis]):
        site.equate(dims[axis], concat([ONE] * count))
    return [_with(dims, axis)] * count


def _pad_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.constant_pad_nd.default, (_t(2, 3, 4), [1, 2]), {}
    yield aten.constant_pad_nd.default, (_t(2, 3, 4), [0, 0, 2, 1], 1.5), {}
    yield aten.pad.default, (_t(2, 3, 4), [0, 0, 1, 1]), {}


@rule(aten.constant_pad_nd.default, aten.pad.default, samples=_pad_samples)
def pad(site: Site) -> Dims:
    """Padding with a constant: ``before + x + after``; any other mode pins the padded dims."""
    dims = list(site.dims("self"))
    widths: Sequence[Any] = site.arg("pad")
    constant = site.node.target is aten.constant_pad_nd.default or site.arg("mode") == "constant"
    fill = of_number(site.arg("value") or 0)
    padding: list[Dim] = []
    for i in range(len(widths) // 2):
        axis = len(dims) - 1 - i
        dim, (low, high) = dims[axis], widths[2 * i : 2 * i + 2]
        if low == 0 and high == 0:
            padding += [ZERO, ZERO]
            continue
        whole = isinstance(low, int) and isinstance(high, int) and low >= 0 and high >= 0 and isinstance(dim.size, int)
        if not constant or not whole or site.solver.pinned(dim):
            site.pin(dim, "padded other than by a constant number of constants")
            dims[axis] = _pinned(site, site.shape()[axis], "a part of a pinned dim")
            padding += [ZERO, ZERO]
        else:
            padding += [site.fresh(low), site.fresh(high)]
            site.pin(padding[-2:], "padding of a fixed width")
            dims[axis] = concat((padding[-2], dim, padding[-1]))
    if all(dim is ZERO for dim in padding):
        site.operands(site.arg("self"), transfer=join)
    else:
        site.operands(site.arg("self"), transfer=lambda v: Value(join([v[0], fill])))
    return tuple(dims)


def _flip_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.roll.default, (_t(2, 5, 3), [2], [1]), {}
    yield aten.flip.default, (_t(2, 5, 3), [1]), {}


@rule(aten.roll.default, aten.flip.default, samples=_flip_samples)
def reorder(site: Site) -> Dims:
    """Indices change places along some dims, which are pinned; the others pass."""
    dims = site.dims("self")
    site.operands(site.arg("self"), transfer=join)
    for axis in site.axes("dims", len(dims)):
        site.pin(dims[axis], "its indices are shifted or reversed")
    return dims
