"""Layers that can go whole: those that add something to a stream, so that without it the stream goes on.

No table says which these are. The items of a model's lists of modules are looked at in the traced graph; one can go
where a single tensor leaves it, which is, sum by sum, a tensor that came in plus what branches gave. Removing the layer
is then the same as zeroing its branches. Layers that end in a norm (BERT) or an activation (ResNet) change the stream
itself and cannot go without changing the function of what stays.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from shearfx.errors import PlanError, message
from shearfx.graph import Graph, module_kinds

aten = torch.ops.aten
Stream = tuple[fx.Node, fx.Node] | str
"""What enters and what leaves; or why there is no such thing."""
_SUMS = {aten.add.Tensor, aten.add_.Tensor}
_SAME = {
    aten.dropout.default, aten.alias.default, aten.clone.default, aten.contiguous.default, aten.detach.default,
    aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten._to_copy.default, aten.view.default, aten.reshape.default,
    aten._unsafe_view.default, aten.flatten.using_ints, aten.unflatten.int,
}  # fmt: skip
"""Operators that hand on what they get, in evaluation mode. In between it may be laid out in other dims: all of these
go through its elements in the same order."""


@dataclass(frozen=True)
class Layer:
    """An item of a list of modules that can go."""

    path: str
    """Of the module."""
    enters: fx.Node
    """The stream in front of it."""
    leaves: fx.Node
    """The stream behind it."""
    params: int
    """Parameters that go with it: those that nothing else uses."""

    @property
    def list_path(self) -> str:
        """Of the list of modules that it is in."""
        return self.path.rpartition(".")[0]

    @property
    def index(self) -> int:
        """In its list."""
        return int(self.path.rpartition(".")[2])


@dataclass(frozen=True)
class Layers:
    """What was found."""

    layers: tuple[Layer, ...]
    """Those that can go, in the order of the graph."""
    refused: dict[str, str]
    """Path of each other item to why it cannot."""

    def lists(self) -> dict[str, list[Layer]]:
        """The layers by the list that they are in, by index."""
        found: dict[str, list[Layer]] = {}
        for layer in sorted(self.layers, key=lambda one: one.index):
            found.setdefault(layer.list_path, []).append(layer)
        return found

    def only(self, paths: Sequence[str]) -> list[Layer]:
        """The layers of these paths.

        Raises:
            PlanError: one cannot go, is none, or is named twice; or all of a list are named.
        """
        by_path = {layer.path: layer for layer in self.layers}
        for path in paths:
            if path not in by_path:
                reason = self.refused.get(path, "it is no item of a list of layers that the traced call goes through")
                raise PlanError(message(f"the layer cannot go: {reason}", where=path, todo="leave it in"))
        if len(set(paths)) < len(paths) or not paths:
            what = "no layer is to go" if not paths else "a layer is named twice"
            raise PlanError(message(what, todo="name each layer once"))
        chosen = [by_path[path] for path in paths]
        whole = {
            path: sum(1 for p in (*by_path, *self.refused) if p.rpartition(".")[0] == path) for path in self.lists()
        }
        for path, size in whole.items():
            if sum(layer.list_path == path for layer in chosen) == size:
                raise PlanError(message("all layers of the list would go", where=path, todo="keep at least one"))
        return chosen


def find_layers(graph: Graph) -> Layers:
    """The layers of a model that can go whole.

    Lists may lie within items of lists (blocks within stages). The outermost are taken where all of their items can go;
    where some cannot, layers of one class inside of the items take the items' place.

    Args:
        graph: the analysis of the model.
    """
    regions: dict[str, dict[fx.Node, None]] = {}
    kinds: dict[str, str] = {}
    for node in graph.traced.graph.nodes:
        for path, kind in module_kinds(node).items():
            if path.rpartition(".")[2].isdigit():
                regions.setdefault(path, {})[node] = None
                kinds[path] = kind
    streams = {path: _stream(graph, nodes) for path, nodes in regions.items()}
    inside: dict[str, list[str]] = {}
    for path in regions:
        inside.setdefault(_above(path, regions), []).append(path)
    found: list[str] = []
    refused: dict[str, str] = {}
    for paths in _by_list(inside.get("", [])):
        _choose(paths, streams, inside, kinds, found, refused)
    order = {path: i for i, path in enumerate(regions)}
    layers = [
        Layer(path, *stream, _own_params(graph, regions[path]))
        for path in sorted(found, key=order.__getitem__)
        if not isinstance(stream := streams[path], str)
    ]
    return Layers(tuple(layers), refused)


def _above(path: str, items: Container[str]) -> str:
    """The innermost of the items around a path; empty where there is none."""
    while path:
        path = path.rpartition(".")[0]
        if path in items:
            return path
    return ""


def _by_list(paths: Iterable[str]) -> list[list[str]]:
    """Paths of items, list by list."""
    lists: dict[str, list[str]] = {}
    for path in paths:
        lists.setdefault(path.rpartition(".")[0], []).append(path)
    return list(lists.values())


def _choose(
    paths: Sequence[str], streams: Mapping[str, Stream], inside: Mapping[str, Sequence[str]], kinds: Mapping[str, str],
    found: list[str], refused: dict[str, str],
) -> None:  # fmt: skip
    """Which items of a list can go, or in the place of some the layers inside of them."""
    if all(not isinstance(streams[path], str) for path in paths):
        found += paths
        return
    for path in paths:
        inner: list[str] = []
        reasons: dict[str, str] = {}
        for below in _by_list(inside.get(path, [])):
            before = len(inner)
            local: dict[str, str] = {}
            if len({kinds[one] for one in below}) == 1:  # others are the parts that a layer is made of
                _choose(below, streams, inside, kinds, inner, local)
            if len(inner) > before:  # of a list without layers it does not matter why
                reasons |= local
        stream = streams[path]
        if inner:
            found += inner
            refused |= reasons | {path: f"layers inside of it can go one by one ({', '.join(inner[:3])})"}
        elif isinstance(stream, str):
            refused[path] = stream
        else:
            found.append(path)


def _stream(graph: Graph, nodes: dict[fx.Node, None]) -> Stream:
    """What enters and leaves, or why there is no such thing."""
    leaving = [
        node
        for node in nodes
        if any(user not in nodes for user in node.users) and isinstance(node.meta.get("val"), torch.Tensor)
    ]  # sizes may be read anywhere
    if len(leaving) != 1:
        names = ", ".join(node.name for node in leaving[:3])
        return f"{len(leaving)} tensors leave it ({names}), so something else reads what it computes"
    (leaves,) = leaving
    enters = _enters(graph, leaves, nodes)
    if enters is None:
        target = getattr(leaves.target, "__name__", str(leaves.target))
        return f"what leaves it ({target}) is not what comes in plus something"
    if enters.meta["val"].shape != leaves.meta["val"].shape:
        return "the stream changes its shape in it"
    return enters, leaves


def _enters(graph: Graph, node: fx.Node, inside: dict[fx.Node, None]) -> fx.Node | None:
    """The tensor from outside that a node is plus something; None where there is none, or more than one."""
    if node not in inside:
        return None if node in graph.traced.tensors else node
    if node.target in _SAME:
        if node.args[0].meta["val"].dtype != node.meta["val"].dtype:  # type: ignore[union-attr]
            return None
        return _enters(graph, node.args[0], inside)  # type: ignore[arg-type]
    if node.target not in _SUMS or node.kwargs.get("alpha", 1) != 1:
        return None
    shape = node.meta["val"].shape
    operands = [one for one in node.args if isinstance(one, fx.Node) and one.meta["val"].shape == shape]
    found = {enters for one in operands if (enters := _enters(graph, one, inside)) is not None}
    return found.pop() if len(found) == 1 and len(operands) == 2 and operands[0] is not operands[1] else None


def _own_params(graph: Graph, nodes: Iterable[fx.Node]) -> int:
    inside = set(nodes)
    return sum(
        placeholder.meta["val"].numel()
        for placeholder, tensor in graph.traced.tensors.items()
        if tensor.kind == "parameter" and placeholder.users and all(user in inside for user in placeholder.users)
    )
