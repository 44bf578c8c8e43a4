"""The parameters that all that reads a group multiplies it with and sums up: to zero their slices is to zero it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import fx

from shearfx.graph import Graph, Group, Member, mentions

aten = torch.ops.aten

MOVED = frozenset({
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.permute.default, aten.transpose.int,
    aten.t.default, aten.numpy_T.default, aten.mT.default, aten.squeeze.dim, aten.squeeze.default,
    aten.unsqueeze.default, aten.expand.default, aten.contiguous.default, aten.clone.default, aten.detach.default,
    aten.alias.default, aten.to.dtype, aten._to_copy.default, aten.type_as.default, aten.index.Tensor,
    aten.index_select.default, aten.select.int,
})  # fmt: skip
"""Operators that hand on numbers of their first operand, elsewhere or as another dtype; some of them, where data picks
experts."""


@dataclass(frozen=True)
class Contracted:
    """A dim of a parameter that some operators sum a group over."""

    member: Member
    nodes: frozenset[fx.Node]


def contracted(graph: Graph, group: Group, is_fed: Callable[[Member], bool]) -> list[Contracted]:
    """The parameters that every exit of a group contracts it with; none where some exit has no such parameter, or it
    cannot be told by which of its dims.

    Args:
        graph: analysed.
        group: of the graph.
        is_fed: whether a dim of a parameter is that of what comes into a module; decides between two of one parameter.
    """
    found: dict[tuple[str, int], tuple[Member, set[fx.Node]]] = {}
    members: dict[str, list[Member]] = {}
    for member in group.members:
        members.setdefault(member.name, []).append(member)
    for node, record in graph.records.items():
        for exit_ in record.exits:
            dim = graph.solver.resolve(exit_.dim)
            if group.atom not in mentions((dim,)):
                continue
            having = range(len(record.operands)) if exit_.carriers is None else exit_.carriers
            tensors = [graph.traced.tensors.get(origin(record.operands[i])) for i in having]
            read = [
                [m for m in members.get(tensor.name, ())
                 if mentions((graph.tensor_dims[tensor.name][m.dim],)) == mentions((dim,))]
                for tensor in tensors if tensor is not None and tensor.kind == "parameter"
            ]  # fmt: skip
            read = [dims if len(dims) == 1 else [m for m in dims if is_fed(m)] for dims in read if dims]
            if not read or any(len(dims) != 1 for dims in read):
                return []
            if len(read) == len(tensors):  # parameters that are multiplied with each other: one is enough
                read = read[-1:]
            for (member,) in read:
                if not is_adapter(member.name):
                    found.setdefault((member.name, member.dim), (member, set()))[1].add(node)
    return [Contracted(member, frozenset(nodes)) for member, nodes in found.values()]


def origin(node: fx.Node) -> fx.Node:
    """What a node's numbers were before they were moved about."""
    while node.target in MOVED and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def is_all(graph: Graph, name: str, nodes: Collection[fx.Node]) -> bool:
    """Whether nothing becomes of a parameter but what some operators make of it, moved about or not: it is no table,
    say, whose rows are looked up too."""
    left = [node for node, tensor in graph.traced.tensors.items() if tensor.name == name]
    while left:
        for user in left.pop().users:
            if user in nodes:
                continue
            if user.target not in MOVED:
                return False
            left.append(user)
    return True


def is_adapter(name: str) -> bool:
    """Whether a parameter is one of an adapter's."""
    return any(part.startswith("lora_") for part in name.split("."))
