"""Overwriting: a tensor with a segment of it replaced (``x[..., 2:6] = src``, once functionalised)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from shearfx.dims import ONE, Atom, concat
from shearfx.rules.registry import Dims, Site, rule
from shearfx.values import join

aten = torch.ops.aten


def _t(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def _slice_scatter_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.slice_scatter.default, (_t(2, 8), _t(2, 4), 1, 2, 6), {}
    yield aten.select_scatter.default, (_t(2, 5, 3), _t(2, 3), 1, 2), {}


@rule(aten.slice_scatter.default, samples=lambda: list(_slice_scatter_samples())[:1])
def slice_scatter(site: Site) -> Dims:
    """``src`` written over a slice of ``x``: ``x = before + src + after``."""
    dims, source = site.dims("self"), site.dims("src")
    axis = site.axis("dim", len(dims))
    site.operands(site.arg("self"), site.arg("src"), transfer=join)
    for i, (a, b) in enumerate(zip(dims, source, strict=True)):
        if i != axis:
            site.equate(a, b)
    dim = dims[axis]
    start, end, step = site.arg("start"), site.arg("end"), site.arg("step")
    if site.solver.pinned(dim) or not all(isinstance(b, int) for b in (start, end, step) if b is not None):
        site.pin((dim, source[axis]), "cut at a bound that comes from the input's size")
        return dims
    start, end, step = slice(start, end, step).indices(dim.size)
    if step != 1:
        site.pin((dim, source[axis]), "written with a stride")
        return dims
    before, after = site.fresh(start), site.fresh(dim.size - end)
    site.equate(dim, concat((before, source[axis], after)))
    site.record.constants += [("start", start), ("end", end)]
    site.sizes("start", before)
    site.sizes("end", concat((before, source[axis])))
    rest, solver = (before, after, *dims[:axis], *dims[axis + 1 :]), site.solver

    def sources(atom: Atom) -> list[int]:
        outside = any(atom in solver.atoms(d) for d in rest)
        inside = atom in solver.atoms(source[axis]) or any(atom in solver.atoms(d) for d in source)
        return [i for i, present in enumerate((outside, inside)) if present]

    site.record.sources = sources
    return dims


@rule(aten.select_scatter.default, samples=lambda: list(_slice_scatter_samples())[1:])
def select_scatter(site: Site) -> Dims:
    """``src`` written over one index of ``x``."""
    dims, source = site.dims("self"), site.dims("src")
    axis = site.axis("dim", len(dims))
    site.operands(site.arg("self"), site.arg("src"), transfer=join)
    for a, b in zip((*dims[:axis], *dims[axis + 1 :]), source, strict=True):
        site.equate(a, b)
    index, dim = site.arg("index"), dims[axis]
    if site.solver.pinned(dim) or not isinstance(index, int):
        site.pin(dim, "indexed by the input's size")
        return dims
    before = site.fresh(index % dim.size)
    site.equate(dim, concat((before, ONE, site.fresh(dim.size - index % dim.size - 1))))
    site.record.constants.append(("index", index % dim.size))
    site.sizes("index", before)
    return dims
