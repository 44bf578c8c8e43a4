"""Reductions: operators along an axis. Sums leave exactly where zeros arrive; other statistics depend on the size."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from shearfx.dims import ONE, prod
from shearfx.rules.registry import Dims, Exit, Site, rule
from shearfx.values import Value, join

aten = torch.ops.aten
DIVIDES = "a mean over it divides by its size"


def _t(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def _kept(site: Site, dims: Dims, axes: list[int]) -> Dims:
    """Dims of the result: the reduced axes become one, or vanish."""
    if len(site.shape()) == len(dims):
        return tuple(ONE if i in axes else dim for i, dim in enumerate(dims))
    return tuple(dim for i, dim in enumerate(dims) if i not in axes)


def _sum_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.sum.dim_IntList, (_t(2, 3, 4), [1]), {}
    yield aten.sum.dim_IntList, (_t(2, 3, 4), [-1], True), {}
    yield aten.sum.default, (_t(2, 3),), {}
    yield aten.linalg_vector_norm.default, (_t(2, 3, 4), 2, [-1], True), {}
    yield aten.norm.ScalarOpt_dim, (_t(2, 3, 4), 2, [1]), {}
    yield aten.norm.ScalarOpt_dim, (_t(2, 3, 4), -2, [1]), {}
    yield aten.norm.Scalar, (_t(2, 3), 2), {}
    yield aten.linalg_vector_norm.default, (_t(2, 3, 4), 0, [1]), {}
    yield aten.linalg_vector_norm.default, (_t(2, 3, 4), float("inf"), [1]), {}
    yield aten.linalg_vector_norm.default, (_t(2, 3, 4), -1, [1]), {}
    yield aten.count_nonzero.dim_IntList, (_t(2, 3, 4), [1]), {}


def _reduced_axes(site: Site, rank: int) -> list[int]:
    names = {a.name for a in site.node.target._schema.arguments}  # type: ignore[union-attr]
    return site.axes("dim", rank) if "dim" in names else list(range(rank))


@rule(
    aten.sum.dim_IntList, aten.sum.default, aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim,
    aten.norm.Scalar, aten.count_nonzero.dim_IntList, samples=_sum_samples,
)  # fmt: skip
def total(site: Site) -> Dims:
    """Sums, and norms of any positive order: a zero more or less changes nothing."""
    dims = site.dims("self")
    axes = _reduced_axes(site, len(dims))
    order = _order(site)
    site.operands(site.arg("self"), transfer=_norm if "norm" in str(site.node.target) else join)
    for axis in axes:
        if isinstance(order, (int, float)) and order > 0:
            site.contracts(dims[axis], join)
        else:
            site.approximates(dims[axis], f"a norm of order {order}")
    return _kept(site, dims, axes)


def _order(site: Site) -> Any:
    if "norm" not in str(site.node.target):
        return 1
    order = site.arg("ord" if site.node.target is aten.linalg_vector_norm.default else "p")
    return 2 if order is None else order


def _norm(values: list[Value]) -> Value:
    top = join(values)
    return top if top in (Value.ZERO, Value.POSITIVE) else Value.UNKNOWN if top > Value.FINITE else Value.NONNEGATIVE


def _mean_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.mean.dim, (_t(2, 3, 4), [-1], True), {}
    yield aten.mean.dim, (_t(2, 3, 4), [1, 2]), {}
    yield aten.mean.default, (_t(2, 3),), {}


@rule(aten.mean.dim, aten.mean.default, samples=_mean_samples)
def mean(site: Site) -> Dims:
    """A sum over the size: exact after the factor new size / old size, which construction writes behind it."""
    dims = site.dims("self")
    axes = _reduced_axes(site, len(dims))
    site.operands(site.arg("self"), transfer=join)
    reduced = prod(dims[axis] for axis in axes)
    for axis in axes:
        site.record.exits.append(
            Exit(dims[axis], "compensated", join, "a mean over numbers that are not zero where zeroed", DIVIDES)
        )
    site.record.rescale = reduced
    return _kept(site, dims, axes)


def _statistic_samples() -> Iterable[tuple[Any, ...]]:
    for target in (aten.amax.default, aten.amin.default, aten.logsumexp.default, aten.any.dim, aten.all.dim):
        yield target, (_t(2, 3, 4), [1] if "any" not in str(target) and "all" not in str(target) else 1), {}
    yield aten.var.correction, (_t(2, 3, 4), [1]), {}
    yield aten.std.correction, (_t(2, 3, 4), [1]), {}
    yield aten.prod.dim_int, (_t(2, 3, 4), 1), {}
    yield aten.argmax.default, (_t(2, 3, 4), 1), {}
    yield aten.max.default, (_t(2, 3),), {}
    yield aten.max.dim, (_t(2, 3, 4), 1), {}
    yield aten.min.dim, (_t(2, 3, 4), 1, True), {}
    yield aten.var_mean.correction, (_t(2, 3, 4), [1]), {}
    yield aten.var_mean.dim, (_t(2, 3, 4), [-1]), {}
    yield aten.std_mean.correction, (_t(2, 3, 4), [1]), {}
    yield aten.std_mean.dim, (_t(2, 3, 4), [-1], True, True), {}
    yield aten.median.dim, (_t(2, 3, 4), 1), {}
    yield aten.mode.default, (_t(2, 3, 4), 1), {}
    yield aten.kthvalue.default, (_t(2, 3, 4), 2, 1), {}


def _more_statistics() -> Iterable[tuple[Any, ...]]:
    yield aten.argmin.default, (_t(2, 3, 4), 1), {}
    yield aten.argmax.default, (_t(2, 3, 4),), {}
    for target in (aten.any.default, aten.all.default, aten.min.default, aten.median.default, aten.var.default,
                   aten.std.default, aten.prod.default):  # fmt: skip
        yield target, (_t(2, 3),), {}
    yield aten.var.dim, (_t(2, 3, 4), [1]), {}
    yield aten.std.dim, (_t(2, 3, 4), [1]), {}


@rule(
    aten.amax.default, aten.amin.default, aten.logsumexp.default, aten.var.correction, aten.var.dim, aten.std.dim,
    aten.std.correction, aten.prod.dim_int, aten.argmax.default, aten.argmin.default, aten.any.dim, aten.all.dim,
    aten.any.default, aten.all.default, aten.max.default, aten.min.default, aten.median.default, aten.var.default,
    aten.std.default, aten.prod.default, samples=lambda: [*list(_statistic_samples())[:10], *_more_statistics()],
)  # fmt: skip
def statistic(site: Site) -> Dims:
    """Any other statistic: it depends on how many numbers there are, or on a zero among them."""
    dims = site.dims("self")
    axes = _reduced_axes(site, len(dims))
    site.operands(site.arg("self"), transfer=_statistic)
    for axis in axes:
        site.approximates(dims[axis], f"{site.node.target} depends on every index it reduces")
    if "arg" in str(site.node.target):
        site.pin([dims[a] for a in axes], "positions in it are looked up")
    return _kept(site, dims, axes)


def _statistic(values: list[Value]) -> Value:
    top = join(values)
    return Value.UNKNOWN if top > Value.FINITE else Value.FINITE


@rule(
    aten.max.dim, aten.min.dim, aten.median.dim, aten.mode.default, aten.kthvalue.default, aten.var_mean.correction,
    aten.var_mean.dim, aten.std_mean.correction, aten.std_mean.dim, samples=lambda: list(_statistic_samples())[10:],
)  # fmt: skip
def statistic_pair(site: Site) -> list[Dims | None]:
    """A statistic that returns two tensors of one shape."""
    dims = site.dims("self")
    axes = _reduced_axes(site, len(dims))
    site.operands(site.arg("self"), transfer=_statistic)
    for axis in axes:
        site.approximates(dims[axis], f"{site.node.target} depends on every index it reduces")
        if "_mean" not in str(site.node.target):
            site.pin(dims[axis], "positions in it are looked up")
    rank = site.node.meta["val"][0].dim()
    kept = (
        tuple(ONE if i in axes else d for i, d in enumerate(dims))
        if rank == len(dims)
        else tuple(d for i, d in enumerate(dims) if i not in axes)
    )
    return [kept, kept]


def _softmax_samples() -> Iterable[tuple[Any, ...]]:
    for target in (aten.softmax.int, aten.log_softmax.int):
        yield target, (_t(2, 3, 4), -1), {}
    for target in (aten._softmax.default, aten._log_softmax.default):
        yield target, (_t(2, 3, 4), 1, False), {}
    yield aten._safe_softmax.default, (_t(2, 3, 4), 1), {}


@rule(aten.softmax.int, aten.log_softmax.int, aten._softmax.default, aten._log_softmax.default,
      aten._safe_softmax.default, samples=_softmax_samples)  # fmt: skip
def softmax(site: Site) -> Dims:
    """Along its axis a zeroed index still weighs ``exp(0)``; the other dims pass.

    Scores may be minus infinity where masked: a row that is masked everywhere is not a number in the full model too.
    """
    dims = site.dims("self")
    logarithm = "log" in str(site.node.target)
    site.operands(site.arg("self"), transfer=lambda v: _log_softmax(v) if logarithm else _softmax(v))
    axis = site.axis("dim", len(dims))
    site.approximates(dims[axis], "a softmax is over it")
    site.role("softmax", dims[axis])
    return dims


def _softmax(values: list[Value]) -> Value:
    return Value.NONNEGATIVE if values[0] > Value.FINITE else Value.POSITIVE


def _log_softmax(values: list[Value]) -> Value:
    return values[0] if values[0] > Value.FINITE else Value.FINITE


def _logarithm(values: list[Value]) -> Value:
    return Value.UNKNOWN if values[0] > Value.FINITE else Value.FINITE


def _scan_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.cumsum.default, (_t(2, 3, 4), 1), {}
    yield aten.cumprod.default, (_t(2, 3, 4), 1), {}
    yield aten.logcumsumexp.default, (_t(2, 3, 4), 1), {}
    yield aten.diff.default, (_t(2, 5), 1, 1), {}
    yield aten.tril.default, (_t(2, 5, 5),), {}
    yield aten.triu.default, (_t(2, 5, 5), 1), {}


@rule(aten.cumsum.default, aten.cumprod.default, aten.logcumsumexp.default, samples=lambda: list(_scan_samples())[:3])
def scan(site: Site) -> Dims:
    """Running totals: order matters along the axis, which is pinned."""
    dims = site.dims("self")
    site.operands(site.arg("self"), transfer=_logarithm if "log" in str(site.node.target) else join)
    site.pin(dims[site.axis("dim", len(dims))], "a running total goes along it")
    return dims


def _extreme_samples() -> Iterable[tuple[Any, ...]]:
    yield aten.cummax.default, (_t(2, 3, 4), 1), {}
    yield aten.cummin.default, (_t(2, 3, 4), -1), {}


@rule(aten.cummax.default, aten.cummin.default, samples=_extreme_samples)
def running_extreme(site: Site) -> list[Dims | None]:
    """Running extremes and where they are: order matters along the axis, which is pinned."""
    dims = site.dims("self")
    site.operands(site.arg("self"), transfer=_statistic)
    site.pin(dims[site.axis("dim", len(dims))], "a running extreme goes along it")
    return [dims, dims]


@rule(aten.diff.default, samples=lambda: list(_scan_samples())[3:4])
def diff(site: Site) -> Dims:
    """Differences of neighbours: the axis is pinned."""
    dims = site.dims("self")
    nodes = [n for n in site.tensors() if n is not None]
    site.operands(*nodes, transfer=lambda v: Value.UNKNOWN if max(v) > Value.FINITE else Value.FINITE)
    axis = site.axis("dim", len(dims))
    for node in nodes:
        site.pin(site.dims(node)[axis], "differences of neighbours go along it")
    out = site.fresh(site.shape()[axis])
    site.pin(out, "differences of neighbours go along it")
    return (*dims[:axis], out, *dims[axis + 1 :])


@rule(aten.tril.default, aten.triu.default, samples=lambda: list(_scan_samples())[4:])
def triangle(site: Site) -> Dims:
    """Half of a matrix: positions count, so rows and columns are pinned."""
    dims = site.dims("self")
    site.operands(site.arg("self"), transfer=lambda v: join([*v, Value.ZERO]))
    site.pin(dims[-2:], "a triangle of the matrix is taken by position")
    return dims
