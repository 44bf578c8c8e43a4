"""What is written at a node of a picture: title, what it is, its groups, why it is pinned."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from shearfx.viz.scene import Box, GroupInfo, Op, Scene
from shearfx.viz.view import Leaf

__all__ = ["Card", "Chip", "card_of", "legend_of", "short"]

WIDEST = 40
"""Characters of a line in a picture; what is longer ends in an ellipsis, and stands in full in the tooltip."""


@dataclass(frozen=True, slots=True)
class Chip:
    """A coloured label: the groups of one name at a node, or in the legend."""

    label: str
    text: str
    """The label; under a plan with the sizes before and after."""
    color: int
    groups: tuple[GroupInfo, ...]


@dataclass(frozen=True, slots=True)
class Card:
    """The texts of one node."""

    title: str
    lines: tuple[str, ...]
    chips: tuple[Chip, ...]
    pinned: bool
    """Nothing of it may be cut."""
    kept: float | None
    """Share of its parameters that the plan keeps, where it cuts some."""
    tooltip: str


def card_of(scene: Scene, leaf: Leaf) -> Card:
    """Describe one node."""
    every = [op for copy in leaf.copies for op in copy]
    chips = _at(scene, leaf)
    path = leaf.item.path if isinstance(leaf.item, Box) else ""
    pins = list(dict.fromkeys(p for op in leaf.shown for p in op.pins))
    pinned = not chips and any(op.fixed for op in leaf.shown)
    tensors = list(dict.fromkeys(t for op in leaf.shown for t in op.tensors))
    lines = [line for line in (_what(leaf), *(_tensor(scene, t, path) for t in tensors)) if line]
    reasons = [f"{scene.pins[p].dims}: {scene.pins[p].reason}" for p in pins]
    certificates = [f"{c.label}: {_certificate(c.groups)}" for c in chips]
    source = next((op.source for op in leaf.shown if op.source), "")
    told = [path, leaf.shown[-1].dims, *tensors, *certificates, *(f"pinned {r}" for r in reasons), source]
    kept = _kept(scene, (t for op in every for t in op.tensors))
    return Card(leaf.item.title, tuple(lines), chips, pinned, kept, "\n".join(dict.fromkeys(filter(None, told))))


def legend_of(scene: Scene) -> tuple[Chip, ...]:
    """A chip for every label of the picture."""
    found: dict[str, list[GroupInfo]] = {}
    for group in scene.groups.values():
        found.setdefault(group.label, []).append(group)
    return _chips(found)


def short(text: str) -> str:
    """A line that fits into a picture."""
    return text if len(text) <= WIDEST else text[: WIDEST - 1] + "…"


def _what(leaf: Leaf) -> str:
    item = leaf.item
    if isinstance(item, Op):
        return ""
    counted = f"{len(leaf.shown)} operators" if len(leaf.shown) > 1 else leaf.shown[0].title
    if item.kind == "line":
        return "" if item.title == " · ".join(dict.fromkeys(op.title for op in leaf.shown)) else counted
    return item.detail if item.kind == "composed" else f"{item.detail}: {counted}"


def _tensor(scene: Scene, name: str, path: str) -> str:
    tensor = scene.tensors[name]
    if len(tensor.shape) < 2:  # biases and norms have the dims of the result
        return ""
    inside = path and name.startswith(f"{path}.")
    return f"{name.removeprefix(f'{path}.') if inside else name.rpartition('.')[2]}: {tensor.dims}"


def _at(scene: Scene, leaf: Leaf) -> tuple[Chip, ...]:
    """A chip for each group of the copy that is shown; it stands for those at the same place of the other copies."""
    found: dict[str, dict[str, GroupInfo]] = {}
    for copies in zip(*leaf.copies, strict=True):
        for names in zip(*(op.groups for op in copies), strict=True):
            found.setdefault(scene.groups[names[0]].label, {}).update({n: scene.groups[n] for n in names})
    return _chips({label: list(groups.values()) for label, groups in found.items()})


def _chips(found: Mapping[str, Sequence[GroupInfo]]) -> tuple[Chip, ...]:
    chips = []
    for label, groups in found.items():
        text = label
        if any(g.kept is not None and g.kept < g.size for g in groups):
            text = f"{label} {_range([g.size for g in groups])}→{_range([g.kept or 0 for g in groups])}"
        chips.append(Chip(label, text, groups[0].color, tuple(groups)))
    return tuple(chips)


def _certificate(groups: Sequence[GroupInfo]) -> str:
    first = groups[0]
    known = ", ".join(dict.fromkeys(g.certificate for g in groups))
    several = f"{len(groups)} groups of " if len(groups) > 1 else ""
    text = f"{several}{_range([g.size for g in groups])} {first.kind}, {known}"
    return f"{text} ({first.reason})" if first.reason else text


def _range(sizes: Sequence[int]) -> str:
    return f"{min(sizes)}–{max(sizes)}" if min(sizes) < max(sizes) else str(sizes[0])


def _kept(scene: Scene, tensors: Iterable[str]) -> float | None:
    found = [scene.tensors[name] for name in dict.fromkeys(tensors)]
    before, after = (sum(math.prod(shape) for shape in shapes)
                     for shapes in ([t.shape for t in found], [t.after for t in found]))  # fmt: skip
    return after / before if scene.planned and after < before else None
