"""Convolutions as products of patches: every number that goes into one output, side by side."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from shearfx.contractions.products import Product
from shearfx.passes.subnetwork import get_argument

aten = torch.ops.aten

PLAIN = {
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding, aten.conv2d.padding,
    aten.conv3d.padding,
}  # fmt: skip
TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}


def _is_transposed(node: fx.Node) -> bool | None:
    """None of what is no convolution."""
    if node.target is aten.convolution.default:
        return bool(get_argument(node, "transposed"))
    return True if node.target in TRANSPOSED else False if node.target in PLAIN else None


def is_convolution(node: fx.Node) -> bool:
    """Whether a node is one, transposed or not."""
    return _is_transposed(node) is not None


def _kernel(product: Product) -> tuple[int, ...]:
    """Its sizes; none of what is no convolution."""
    shape = product.weight.meta["val"].shape
    return () if not is_convolution(product.node) else tuple(int(size) for size in shape[2:])


def patch_size(product: Product) -> int:
    """How many numbers of one feature go into one output: 1 but for convolutions."""
    return math.prod(_kernel(product))


def patch_weights(product: Product, weight: Tensor) -> Tensor:
    """``[instances, outputs, features * kernel]``."""
    transposed, node = _is_transposed(product.node), product.node
    if transposed is None:
        return product.weights(weight)
    groups = int(get_argument(node, "groups"))
    if not transposed:
        return _apart(weight.flatten(2), groups).flatten(2)
    turned = _apart(weight.flip(tuple(range(2, weight.dim()))).flatten(2), groups)  # [groups, in, out, k]
    return turned.transpose(1, 2).flatten(2)


def patches(product: Product, activation: Tensor) -> Tensor:
    """``[instances, rows, features * kernel]``: of a convolution, a row for each place of each output."""
    transposed, node, kernel = _is_transposed(product.node), product.node, _kernel(product)
    if transposed is None:
        return product.rows(activation)
    space = len(kernel)
    x = activation if activation.dim() == space + 2 else activation[None]
    stride, dilation = (_each(get_argument(node, name), space) for name in ("stride", "dilation"))
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    given = get_argument(node, "padding")
    if isinstance(given, str):
        sides = [(r // 2, r - r // 2) if given == "same" else (0, 0) for r in reach]
    else:
        sides = [(p, p) for p in _each(given, space)]
    if transposed:
        x, sides = _spread(x, stride), [(r - p, r - q) for r, (p, q) in zip(reach, sides, strict=True)]
        more = _each(get_argument(node, "output_padding"), space)
        sides, stride = [(p, q + m) for (p, q), m in zip(sides, more, strict=True)], [1] * space
    x = functional.pad(x, [side for pair in reversed(sides) for side in pair])
    for axis in range(space):
        x = x.unfold(2 + axis, reach[axis] + 1, stride[axis])[..., :: dilation[axis]]
    channels = x.movedim(1, 0)  # and batch, places, ..., kernel, ...
    rows = _apart(channels, int(get_argument(node, "groups"))).movedim(1, 2 + space)
    return rows.flatten(2 + space).flatten(1, 1 + space)


def _apart(channels: Tensor, groups: int) -> Tensor:
    """Dim 0 as groups and what is in one."""
    return channels.reshape(groups, -1, *channels.shape[1:])


def _each(value: Any, space: int) -> list[int]:
    given = [int(one) for one in value] if isinstance(value, (list, tuple)) else [int(value)]
    return given * space if len(given) == 1 else given


def _spread(x: Tensor, stride: list[int]) -> Tensor:
    """Zeros between the numbers, as a transposed convolution has them."""
    shape = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], stride, strict=True)]
    found = x.new_zeros(*x.shape[:2], *shape)
    every: list[Any] = [slice(None, None, step) for step in stride]
    found[(..., *every)] = x
    return found
