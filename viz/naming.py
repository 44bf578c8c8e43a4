"""Short names for groups: ``kv*group*d``. Groups at the same place of repeated layers share one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from networkx.utils import UnionFind

from shearfx.graph import natural
from shearfx.layered_names import layer_of
from shearfx.viz.scene import Box, Fold, GroupInfo, Item, Op, Scene, operators

__all__ = ["named"]

_SHORT = {
    "query_group": "group", "head_dim": "d", "value_dim": "v", "channels": "c", "features": "f",
}  # fmt: skip
"""Kinds that papers write shorter."""


def named(scene: Scene) -> Scene:
    """Return the scene with a label for every group, and with all terms written in labels.

    Kinds that differ in a folded picture are numbered (``c1``, ``c2``). Heads that are shared by a group of queries are
    ``kv``. Where groups with the same label meet in one operator, they carry the number of their layer besides.
    """
    labels = _labels(scene)
    names = list(scene.groups)

    def write(template: str) -> str:
        return re.sub(r"\{(\d+)\}", lambda found: labels[names[int(found[1])]], template)

    def rewrite(item: Item) -> Item:
        if isinstance(item, Op):
            return replace(item, dims=write(item.dims))
        if isinstance(item, Fold):
            return replace(item, copies=tuple(tuple(map(rewrite, copy)) for copy in item.copies))
        return replace(item, children=tuple(map(rewrite, item.children)))

    root = rewrite(scene.root)
    assert isinstance(root, Box)
    groups = {
        name: replace(g, label=labels[name], members=tuple((t, axis, write(term)) for t, axis, term in g.members))
        for name, g in scene.groups.items()
    }
    pins = tuple(replace(pin, dims=write(pin.dims)) for pin in scene.pins)
    tensors = {name: replace(t, dims=write(t.dims)) for name, t in scene.tensors.items()}
    return replace(scene, root=root, groups=groups, pins=pins, tensors=tensors)


def _labels(scene: Scene) -> dict[str, str]:
    alike = UnionFind(scene.groups)
    for fold in _folds(scene.root):
        first, *others = [[g for item in copy for op in operators(item) for g in op.groups] for copy in fold.copies]
        for other in others:
            for a, b in zip(first, other, strict=True):
                alike.union(a, b)
    shared = _shared_heads(scene)
    classes: dict[str, dict[str, list[GroupInfo]]] = {}
    for name in sorted(scene.groups, key=natural):
        group = scene.groups[name]
        short = "kv" if name in shared else _SHORT.get(group.kind, group.kind)
        classes.setdefault(short, {}).setdefault(alike[name], []).append(group)
    labels: dict[str, str] = {}
    for short, found in classes.items():
        for number, groups in enumerate(found.values(), 1):
            labels |= dict.fromkeys((g.name for g in groups), short if len(found) == 1 else f"{short}{number}")
    return _told_apart(scene, labels)


def _told_apart(scene: Scene, labels: dict[str, str]) -> dict[str, str]:
    meeting = set()
    for op in operators(scene.root):
        here = [labels[g] for g in op.groups]
        meeting |= {label for label in here if here.count(label) > 1}
    result, taken = dict(labels), set(labels.values())
    for name, label in labels.items():
        if label in meeting:
            layer = layer_of(name).rpartition(".")[2]
            wanted = [f"{label}.{layer}"] if layer else []
            wanted += [f"{label}.{i}" for i in range(len(labels) + 1)]
            result[name] = next(one for one in wanted if one not in taken)
            taken.add(result[name])
    return result


def _folds(item: Item) -> Iterator[Fold]:
    if isinstance(item, Fold):
        yield item
    inside: Sequence[Item] = () if isinstance(item, Op) else item.children if isinstance(item, Box) else [
        one for copy in item.copies for one in copy
    ]  # fmt: skip
    for child in inside:
        yield from _folds(child)


def _shared_heads(scene: Scene) -> set[str]:
    """Heads that stand in a product with the size of a query group."""
    names = list(scene.groups)
    found: set[str] = set()
    for tensor in scene.tensors.values():
        for product in re.findall(r"[{}\d*]+", tensor.dims):
            groups = [scene.groups[names[int(i)]] for i in re.findall(r"\{(\d+)\}", product)]
            if any(g.kind == "query_group" for g in groups):
                found |= {g.name for g in groups if g.kind == "heads"}
    return found
