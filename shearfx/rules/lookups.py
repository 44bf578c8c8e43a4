"""Lookups and writes by data beyond plain indexing, and random numbers: the places are pinned, the rest passes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from shearfx.rules.indexing import LOOKED_UP
from shearfx.rules.registry import Dims, Site, rule, shape_of
from shearfx.values import Value, join

aten = torch.ops.aten


def _t(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def _finite(values: list[Value]) -> Value:
    return max(Value.FINITE, *values)


def _bag_samples() -> Iterable[tuple[Any, ...]]:
    indices, offsets = torch.tensor([0, 2, 6, 1, 3]), torch.tensor([0, 2])
    for mode in (0, 1, 2):
        yield aten.embedding_bag.default, (_t(7, 4), indices, offsets, False, mode), {}
    options = False, 0, False, torch.rand(5, dtype=torch.float64), False, None
    yield aten.embedding_bag.padding_idx, (_t(7, 4), indices, offsets, *options), {}


@rule(aten.embedding_bag.default, aten.embedding_bag.padding_idx, samples=_bag_samples)
def embedding_bag(site: Site) -> list[Dims | None]:
    """``v h, n, b -> b h``: rows are looked up by token and summed; the other results are notes for the gradient."""
    vocabulary, width = site.dims("weight")
    weights = site.arg("per_sample_weights")
    free = (*site.dims("indices"), *site.dims("offsets"), *(site.dims(weights) if isinstance(weights, fx.Node) else ()))
    values = site.node.meta["val"]
    bags, *notes = ([site.fresh(s) for s in shape_of(value)] for value in values)
    site.pin((vocabulary, *free, bags[0], *(d for note in notes for d in note)), LOOKED_UP)
    site.operands(site.arg("weight"), transfer=_finite)
    site.role("embedding", width)
    return [(bags[0], width), None, None, None]


def _along_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.take_along_dim.default, (_t(2, 4, 3), torch.tensor([[[1], [0]], [[3], [2]]]), 1), {}
    yield aten.take_along_dim.default, (_t(2, 4), torch.tensor([[0, 1, 1], [2, 0, 3]]), 1), {}


@rule(aten.take_along_dim.default, samples=_along_samples)
def take_along(site: Site) -> Dims:
    """Along one dim picked by data; the other dims of both broadcast."""
    dims, taken = site.dims("self"), site.dims("indices")
    site.operands(site.arg("self"), transfer=join)
    if site.arg("dim") is None:
        site.pin((*dims, *taken), LOOKED_UP)
        return taken
    axis = site.axis("dim", len(dims))
    site.pin((dims[axis], taken[axis]), LOOKED_UP)
    front, back = site.broadcast([dims[:axis], taken[:axis]]), site.broadcast([dims[axis + 1 :], taken[axis + 1 :]])
    return (*front, taken[axis], *back)


def _write_samples() -> Iterable[tuple[Any, ...]]:
    places = torch.tensor([0, 2])
    yield aten.index_fill.int_Scalar, (_t(3, 4), 0, places, 1.0), {}
    yield aten.index_fill.int_Tensor, (_t(3, 4), 0, places, torch.tensor(2.0).double()), {}
    yield aten.index_copy.default, (_t(3, 4), 0, places, _t(2, 4)), {}


@rule(aten.index_fill.int_Scalar, aten.index_fill.int_Tensor, aten.index_copy.default, samples=_write_samples)
def write(site: Site) -> Dims:
    """Rows written at places given by data; the other dims are shared."""
    dims = site.dims("self")
    axis = site.axis("dim", len(dims))
    nodes = [n for n in site.tensors() if n is not None and n is not site.arg("index")]
    site.pin((dims[axis], *site.dims("index")), "places given by data")
    if site.node.target is aten.index_copy.default:
        for i, (a, b) in enumerate(zip(dims, site.dims("source"), strict=True)):
            if i != axis:
                site.equate(a, b)
            else:
                site.pin(b, "places given by data")
    site.operands(*nodes, transfer=_finite)
    return dims


def _masked_samples() -> Iterable[tuple[Any, ...]]:
    x = _t(3, 4)
    yield aten.masked_scatter.default, (x, x > 0, _t(12)), {}


@rule(aten.masked_scatter.default, samples=_masked_samples)
def masked_scatter(site: Site) -> Dims:
    """Numbers written one after the other where a mask is set: which goes where depends on all of it."""
    dims = site.broadcast([site.dims("self"), site.dims("mask")])
    site.pin((*dims, *site.dims("source")), "written one after the other where a mask is set")
    site.operands(site.arg("self"), site.arg("source"), transfer=_finite)
    return dims


def _bucket_samples() -> Iterable[tuple[Any, ...]]:
    edges = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    yield aten.bucketize.Tensor, (_t(2, 3), edges), {}
    yield aten.searchsorted.Tensor, (edges, _t(2, 3)), {}
    yield aten.searchsorted.Tensor, (_t(2, 3).sort(-1).values, _t(2, 4)), {}


@rule(aten.bucketize.Tensor, aten.searchsorted.Tensor, samples=_bucket_samples)
def bucketize(site: Site) -> Dims:
    """Each number's place among sorted ones, which are pinned."""
    dims = site.dims("self")
    edges = site.dims("boundaries" if site.node.target is aten.bucketize.Tensor else "sorted_sequence")
    site.pin(edges[-1], "its indices are ranked")
    for a, b in zip(edges[:-1], dims[:-1], strict=False):
        site.equate(a, b)
    site.operands(site.arg("self"), transfer=lambda _: Value.NONNEGATIVE)
    return dims


def _random_samples() -> Iterable[tuple[Any, ...]]:
    x = torch.rand(2, 3, dtype=torch.float64)
    yield aten.rand.default, ([2, 3],), {}
    yield aten.randn.default, ([2, 3],), {}
    yield aten.randint.low, (0, 5, [2, 3]), {}
    for target in (aten.rand_like.default, aten.randn_like.default, aten.bernoulli.default):
        yield target, (x,), {}
    yield aten.bernoulli.p, (x, 0.5), {}
    yield aten.multinomial.default, (x, 2), {}


@rule(
    aten.rand.default, aten.randn.default, aten.randint.low, aten.rand_like.default, aten.randn_like.default,
    aten.bernoulli.default, aten.bernoulli.p, aten.multinomial.default, samples=_random_samples,
)  # fmt: skip
def random(site: Site) -> Dims:
    """Random numbers come in the order of positions: with another size each would be another."""
    out = site.fresh_like_output()
    nodes = [n for n in site.tensors() if n is not None]
    site.pin([*out, *(d for n in nodes for d in site.dims(n))], "random numbers are drawn in the order of positions")
    site.operands(transfer=lambda _: Value.FINITE)
    return out
