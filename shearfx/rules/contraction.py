"""Contractions: operators that multiply their operands and sum over what they share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from shearfx.dims import ONE, Dim, prod
from shearfx.rules.notation import Pattern, apply_pattern, pattern
from shearfx.rules.registry import Dims, Site, rule
from shearfx.values import Value, add, multiply

aten = torch.ops.aten

pattern(aten.linear.default, "... i, o i, [o] -> ... o")
pattern(aten.mm.default, "a i, i b -> a b")
pattern(aten.bmm.default, "n a i, n i b -> n a b")
pattern(aten.mv.default, "a i, i -> a")
pattern(aten.dot.default, "i, i -> ")
pattern(aten.outer.default, "a, b -> a b")
pattern(aten.bilinear.default, "... i, ... j, o i j, [o] -> ... o")


def _biased_samples() -> Iterable[tuple[Any, ...]]:
    a, b = torch.randn(3, 4, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    yield aten.addmm.default, (torch.randn(5, dtype=torch.float64), a, b), {}
    yield aten.addmm.default, (torch.randn(3, 5, dtype=torch.float64), a, b), {}
    a, b = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 4, 5, dtype=torch.float64)
    yield aten.baddbmm.default, (torch.randn(2, 1, 5, dtype=torch.float64), a, b), {}


@rule(aten.addmm.default, aten.baddbmm.default, samples=_biased_samples)
def biased_product(site: Site) -> Dims:
    """``bias + a @ b``, the bias broadcast."""
    bias, a, b = site.tensors()
    batch = ("n",) if len(site.shape(a)) == 3 else ()
    names = (*batch, "r", "c")[-len(site.shape(bias)) :] if site.shape(bias) else ()
    parsed = Pattern("", (names, (*batch, "r", "i"), (*batch, "i", "c")), (True, False, False), (*batch, "r", "c"))
    apply_pattern(site, parsed, [None, a, b])
    rows, columns = site.dims(a)[:-1], site.dims(b)[-1:]
    dims = site.broadcast([(*rows, *columns), site.dims(bias)])
    site.operands(a, b, bias, transfer=_biased)
    if site.dims(bias):
        site.record.carried = [*((dim, (0, 2)) for dim in rows), *((dim, (1, 2)) for dim in columns)]
        site.record.carried += [(dim, (0, 1, 2)) for dim in rows[:-1]]
    return dims


def _matmul_samples() -> Iterable[tuple[Any, ...]]:
    for left, right in (
        ((3, 4), (4, 5)),
        ((2, 3, 4), (4, 5)),
        ((6, 2, 3, 4), (6, 2, 4, 5)),
        ((6, 1, 3, 4), (2, 4, 5)),
        ((3, 4), (4,)),
        ((4,), (4, 5)),
        ((4,), (4,)),
    ):
        yield (
            aten.matmul.default,
            (torch.randn(left, dtype=torch.float64), torch.randn(right, dtype=torch.float64)),
            {},
        )


@rule(aten.matmul.default, samples=_matmul_samples)
def matmul(site: Site) -> Dims:
    """``a @ b`` with batch dims broadcast; vectors as numpy has them."""
    left, right = site.dims("self"), site.dims("other")
    contracted, other = left[-1], right[-2] if len(right) > 1 else right[-1]
    site.equate(contracted, other)
    site.contracts(contracted, carriers=(0, 1))
    site.role("contracted", contracted)
    site.operands(site.arg("self"), site.arg("other"), transfer=multiply)
    batch = site.broadcast([left[:-2], right[:-2]])
    rows = left[-2:-1]
    columns = right[-1:] if len(right) > 1 else ()
    site.carried(batch, [left[:-2], right[:-2]])
    site.record.carried += [(dim, (0,)) for dim in rows] + [(dim, (1,)) for dim in columns]
    site.attends(site.arg("self"), site.arg("other"), (contracted,), batch, (*rows, *columns))
    return (*batch, *rows, *columns)


def _einsum_samples() -> Iterable[tuple[Any, ...]]:
    def t(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64)

    yield aten.einsum.default, ("bqhd,bkhd->bhqk", [t(2, 3, 4, 5), t(2, 6, 4, 5)]), {}
    yield aten.einsum.default, ("bid,de", [t(2, 3, 4), t(4, 5)]), {}
    yield aten.einsum.default, ("...ij,jk->...ik", [t(2, 6, 3, 4), t(4, 5)]), {}
    yield aten.einsum.default, ("i,j,k->ijk", [t(3), t(4), t(5)]), {}
    yield aten.einsum.default, ("...i,ij->j", [t(2, 3, 4), t(4, 5)]), {}


@rule(aten.einsum.default, samples=_einsum_samples)
def einsum(site: Site) -> Dims:
    """Any einsum: letters are dims, letters not on the right are contracted."""
    equation = site.arg("equation").replace(" ", "")
    left, arrow, right = equation.partition("->")
    operands = [_letters(part) for part in left.split(",")]
    if not arrow:
        flat = [n for operand in operands for n in operand]
        once = sorted(n for n in set(flat) if flat.count(n) == 1 and n != "...")
        right_names = (*(("...",) if "..." in flat else ()), *once)
    else:
        right_names = _letters(right)
    nodes = site.tensors()
    if any(len(set(names)) < len(names) for names in operands):
        return site.opaque([dim for node in nodes for dim in site.dims(node)], "an einsum that takes a diagonal")
    parsed = Pattern(equation, tuple(operands), (False,) * len(operands), right_names)
    return apply_pattern(site, parsed, nodes)


def _letters(text: str) -> tuple[str, ...]:
    return tuple("..." if c == "\0" else c for c in text.replace("...", "\0"))


# -- convolutions ------------------------------------------------------------------------------------


def _conv_samples(transposed: bool) -> Any:
    def samples() -> Iterable[tuple[Any, ...]]:
        plain = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
        reverse = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
        for rank, target in enumerate(reverse if transposed else plain, start=1):
            for groups, inner, outer in ((1, 4, 6), (3, 2, 4), (6, 1, 1), (4, 1, 2)):
                x = torch.randn(2, groups * inner, *(5,) * rank, dtype=torch.float64)
                shape = (groups * inner, outer) if transposed else (groups * outer, inner)
                weight = torch.randn(*shape, *(3,) * rank, dtype=torch.float64)
                bias = torch.randn(groups * outer, dtype=torch.float64)
                options = (1, 1, 0, groups) if transposed else (1, 1, 1, groups)
                yield target, (x, weight, bias, *([o] * rank if i < 3 else o for i, o in enumerate(options))), {}
                if groups == 1:
                    yield target, (x, weight), {}
                if not transposed:
                    padded = getattr(aten, f"conv{rank}d").padding
                    yield padded, (x, weight, bias, [1] * rank, "same", [1] * rank, groups), {}

    return samples


@rule(
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding, aten.conv2d.padding,
    aten.conv3d.padding, samples=_conv_samples(transposed=False),
)  # fmt: skip
def convolution(site: Site) -> Dims:
    """``[n] g*i s..., g*o i k..., [g*o] -> [n] g*o s'...`` with ``g`` groups, dense and depthwise included."""
    return _convolve(site, transposed=False)


@rule(
    aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input,
    samples=_conv_samples(transposed=True),
)  # fmt: skip
def transposed_convolution(site: Site) -> Dims:
    """``[n] g*i s..., g*i o k..., [g*o] -> [n] g*o s'...``."""
    return _convolve(site, transposed=True)


def _general_samples() -> Iterable[tuple[Any, ...]]:
    x, bias = torch.randn(2, 4, 5, 5, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    for transposed, shape in ((False, (6, 2, 3, 3)), (True, (4, 3, 3, 3))):
        weight = torch.randn(shape, dtype=torch.float64)
        yield aten.convolution.default, (x, weight, bias, [1, 1], [1, 1], [1, 1], transposed, [0, 0], 2), {}


@rule(aten.convolution.default, samples=_general_samples)
def general_convolution(site: Site) -> Dims:
    """Either, by the argument ``transposed``."""
    return _convolve(site, transposed=bool(site.arg("transposed")))


def _convolve(site: Site, transposed: bool) -> Dims:
    x, weight, bias = site.dims("input"), site.dims("weight"), site.dims("bias")
    space = len(weight) - 2
    channels = x[-space - 1]
    groups = site.arg("groups")
    group = site.fresh(groups)
    inner = site.fresh(channels.size // groups)
    if transposed:
        outer = weight[1]
        site.equate(weight[0], _times(group, inner))
    else:
        outer = site.fresh(weight[0].size // groups)
        site.equate(weight[0], _times(group, outer))
        site.equate(weight[1], inner)
    site.equate(channels, _times(group, inner))
    out = _times(group, outer)
    if bias:
        site.equate(bias[0], out)
    site.operands(site.arg("input"), site.arg("weight"), site.arg("bias"), transfer=_biased)
    if inner is not ONE:
        site.contracts(inner, lambda v: multiply(v[:2]), carriers=(0, 1))
    site.record.carried = [(group, (0, 1, 2)), (outer, (1, 2)), *((dim, (0,)) for dim in x[: -space - 1])]
    for dim in (inner, outer, group):
        site.role("channels", dim)
    site.sizes("groups", group)
    site.pin((*x[-space:], *weight[2:]), "a convolution slides over it")
    result = site.shape()
    spatial = tuple(site.solver.fresh(s) for s in result[len(result) - space :])
    site.pin(spatial, "a convolution slides over it")
    return (*x[: -space - 1], out, *spatial)


def _biased(values: list[Value]) -> Value:
    return add([multiply(values[:2]), *values[2:]])


def _times(left: Dim, right: Dim) -> Dim:
    return prod((left, right))
