"""A picture as data: what is drawn of a graph, before anything decides how."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Box", "Edge", "Fold", "GroupInfo", "Item", "Op", "PinInfo", "Scene", "TensorInfo", "operators"]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A parameter, buffer or constant: its dims as a term, and its shape before and after a plan."""

    name: str
    kind: str
    dims: str
    shape: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """A pruning group and what is known of it. ``kept`` is None where no plan is laid over the picture."""

    name: str
    label: str
    kind: str
    size: int
    certificate: str
    reason: str
    source: str
    """Where the certificate was lost, as module path and line."""
    params: int
    """Parameters that one structure takes along."""
    members: tuple[tuple[str, int, str], ...]
    """Tensor, dim, and the term there."""
    kept: int | None = None
    color: int = 0
    """Place in the palette. Groups that meet have different ones, groups that differ only in their layer the same."""


@dataclass(frozen=True, slots=True)
class PinInfo:
    """Why something may not be cut."""

    dims: str
    reason: str
    node: str
    source: str


@dataclass(frozen=True, slots=True)
class Op:
    """A node of the traced graph."""

    name: str
    kind: str
    """``operator``, ``input`` or ``output``."""
    title: str
    dims: str
    """The dims of what it computes."""
    inputs: tuple[str, ...]
    """Nodes whose tensors it reads, parameters aside."""
    tensors: tuple[str, ...]
    """Parameters, buffers and constants it reads, by name."""
    groups: tuple[str, ...]
    pins: tuple[int, ...]
    """Places in ``Scene.pins``."""
    fixed: bool
    """Nothing of it may be cut."""
    source: str


@dataclass(frozen=True, slots=True)
class Box:
    """Operators that belong together: a module's, those of one line of its code, or a composed operator's."""

    id: str
    kind: str
    """``module``, ``line`` or ``composed``."""
    title: str
    path: str
    """The module's."""
    detail: str
    """Its class, or the line of code."""
    children: tuple[Item, ...]
    open: bool
    """Whether pictures show what is inside unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Fold:
    """Consecutive siblings that look alike: each of ``copies`` is one repetition, of one or more siblings."""

    id: str
    title: str
    copies: tuple[tuple[Item, ...], ...]

    @property
    def children(self) -> tuple[Item, ...]:
        """What is shown when folded."""
        return self.copies[0]


@dataclass(frozen=True, slots=True)
class Edge:
    """Tensors that go from one node of a picture to another, each as the term of its dims."""

    source: str
    target: str
    dims: tuple[str, ...]


Item: TypeAlias = Op | Box | Fold


@dataclass(frozen=True)
class Scene:
    """Everything a picture may show of a graph and a plan."""

    title: str
    root: Box
    groups: dict[str, GroupInfo]
    pins: tuple[PinInfo, ...]
    tensors: dict[str, TensorInfo]
    summary: str
    """One line: parameters, coverage, what a plan removes."""
    planned: bool = False


def operators(item: Item) -> Iterator[Op]:
    """All operators of an item, in the order of execution; of a fold, those of every copy."""
    if isinstance(item, Op):
        yield item
        return
    for child in item.children if isinstance(item, Box) else (c for copy in item.copies for c in copy):
        yield from operators(child)
