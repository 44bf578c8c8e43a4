"""Products and distances beyond the plain contractions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from shearfx.dims import ONE, concat, prod
from shearfx.rules.notation import Pattern, apply_pattern, pattern
from shearfx.rules.registry import Dims, Exit, Site, rule
from shearfx.values import Value, add, join, multiply

aten = torch.ops.aten

pattern(aten.vdot.default, "i, i -> ")
pattern(aten.ger.default, "a, b -> a b")


def _t(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def _tensordot_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.tensordot.default, (_t(2, 3, 4), _t(4, 5, 3), [2, 1], [0, 2]), {}
    yield aten.tensordot.default, (_t(2, 3), _t(3, 5), [-1], [0]), {}
    yield aten.inner.default, (_t(2, 3, 4), _t(5, 4)), {}
    yield aten.inner.default, (_t(4), _t(4)), {}


@rule(aten.tensordot.default, aten.inner.default, samples=_tensordot_samples)
def tensordot(site: Site) -> Dims:
    """Listed dims of both are contracted (the last ones, for ``inner``); the others follow one another."""
    left, right = len(site.shape("self")), len(site.shape("other"))
    if site.node.target is aten.inner.default:
        pairs = [(left - 1, right - 1)]
    else:
        pairs = list(zip(site.axes("dims_self", left), site.axes("dims_other", right), strict=True))
    lefts = [f"l{i}" for i in range(left)]
    rights = [f"r{i}" for i in range(right)]
    for a, b in pairs:
        rights[b] = lefts[a]
    contracted = {lefts[a] for a, _ in pairs}
    out = tuple(n for n in (*lefts, *rights) if n not in contracted)
    return apply_pattern(site, Pattern("", (tuple(lefts), tuple(rights)), (False, False), out), site.tensors())


def _added_samples() -> Iterable[tuple[Any, ...]]:
    for bias in (_t(3, 5), _t(5), _t(3, 1)):
        yield aten.addbmm.default, (bias, _t(2, 3, 4), _t(2, 4, 5)), {"beta": 0.5, "alpha": 2}
    yield aten.addmv.default, (_t(3), _t(3, 4), _t(4)), {}
    yield aten.addr.default, (_t(3, 5), _t(3), _t(5)), {}


_ADDED: dict[Any, tuple[tuple[str, ...], ...]] = {
    aten.addbmm.default: (("n", "r", "i"), ("n", "i", "c"), ("r", "c")),
    aten.addmv.default: (("r", "i"), ("i",), ("r",)),
    aten.addr.default: (("r",), ("c",), ("r", "c")),
}


@rule(aten.addbmm.default, aten.addmv.default, aten.addr.default, samples=_added_samples)
def added_product(site: Site) -> Dims:
    """``bias + a @ b``, the bias broadcast; ``addbmm`` sums over the batch too."""
    bias, a, b = site.tensors()
    left, right, out = _ADDED[site.node.target]
    names = out[len(out) - len(site.shape(bias)) :]
    sizes = dict(zip(names, site.shape(bias), strict=True))
    dims = apply_pattern(site, Pattern("", (left, right), (False, False), out), [a, b])
    site.broadcast([dims, site.dims(bias)])
    having = {n: [i for i, side in enumerate((left, right)) if n in side] for n in out}
    carried = [(d, (*having[n], *((2,) if sizes.get(n, 1) != 1 else ()))) for n, d in zip(out, dims, strict=True)]
    site.operands(a, b, bias, transfer=lambda v: add([multiply(v[:2]), v[2]]))
    site.record.carried = carried
    for exit_ in site.record.exits:
        exit_.value = lambda v: multiply(v[:2])
    return dims


def _kron_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.kron.default, (_t(2, 3), _t(4, 5)), {}
    yield aten.kron.default, (_t(3), _t(4, 2)), {}


@rule(aten.kron.default, samples=_kron_samples)
def kron(site: Site) -> Dims:
    """Each dim is the product of the two, aligned right."""
    left, right = site.dims("self"), site.dims("other")
    rank = max(len(left), len(right))
    left = (ONE,) * (rank - len(left)) + left
    right = (ONE,) * (rank - len(right)) + right
    site.operands(site.arg("self"), site.arg("other"), transfer=multiply)
    site.record.carried = [*((d, (0,)) for d in left), *((d, (1,)) for d in right)]
    return tuple(prod(pair) for pair in zip(left, right, strict=True))


def _cross_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.linalg_cross.default, (_t(2, 4, 3), _t(2, 4, 3)), {}
    yield aten.cross.default, (_t(2, 3, 4), _t(2, 3, 4), 1), {}


@rule(aten.linalg_cross.default, aten.cross.default, samples=_cross_samples)
def cross(site: Site) -> Dims:
    """Three coordinates, which are pinned; the other dims are shared."""
    shapes = [site.dims("self"), site.dims("other")]
    dims = site.broadcast(shapes)
    axis = site.arg("dim")
    axes = [d for d in dims if d.size == 3] if axis is None else [dims[site.axis("dim", len(dims))]]
    site.pin(axes, "the coordinates of a cross product")
    site.operands(site.arg("self"), site.arg("other"), transfer=_bilinear)
    site.carried(dims, shapes)
    return dims


def _bilinear(values: list[Value]) -> Value:
    product = multiply(values)
    return product if product in (Value.ZERO, Value.UNKNOWN) else Value.FINITE


def _block_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.block_diag.default, ([_t(2, 3), _t(4, 2), _t(1, 3)],), {}
    yield aten.block_diag.default, ([_t(3), _t(4, 2)],), {}


@rule(aten.block_diag.default, samples=_block_samples)
def block_diag(site: Site) -> Dims:
    """Rows follow one another, and columns; zero elsewhere."""
    nodes = [n for n in site.tensors() if n is not None]
    shapes = [(ONE,) * (2 - len(site.dims(n))) + site.dims(n) for n in nodes]
    site.operands(*nodes, transfer=lambda v: join([*v, Value.ZERO]))
    site.record.carried = [(d, (i,)) for i, dims in enumerate(shapes) for d in dims]
    return concat(dims[0] for dims in shapes), concat(dims[1] for dims in shapes)


def _meshgrid_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.meshgrid.default, ([_t(2), _t(3), _t(4)],), {}
    yield aten.meshgrid.indexing, ([_t(2), _t(3), _t(4)],), {"indexing": "ij"}
    yield aten.meshgrid.indexing, ([_t(2), _t(3), _t(4)],), {"indexing": "xy"}


@rule(aten.meshgrid.default, aten.meshgrid.indexing, samples=_meshgrid_samples)
def meshgrid(site: Site) -> list[Dims | None]:
    """Each vector along its own dim, stretched over the others'."""
    nodes = [n for n in site.tensors() if n is not None]
    dims = [site.dims(n)[0] if site.dims(n) else ONE for n in nodes]
    order = list(range(len(nodes)))
    if site.node.target is aten.meshgrid.indexing and site.arg("indexing") == "xy":
        order[:2] = reversed(order[:2])
    site.operands(*nodes, transfer=join)
    # one claim for all results: a slice of the first is no zero where only the second's vector is
    site.record.carried = [(dim, (i,)) for i, dim in enumerate(dims)]
    return [tuple(dims[i] for i in order)] * len(nodes)


# -- distances ---------------------------------------------------------------------------------------


def _distance_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.cdist.default, (_t(2, 3, 4), _t(2, 5, 4)), {}
    yield aten.cdist.default, (_t(3, 4), _t(6, 5, 4), 1.0), {}
    yield aten.cdist.default, (_t(3, 4), _t(5, 4), 0.0), {}


@rule(aten.cdist.default, samples=_distance_samples)
def distances(site: Site) -> Dims:
    """``... r i, ... c i -> ... r c``: differences of what is zero in both are zero."""
    left, right = site.dims("x1"), site.dims("x2")
    site.equate(left[-1], right[-1])
    batch = site.broadcast([left[:-2], right[:-2]])
    site.contracts(left[-1], add, carriers=(0, 1))
    site.role("contracted", left[-1])
    site.operands(site.arg("x1"), site.arg("x2"), transfer=_distance)
    site.carried(batch, [left[:-2], right[:-2]])
    site.record.carried += [(left[-2], (0,)), (right[-2], (1,))]
    return (*batch, left[-2], right[-2])


def _distance(values: list[Value]) -> Value:
    total = add(values)
    return total if total is Value.ZERO else Value.UNKNOWN if total > Value.FINITE else Value.NONNEGATIVE


def _similarity_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.cosine_similarity.default, (_t(2, 3, 4), _t(2, 3, 4), -1), {}
    yield aten.cosine_similarity.default, (_t(2, 3, 4), _t(3, 4)), {}
    yield aten.pairwise_distance.default, (_t(2, 3, 4), _t(2, 3, 4)), {}
    yield aten.pairwise_distance.default, (_t(3, 4), _t(3, 4), 1.0, 1e-6, True), {}


@rule(aten.cosine_similarity.default, aten.pairwise_distance.default, samples=_similarity_samples)
def similarity(site: Site) -> Dims:
    """Over one dim of both: a cosine is unmoved by what is zero in both; a distance adds its epsilon everywhere."""
    shapes = [site.dims("x1"), site.dims("x2")]
    dims = site.broadcast(shapes)
    cosine = site.node.target is aten.cosine_similarity.default
    axis = site.axis("dim", len(dims)) if cosine else len(dims) - 1
    if cosine:
        reason = "a cosine counts what is zero on one side only"
        site.record.exits.append(Exit(dims[axis], "exact", add, reason, carriers=(0, 1)))
    else:
        site.approximates(dims[axis], "a pairwise distance adds epsilon at every index")
    site.operands(site.arg("x1"), site.arg("x2"), transfer=_finite)
    site.carried(dims, shapes)
    middle = (ONE,) if len(site.shape()) == len(dims) else ()
    return (*dims[:axis], *middle, *dims[axis + 1 :])


def _finite(values: list[Value]) -> Value:
    return Value.UNKNOWN if max(values) > Value.FINITE else Value.FINITE
