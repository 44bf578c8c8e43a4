"""An analysed graph as rows: groups that differ only in their layer as one, counts per layer, pins by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shearfx.layered_names import layer_of, star

if TYPE_CHECKING:
    from shearfx.graph import Graph, Group, Pinned

__all__ = ["GroupRow", "PinRow", "collapse", "describe", "group_rows", "layer_of", "layers", "pin_rows"]


@dataclass(frozen=True)
class GroupRow:
    """Groups alike in everything but the numbers in their names."""

    name: str
    kind: str
    size: int
    certificate: str
    params: int
    """Parameters that one structure takes along."""
    count: int
    reason: str


@dataclass(frozen=True)
class PinRow:
    """Pins with the same reason."""

    reason: str
    count: int
    dims: str
    node: str
    source: str


def group_rows(groups: Iterable[Group]) -> list[GroupRow]:
    """Collapse groups that differ only in the numbers of their names, in the order of first appearance."""
    counts = Counter((star(g.name), g.kind, g.size, g.certificate, g.params, g.reason) for g in groups)
    return [
        GroupRow(name, kind, size, certificate, params, count, reason)
        for (name, kind, size, certificate, params, reason), count in counts.items()
    ]


def layers(groups: Iterable[Group]) -> dict[str, dict[str, list[int]]]:
    """For each layer, the sizes of its groups by kind; ``""`` holds what belongs to no numbered layer."""
    found: dict[str, dict[str, list[int]]] = {}
    for group in groups:
        found.setdefault(layer_of(group.name), {}).setdefault(group.kind, []).append(group.size)
    return found


def collapse(rows: Mapping[str, str]) -> list[tuple[str, str]]:
    """Join neighbours with the same text into ranges.

    >>> collapse({"": "a", "h.0": "b", "h.1": "b", "h.2": "c"})
    [('', 'a'), ('h.0-1', 'b'), ('h.2', 'c')]
    """
    runs: list[tuple[str, str, str]] = []  # first layer, last layer, text
    for layer, text in rows.items():
        if runs and runs[-1][2] == text and _next_to(runs[-1][1], layer):
            runs[-1] = (runs[-1][0], layer, text)
        else:
            runs.append((layer, layer, text))
    return [(a if a == b else f"{a}-{b.rpartition('.')[2]}", text) for a, b, text in runs]


def _next_to(left: str, right: str) -> bool:
    (path, _, i), (other, _, j) = left.rpartition("."), right.rpartition(".")
    return path == other and i.isdigit() and j.isdigit() and int(j) == int(i) + 1


def sizes_text(kinds: Mapping[str, list[int]]) -> str:
    """Sizes by kind as text.

    >>> sizes_text({"heads": [8], "ffn": [64, 64, 32]})
    'heads 8, ffn 2 x 64 + 32'
    """
    parts = []
    for kind, sizes in kinds.items():
        counts = Counter(sizes)
        parts.append(f"{kind} " + " + ".join(f"{n} x {size}" if n > 1 else str(size) for size, n in counts.items()))
    return ", ".join(parts)


def pin_rows(pins: Iterable[Pinned]) -> list[PinRow]:
    """Collapse pins by their reason; the first of each says where."""
    found: dict[str, list[Pinned]] = {}
    for pin in pins:
        found.setdefault(pin.reason, []).append(pin)
    return [PinRow(reason, len(all_), _dims(all_[0]), all_[0].node, all_[0].source) for reason, all_ in found.items()]


def _dims(pin: Pinned) -> str:
    return str(pin.dims.size)


def describe(graph: Graph) -> dict[str, Any]:
    """Everything that ``shearfx analyze --json`` says of a graph."""
    return {
        "class": graph.traced.model_class,
        "parameters": graph.total_params,
        "coverage": {"exact": graph.coverage_exact, "exact_and_compensated": graph.coverage},
        "groups": [
            {
                "name": g.name,
                "kind": g.kind,
                "size": g.size,
                "certificate": g.certificate,
                "reason": g.reason,
                "node": g.node,
                "params": g.params,
                "members": [{"name": m.name, "dim": m.dim} for m in g.members],
            }
            for g in graph.groups
        ],
        "layers": layers(graph.groups),
        "pins": [
            {"dims": str(p.dims), "size": str(p.dims.size), "reason": p.reason, "node": p.node, "source": p.source}
            for p in graph.pins
        ],
        "seconds": {"export": graph.traced.seconds, "passes": dict(graph.seconds)},
        "fixed_dims": list(graph.traced.specialised),
        "unreached": [t.name for t in graph.traced.unused],
    }
