"""Operator composition: several operators that must be treated as one.

A LoRA linear (frozen base, A, B, scaling, dropout) is one operator whose rank is never pruned. A root-mean-square
norm written out in basic operators is one operator that a cut can compensate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from shearfx.graph import Composed, Graph, module_paths
from shearfx.passes.manager import Pass

aten = torch.ops.aten
_CASTS = {
    aten.to.dtype, aten.to.dtype_layout, aten._to_copy.default, aten.type_as.default, aten.to.device,
    aten.clone.default, aten.contiguous.default, aten.alias.default, aten.detach.default,
}  # fmt: skip
_VIEWS = {aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints}


@dataclass(frozen=True)
class ComposeOperators(Pass):
    """Find composed operators and list them in ``graph.composed``.

    Source: LoRAShear, section 3.1 ("composed operators").
    """

    name: ClassVar[str] = "compose"

    def apply(self, graph: Graph) -> None:
        """Fill ``graph.composed``."""
        graph.composed = [*_adapters(graph), *_norms(graph)]


def _adapters(graph: Graph) -> list[Composed]:
    inside: dict[str, list[fx.Node]] = {path: [] for path in graph.traced.adapters}
    if not inside:
        return []
    for node in graph.traced.graph.nodes:
        if node.op == "call_function":
            for path in module_paths(node):
                if path in inside:
                    inside[path].append(node)
    return [Composed("lora", path, tuple(nodes)) for path, nodes in inside.items() if nodes]


def _norms(graph: Graph) -> list[Composed]:
    found = []
    for node in graph.traced.graph.nodes:
        if node.target is aten.mean.dim:
            norm = _written_out(graph, node)
        elif node.target is aten.rms_norm.default:
            norm = _operator(graph, node)
        else:
            continue
        if norm is not None:
            found.append(norm)
    return found


def _operator(graph: Graph, node: fx.Node) -> Composed | None:
    weight = node.args[2] if len(node.args) > 2 else node.kwargs.get("weight")
    named = _weight(graph, weight) if isinstance(weight, fx.Node) and weight is not node.args[0] else None
    if named is None or named[1] != 0.0:
        return None
    epsilon = node.args[3] if len(node.args) > 3 else node.kwargs.get("eps")
    value = epsilon if isinstance(epsilon, float) else torch.finfo(node.meta["val"].dtype).eps
    paths = module_paths(node)
    return Composed("rms_norm", paths[-1] if paths else "", (node,), named[0], 0.0, node, node, value)


def _written_out(graph: Graph, mean: fx.Node) -> Composed | None:
    """``x * rsqrt(mean(x * x) + eps) * (offset + weight)``, in any of the ways that people write it."""
    square = mean.args[0]
    assert isinstance(square, fx.Node)
    x = _squared(square)
    keepdim = mean.args[2] if len(mean.args) > 2 else mean.kwargs.get("keepdim", False)
    if x is None or not keepdim:
        return None
    add = _only_user(mean)
    if add is None or add.target is not aten.add.Tensor or not isinstance(add.args[1], float) or add.kwargs:
        return None
    root = _only_user(add)
    if root is None or root.target not in (aten.rsqrt.default, aten.sqrt.default, aten.pow.Tensor_Scalar):
        return None
    if root.target is aten.pow.Tensor_Scalar and root.args[1] not in (-0.5, 0.5):
        return None
    inverse = root.target is aten.rsqrt.default or (root.target is aten.pow.Tensor_Scalar and root.args[1] == -0.5)
    if not inverse:
        over = _only_user(root)
        if over is not None and over.target is aten.reciprocal.default:
            root, inverse = over, True
    scaled = _only_user(root)
    if scaled is None or scaled.target is not (aten.mul.Tensor if inverse else aten.div.Tensor):
        return None
    if not inverse and scaled.args[1] is not root:
        return None
    normalised = scaled.args[0] if scaled.args[1] is root else scaled.args[1]
    if normalised is root or not isinstance(normalised, fx.Node) or _numbers(normalised) is not _numbers(x):
        return None
    after = _only_user(scaled)
    while after is not None and (_is_cast(after) or after.target in _VIEWS) and after.args[0] is scaled:
        scaled, after = after, _only_user(after)
    if after is None or after.target is not aten.mul.Tensor:
        return None
    other = after.args[0] if after.args[1] is scaled else after.args[1]
    named = _weight(graph, other) if isinstance(other, fx.Node) else None
    if named is None:
        return None
    nodes = (square, mean, add, root, scaled, after)
    return Composed("rms_norm", module_paths(mean)[-1] if module_paths(mean) else "", nodes, *named, mean, add,
                    add.args[1])  # fmt: skip


def _squared(node: fx.Node) -> fx.Node | None:
    if node.target is aten.pow.Tensor_Scalar and node.args[1] == 2:
        return node.args[0] if isinstance(node.args[0], fx.Node) else None
    if node.target is aten.mul.Tensor and node.args[0] is node.args[1]:
        return node.args[0] if isinstance(node.args[0], fx.Node) else None
    if node.target is aten.square.default:
        return node.args[0] if isinstance(node.args[0], fx.Node) else None
    return None


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_cast(node: fx.Node) -> bool:
    """Whether a node copies or casts its first argument, and not to whole numbers or truth values."""
    value = node.meta.get("val")
    return node.target in _CASTS and isinstance(value, torch.Tensor) and value.is_floating_point()


def _numbers(node: fx.Node) -> fx.Node:
    """Where the numbers of a tensor come from, through casts and views."""
    while (_is_cast(node) or node.target in _VIEWS) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _weight(graph: Graph, node: fx.Node) -> tuple[str, float] | None:
    """The parameter behind a factor ``offset + weight``, through casts, if nothing else uses it on the way."""
    offset = 0.0
    while len(node.users) == 1:
        tensor = graph.traced.tensors.get(node)
        if tensor is not None:
            uses = [n for n, other in graph.traced.tensors.items() if other.name == tensor.name and n.users]
            alone = tensor.kind == "parameter" and tensor.dtype.is_floating_point and len(uses) == 1
            return (tensor.name, offset) if alone else None
        if _is_cast(node):
            source = node.args[0]
        elif node.target is aten.add.Tensor and offset == 0.0 and not node.kwargs:
            left, right = node.args[0], node.args[1]
            source, number = (left, right) if isinstance(left, fx.Node) else (right, left)
            if not isinstance(number, (int, float)):
                return None
            offset = float(number)
        else:
            return None
        if not isinstance(source, fx.Node):
            return None
        node = source
    return None
