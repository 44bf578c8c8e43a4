"""What of a scene is seen: repeated layers folded, small boxes closed, edges between what is left."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from shearfx.viz.scene import Box, Edge, Fold, Item, Op, Scene, operators

__all__ = ["Cluster", "Leaf", "View", "folded"]


@dataclass(frozen=True)
class Leaf:
    """A node of the picture: an operator or a closed box, with all operators it stands for, those of copies too."""

    id: str
    item: Op | Box
    shown: tuple[Op, ...]
    """The operators of the copy that is shown."""
    copies: tuple[tuple[Op, ...], ...]
    """Those of every copy, the shown one first."""


@dataclass
class Cluster:
    """A box of the picture around nodes and other boxes."""

    id: str
    title: str
    detail: str
    repeat: int
    """How often it stands there: 1 unless folded."""
    children: list[Cluster | Leaf] = field(default_factory=list)


@dataclass(frozen=True)
class View:
    """A picture: nested boxes, nodes, and edges between nodes."""

    root: Cluster
    leaves: tuple[Leaf, ...]
    edges: tuple[Edge, ...]


def folded(scene: Scene) -> View:
    """The scene with folds folded and closed boxes closed."""
    leaves: list[Leaf] = []

    def visit(item: Item, twins: tuple[Item, ...]) -> Cluster | Leaf:
        if isinstance(item, Op) or (isinstance(item, Box) and not item.open and item is not scene.root):
            alike = (item, *twins)
            leaf = Leaf(item.name if isinstance(item, Op) else item.id, item, tuple(operators(item)),
                        tuple(tuple(operators(t)) for t in alike))  # fmt: skip
            leaves.append(leaf)
            return leaf
        if isinstance(item, Fold):
            return _fold(item, twins)
        cluster = Cluster(item.id, item.title, item.detail, 1)
        cluster.children = visit_all(item.children, [t.children for t in twins if isinstance(t, Box)])
        return cluster

    def visit_all(children: Iterable[Item], twins: Iterable[Iterable[Item]]) -> list[Cluster | Leaf]:
        columns = zip(children, *twins, strict=True)
        return [visit(first, tuple(rest)) for first, *rest in columns]

    def _fold(item: Fold, twins: tuple[Item, ...]) -> Cluster:
        every = [*item.copies, *(copy for t in twins if isinstance(t, Fold) for copy in t.copies)]
        inside = visit_all(every[0], every[1:])
        cluster = Cluster(item.id, item.title, "", len(item.copies), inside)
        only = inside[0]
        if len(inside) == 1 and isinstance(only, Cluster) and only.repeat == 1:
            cluster.detail, cluster.children = only.detail, only.children
        return cluster

    root = visit(scene.root, ())
    assert isinstance(root, Cluster)
    return View(root, tuple(leaves), tuple(_edges(leaves)))


def _edges(leaves: Iterable[Leaf]) -> Iterable[Edge]:
    """Edges between nodes, one for each pair and tensor; from one copy of a fold to the next there is none to draw."""
    place = {op.name: (leaf, k, op) for leaf in leaves for k, copy in enumerate(leaf.copies) for op in copy}
    found: dict[tuple[str, str], dict[str, None]] = {}
    for leaf in leaves:
        for k, copy in enumerate(leaf.copies):
            for op in copy:
                for name in op.inputs:
                    source, i, producer = place[name]
                    if source is leaf or (len(source.copies) > 1 and len(leaf.copies) > 1 and i != k):
                        continue
                    found.setdefault((source.id, leaf.id), {})[producer.dims] = None
    return [Edge(a, b, tuple(labels)) for (a, b), labels in found.items()]
