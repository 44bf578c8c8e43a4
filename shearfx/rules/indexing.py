"""Indexing: what is looked up by data is pinned; every other dim passes through."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from shearfx.dims import Dim, concat
from shearfx.rules.registry import Dims, Replacement, Site, rule, shape_of
from shearfx.values import Value, join

aten = torch.ops.aten
LOOKED_UP = "looked up by data"


def _t(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def _embedding_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.embedding.default, (_t(7, 4), torch.tensor([[1, 2, 6], [0, 3, 3]])), {}


@rule(aten.embedding.default, samples=_embedding_samples)
def embedding(site: Site) -> Dims:
    """``v h, ... -> ... h``: rows are looked up by token."""
    vocabulary, width = site.dims("weight")
    site.pin(vocabulary, LOOKED_UP)
    site.operands(site.arg("weight"), transfer=join)
    site.role("embedding", width)
    return (*site.dims("indices"), width)


def _index_samples() -> Iterable[tuple[Any, ...]]:
    a, b = torch.tensor([0, 2]), torch.tensor([[1], [0]])
    yield aten.index.Tensor, (_t(3, 4, 5), [a]), {}
    yield aten.index.Tensor, (_t(3, 4, 5), [None, a]), {}
    yield aten.index.Tensor, (_t(3, 4, 5), [a, None, a]), {}
    yield aten.index.Tensor, (_t(3, 4, 5), [None, a, b]), {}
    yield aten._unsafe_index.Tensor, (_t(3, 4, 5), [None, a]), {}
    yield aten.index_select.default, (_t(3, 4, 5), 1, a), {}


@rule(aten.index.Tensor, aten._unsafe_index.Tensor, samples=lambda: list(_index_samples())[:-1])
def index(site: Site) -> Dims:
    """``x[..., i, j, ...]``: indexed dims are pinned, the indices' own dims take their place, the others pass."""
    node = site.arg("self")
    dims = site.dims(node)
    indices = list(site.arg("indices"))
    indices += [None] * (len(dims) - len(indices))
    present = [i for i, entry in enumerate(indices) if entry is not None]
    if len(present) == 1 and (run := _run(site, indices[present[0]], dims[present[0]])) is not None:
        return _sliced(site, dims, present[0], *run)
    for i in present:
        if indices[i].meta["val"].dtype in (torch.bool, torch.uint8):
            return site.opaque(dims, "selected by a mask")
        site.pin(dims[i], LOOKED_UP)
    taken = site.broadcast([site.dims(indices[i]) for i in present])
    site.operands(node, transfer=join)
    passing = [dim for i, dim in enumerate(dims) if i not in present]
    contiguous = present == list(range(present[0], present[-1] + 1)) if present else True
    at = present[0] if contiguous and present else 0
    return (*passing[:at], *taken, *passing[at:])


def _run(site: Site, index: fx.Node, dim: Dim) -> tuple[int, int] | None:
    """Start and end of an index that the model's code wrote down as consecutive numbers, such as ``x[:, [-1]]``."""
    written = site.records[index].constant
    if written is None or written.is_meta or written.dtype is not torch.int64 or written.dim() != 1:
        return None
    if not written.numel() or not isinstance(dim.size, int) or site.solver.pinned(dim):
        return None
    numbers = [int(i) % dim.size for i in written]
    consecutive = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return (numbers[0], numbers[-1] + 1) if consecutive else None


def _sliced(site: Site, dims: Dims, axis: int, start: int, end: int) -> Dims:
    site.operands(site.arg("self"), transfer=join)
    before, part, after = (site.fresh(n) for n in (start, end - start, dims[axis].size - end))
    site.equate(dims[axis], concat((before, part, after)))
    site.pin(part, "picked by numbers in the model's code")
    site.record.replace = Replacement(aten.slice.Tensor, (axis, before, concat((before, part))))
    return (*dims[:axis], part, *dims[axis + 1 :])


@rule(aten.index_select.default, samples=lambda: list(_index_samples())[-1:])
def index_select(site: Site) -> Dims:
    """Indices of one dim, picked by data."""
    dims = site.dims("self")
    axis = site.axis("dim", len(dims))
    site.pin(dims[axis], LOOKED_UP)
    site.operands(site.arg("self"), transfer=join)
    return (*dims[:axis], *site.dims("index"), *dims[axis + 1 :])


def _gather_samples() -> Iterable[tuple[Any, ...]]:
    i = torch.tensor([[0, 1, 1], [2, 0, 3]])
    yield aten.gather.default, (_t(2, 4), 1, i), {}
    yield aten.scatter.src, (_t(2, 4), 1, i, _t(2, 3)), {}
    yield aten.scatter.value, (_t(2, 4), 1, i, 1.0), {}
    yield aten.scatter_add.default, (_t(2, 4), 1, i, _t(2, 3)), {}
    yield aten.scatter_reduce.two, (_t(2, 4), 1, i, _t(2, 3), "amax"), {}


@rule(aten.gather.default, samples=lambda: list(_gather_samples())[:1])
def gather(site: Site) -> Dims:
    """Along one dim picked by data; the other dims of ``x`` and index are the same."""
    dims, taken = site.dims("self"), site.dims("index")
    site.operands(site.arg("self"), transfer=join)
    _along(site, dims, taken)
    return taken


def _along(site: Site, dims: Dims, taken: Dims) -> None:
    axis = site.axis("dim", len(dims))
    if dims:
        site.pin(dims[axis], LOOKED_UP)
    for i, (a, b) in enumerate(zip(dims, taken, strict=True)):
        if i == axis:
            continue
        if a.size == b.size:
            site.equate(a, b)
        else:
            site.pin((a, b), "an index that covers only part of it")


@rule(
    aten.scatter.src, aten.scatter.value, aten.scatter_add.default, aten.scatter_reduce.two,
    samples=lambda: list(_gather_samples())[1:],
)  # fmt: skip
def scatter(site: Site) -> Dims:
    """Written along one dim at places given by data."""
    dims = site.dims("self")
    nodes = [site.arg("self")]
    _along(site, dims, site.dims("index"))
    if site.node.target is not aten.scatter.value:
        nodes.append(site.arg("src"))
        source = site.dims("src")
        axis = site.axis("dim", len(dims))
        for i, (a, b) in enumerate(zip(site.dims("index"), source, strict=True)):
            if a.size == b.size and i != axis:
                site.equate(a, b)
            else:
                site.pin((a, b), LOOKED_UP)
    site.pin(site.dims("index")[site.axis("dim", len(dims))], "places given by data")
    site.operands(*nodes, transfer=_written)
    return dims


def _written(values: list[Value]) -> Value:
    return max(Value.FINITE, *values)


def _put_samples() -> Iterable[tuple[Any, ...]]:
    a = torch.tensor([0, 2])
    yield aten.index_put.default, (_t(3, 4, 5), [a], _t(2, 4, 5)), {}
    yield aten._unsafe_index_put.default, (_t(3, 4, 5), [a], _t(2, 4, 5)), {}
    yield aten.index_add.default, (_t(3, 4), 0, a, _t(2, 4)), {}


@rule(aten.index_put.default, aten._unsafe_index_put.default, samples=lambda: list(_put_samples())[:-1])
def index_put(site: Site) -> Dims:
    """``x[i] = values``: as reading, with the values' dims as the result's."""
    dims = site.dims("self")
    indices = list(site.arg("indices"))
    indices += [None] * (len(dims) - len(indices))
    present = [i for i, entry in enumerate(indices) if entry is not None]
    values = site.dims("values")
    site.operands(site.arg("self"), site.arg("values"), transfer=_written)
    mask = any(indices[i].meta["val"].dtype in (torch.bool, torch.uint8) for i in present)
    if mask or present != list(range(present[0], present[-1] + 1)):
        site.pin((*dims, *values), "written at places given by a mask or by data")
        return dims
    for i in present:
        site.pin(dims[i], LOOKED_UP)
    taken = site.broadcast([site.dims(indices[i]) for i in present])
    site.pin(taken, "places given by data")
    site.broadcast([(*dims[: present[0]], *taken, *dims[present[-1] + 1 :]), values])
    return dims


@rule(aten.index_add.default, samples=lambda: list(_put_samples())[-1:])
def index_add(site: Site) -> Dims:
    """Rows added at places given by data."""
    dims, source = site.dims("self"), site.dims("source")
    axis = site.axis("dim", len(dims))
    site.operands(site.arg("self"), site.arg("source"), transfer=_written)
    site.pin(dims[axis], LOOKED_UP)
    for i, (a, b) in enumerate(zip(dims, source, strict=True)):
        if i != axis:
            site.equate(a, b)
    site.equate(site.dims("index")[0], source[axis])
    site.contracts(source[axis], lambda values: values[1], carriers=(1,))
    return dims


def _sort_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.topk.default, (_t(2, 5), 2), {}
    yield aten.sort.default, (_t(2, 5), -1), {}
    yield aten.sort.stable, (_t(2, 5),), {"stable": True, "dim": 0}


@rule(aten.topk.default, aten.sort.default, aten.sort.stable, samples=_sort_samples)
def ranking(site: Site) -> list[Dims | None]:
    """Ordered along one dim, which is pinned: what comes first depends on all of it."""
    dims = site.dims("self")
    axis = site.axis("dim", len(dims))
    site.operands(site.arg("self"), transfer=_written)  # the order is no zero where the numbers are
    site.pin(dims[axis], "its indices are ranked")
    out = site.fresh(shape_of(site.node.meta["val"][0])[axis])
    site.pin(out, "its indices are ranked")
    result = (*dims[:axis], out, *dims[axis + 1 :])
    return [result, result]


def _argsort_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.argsort.default, (_t(2, 5), 1), {}
    yield aten.argsort.stable, (_t(2, 5),), {"stable": True, "dim": 0}


@rule(aten.argsort.default, aten.argsort.stable, samples=_argsort_samples)
def argsort(site: Site) -> Dims:
    """The order itself."""
    dims = site.dims("self")
    site.operands(site.arg("self"), transfer=_written)
    site.pin(dims[site.axis("dim", len(dims))], "its indices are ranked")
    return dims


def _one_hot_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.one_hot.default, (torch.tensor([[0, 2], [1, 1]]), 4), {}


@rule(aten.one_hot.default, samples=_one_hot_samples)
def one_hot(site: Site) -> Dims:
    """A new dim of classes, indexed by data."""
    site.operands(site.arg("self"), transfer=lambda _: join([]))
    dims = site.dims("self")
    classes: Dim = site.fresh(site.shape()[-1])
    site.pin(classes, LOOKED_UP)
    return (*dims, classes)
