"""Creation: tensors made from sizes alone. Fills are free; tables (``arange``) are made whole, then sliced."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from shearfx.rules.registry import Dims, Site, rule
from shearfx.values import Value, of_number

aten = torch.ops.aten


def _fill_samples() -> Iterable[tuple[Any, ...]]:
    x = torch.zeros(2, 3, dtype=torch.float64)
    yield aten.zeros.default, ([2, 3],), {}
    yield aten.ones.default, ([4],), {}
    yield aten.full.default, ([2, 3], 1.5), {}
    yield aten.new_zeros.default, (x, [4]), {}
    yield aten.new_ones.default, (x, [4]), {}
    yield aten.new_full.default, (x, [4], 2.5), {}
    yield aten.new_empty.default, (x, [4]), {}
    yield aten.empty.memory_format, ([4],), {}
    yield aten.empty_permuted.default, ([2, 3], [1, 0]), {}
    yield aten.scalar_tensor.default, (2.0,), {}


@rule(
    aten.zeros.default, aten.ones.default, aten.full.default, aten.empty.memory_format, aten.new_zeros.default,
    aten.new_ones.default, aten.new_full.default, aten.new_empty.default, aten.empty_permuted.default,
    aten.scalar_tensor.default, samples=_fill_samples,
)  # fmt: skip
def fill(site: Site) -> Dims:
    """One number everywhere: dims are free, their sizes are re-derived."""
    out = site.fresh_like_output()
    value = _filled(site)
    site.operands(transfer=lambda _: value)
    if site.node.target is not aten.scalar_tensor.default:
        site.sizes("size", out)
    return out


def _filled(site: Site) -> Value:
    name = str(site.node.target).split(".")[1]
    if "zero" in name:
        return Value.ZERO
    if "ones" in name:
        return Value.POSITIVE
    if "fill" in name or "full" in name:
        return of_number(site.arg("value" if "fill" in name else "fill_value"))
    return Value.FINITE


def _like_samples() -> Iterable[tuple[Any, ...]]:
    x = torch.randn(2, 3, dtype=torch.float64)
    yield aten.zeros_like.default, (x,), {}
    yield aten.full_like.default, (x, 2.0), {}
    yield aten.ones_like.default, (x,), {}
    yield aten.empty_like.default, (x,), {}
    yield aten.zero.default, (x,), {}
    yield aten.fill.Scalar, (x, -1.5), {}
    yield aten.fill.Tensor, (x, torch.tensor(2.0, dtype=torch.float64)), {}


@rule(
    aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.empty_like.default,
    aten.zero.default, aten.fill.Scalar, aten.fill.Tensor, samples=_like_samples,
)  # fmt: skip
def like(site: Site) -> Dims:
    """One number everywhere, in the shape of another tensor."""
    value = _filled(site)
    site.operands(site.arg("self"), transfer=lambda _: value)
    return site.dims("self")


def _table_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.arange.default, (5,), {}
    yield aten.arange.start, (1, 6), {}
    yield aten.arange.start_step, (1, 9, 2), {}
    yield aten.linspace.default, (0.0, 1.0, 5), {}
    yield aten.eye.default, (4,), {}
    yield aten.eye.m, (4, 3), {}
    yield aten.hann_window.default, (6,), {}


@rule(
    aten.arange.default, aten.arange.start, aten.arange.start_step, aten.linspace.default, aten.eye.default,
    aten.eye.m, aten.hann_window.default, samples=_table_samples,
)  # fmt: skip
def table(site: Site) -> Dims:
    """A table by position: its dims are free; it is made at full size, then sliced."""
    site.operands(transfer=lambda _: Value.FINITE)
    site.record.created = True
    out = site.fresh_like_output()
    for dim in out:
        if not isinstance(dim.size, int) and not dim.size.is_Symbol:
            site.pin(dim, "a table whose length is computed from an open size: there is no list of what to keep of it")
    return out


@rule(aten.sym_size.int, samples=lambda: ())
def size_read(site: Site) -> None:
    """The size of one dim as a number: open sizes only (fixed ones are constants by now), which are never cut."""
    dims = site.dims("self")
    site.pin(dims[site.axis("dim", len(dims))], "its size is read as a number")
