"""Folding of repeated siblings: found by comparing what they are made of and how they are wired, never by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from shearfx.layered_names import star
from shearfx.viz.scene import Box, Fold, Item, Op, operators

__all__ = ["fold"]

LONGEST = 12
"""Siblings that one repetition may be made of: hybrid models repeat patterns of some eight layers."""


def fold(box: Box, known: Mapping[str, Any], terms: Mapping[str, str]) -> Box:
    """Return the box with repeated siblings folded, at every depth.

    Args:
        box: with terms in which groups stand by number.
        known: for each group by name, what has to be the same where it repeats: kind, size, certificate.
        terms: the dims of each tensor.
    """
    children = [fold(c, known, terms) if isinstance(c, Box) else c for c in box.children]
    return replace(box, children=tuple(_folded(box.id, children, known, terms)))


def _folded(parent: str, children: Sequence[Item], known: Mapping[str, Any], terms: Mapping[str, str]) -> list[Item]:
    shapes = [_shape(c, known, terms) if isinstance(c, Box) and c.kind != "line" else None for c in children]
    wires = [_wires(c) for c in children]
    result: list[Item] = []
    at = 0
    while at < len(children):
        period, count = _repetition(children, shapes, wires, at)
        if count > 1:
            copies = tuple(tuple(children[at + k * period : at + (k + 1) * period]) for k in range(count))
            result.append(Fold(f"{parent}f{len(result)}", _title(copies), copies))
        else:
            result.append(children[at])
        at += period * count
    return result


def _repetition(children: Sequence[Item], shapes: Sequence[Any], wires: Sequence[Any], at: int) -> tuple[int, int]:
    """Length and number of the repetitions that begin here; of several, those that cover most, then the shortest."""
    best = (1, 1)
    for period in range(1, min(LONGEST, (len(children) - at) // 2) + 1):
        if any(shape is None for shape in shapes[at : at + period]):
            break
        count = 1
        while _repeats(shapes, wires, at, period, count):
            count += 1
        if count > 1 and period * count > best[0] * best[1]:
            best = (period, count)
    return best


def _repeats(shapes: Sequence[Any], wires: Sequence[Any], at: int, period: int, count: int) -> bool:
    """Whether one more repetition looks like the first and is wired to the one before it as that is to its own."""
    start = at + count * period
    if start + period > len(shapes) or list(shapes[start : start + period]) != list(shapes[at : at + period]):
        return False
    for i in range(start, start + period):
        outside, before = wires[i][0], wires[i - period][0]
        for name, other in zip(outside, before, strict=True):
            if name != other:
                # in the repetition before, or earlier in its own; then always at the same place
                link = _link(wires, start, period, name)
                if link is None or (count > 1 and link != _link(wires, start - period, period, other)):
                    return False
    return True


def _link(wires: Sequence[Any], start: int, period: int, name: str) -> tuple[int, int] | None:
    for back in range(-period, period):
        places = wires[start + back][1] if 0 <= start + back < len(wires) else {}
        if name in places:
            return back, places[name]
    return None


def _wires(item: Item) -> tuple[list[str], dict[str, int]]:
    """The operators outside that an item reads, in order of first use, and the places of its own."""
    places = {op.name: i for i, op in enumerate(operators(item))}
    outside = dict.fromkeys(name for op in operators(item) for name in op.inputs if name not in places)
    return list(outside), places


def _shape(box: Box, known: Mapping[str, Any], terms: Mapping[str, str]) -> tuple[Any, ...]:
    """What a box is made of, free of the names of layers and nodes."""
    places = {op.name: i for i, op in enumerate(operators(box))}
    outside: dict[str, int] = {}
    groups: dict[str, int] = {}
    numbers: dict[str, int] = {}
    tensors: dict[str, int] = {}

    def term(template: str) -> str:
        return re.sub(r"\{(\d+)\}", lambda found: f"#{numbers.setdefault(found[1], len(numbers))}", template)

    def of(item: Item) -> Any:
        if isinstance(item, Op):
            return (
                item.kind, item.title, term(item.dims), item.fixed,
                tuple(("in", places[n]) if n in places else ("out", outside.setdefault(n, len(outside)))
                      for n in item.inputs),
                tuple((known[g], groups.setdefault(g, len(groups))) for g in item.groups),
                tuple((t.rpartition(".")[2], term(terms[t]), tensors.setdefault(t, len(tensors)))
                      for t in item.tensors),
            )  # fmt: skip
        if isinstance(item, Fold):
            return ("fold", tuple(tuple(map(of, copy)) for copy in item.copies))
        return (item.kind, item.title if item is not box else star(f"{item.title}."), item.detail.partition(": ")[0],
                tuple(map(of, item.children)))  # fmt: skip

    return (of(box),)


def _title(copies: Sequence[Sequence[Item]]) -> str:
    first, last = copies[0][0].title, copies[-1][-1].title
    prefix, _, number = last.rpartition(".")
    return f"{first} … {number}" if prefix and first.startswith(f"{prefix}.") else f"{first} … {last}"
