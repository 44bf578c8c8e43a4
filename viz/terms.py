"""Short names for atoms, and terms written with them: ``kv*group*d``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy

from shearfx.dims import Atom, Dim, Prod, Sum, leaves
from shearfx.graph import Graph, natural
from shearfx.layered_names import layer_of, star
from shearfx.rules.registry import Dims

__all__ = ["Labels"]

_SHORT = {
    "heads": "heads", "query_group": "group", "head_dim": "d", "value_dim": "v", "hidden": "hidden", "ffn": "ffn",
    "experts": "experts", "channels": "c", "features": "f",
}  # fmt: skip
"""Kinds of groups as they are written in papers."""


class Labels:
    """What the atoms of one graph are called in pictures.

    Groups that differ only in their layer share a label (``ffn``), as they look alike once layers are folded; other
    groups of the same kind are numbered (``c1``, ``c2``). Heads that are shared by a group of queries are ``kv``.
    Open dims are ``B`` and ``S``; what is pinned is called by its size.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.names = _group_labels(graph)
        self.layers = {g.atom: layer_of(g.name) for g in graph.groups}
        self.symbols = _symbols(graph)

    def term(self, dim: Dim) -> str:
        """A term as text. Atoms of several layers in one term carry the number of their layer."""
        dim = self.graph.solver.resolve(dim)
        atoms = dict.fromkeys(leaves(dim))
        found: dict[str, set[Atom]] = {}
        for atom in atoms:
            if atom in self.names:
                found.setdefault(self.names[atom], set()).add(atom)
        names = {
            atom: label + (f".{self.layers[atom].rpartition('.')[2]}" if len(alike) > 1 and self.layers[atom] else "")
            for label, alike in found.items()
            for atom in alike
        }
        return self._write(dim, names)

    def dims(self, dims: Dims) -> str:
        """The dims of a tensor as text."""
        return ", ".join(map(self.term, dims)) or "scalar"

    def size(self, size: Any) -> str:
        """A size: a number, or an expression of the open dims."""
        return str(size) if isinstance(size, int) else str(sympy.sympify(size).subs(self.symbols)).replace(" ", "")

    def _write(self, dim: Dim, names: Mapping[Atom, str]) -> str:
        if isinstance(dim, Atom):
            return names.get(dim) or self.size(dim.size)
        if isinstance(dim, Prod):
            inner = (f"({self._write(f, names)})" if isinstance(f, Sum) else self._write(f, names) for f in dim.factors)
            return "*".join(inner) or "1"
        assert isinstance(dim, Sum)
        return "+".join(self._write(part, names) for part in dim.parts) or "0"


def _group_labels(graph: Graph) -> dict[Atom, str]:
    shared = _shared_heads(graph)
    classes: dict[str, dict[str, list[Atom]]] = {}
    for group in sorted(graph.groups, key=lambda g: natural(g.name)):
        short = "kv" if group.atom in shared else _SHORT.get(group.kind, group.kind)
        classes.setdefault(short, {}).setdefault(star(group.name), []).append(group.atom)
    return {
        atom: short if len(alike) == 1 else f"{short}{number}"
        for short, alike in classes.items()
        for number, atoms in enumerate(alike.values(), 1)
        for atom in atoms
    }


def _shared_heads(graph: Graph) -> set[Atom]:
    """Heads that stand in a product with the size of a query group."""
    kinds = {g.atom: g.kind for g in graph.groups}
    found: set[Atom] = set()
    for dims in graph.tensor_dims.values():
        for dim in dims:
            atoms = set(leaves(dim))
            if any(kinds.get(a) == "query_group" for a in atoms):
                found |= {a for a in atoms if kinds.get(a) == "heads"}
    return found


def _symbols(graph: Graph) -> dict[sympy.Symbol, sympy.Symbol]:
    """``B`` for what is open at dim 0 of an argument, ``S`` at dim 1; further ones are numbered."""
    counts = {"B": 0, "S": 0}
    names: dict[sympy.Symbol, sympy.Symbol] = {}
    for node in graph.traced.inputs.values():
        for axis, size in enumerate(node.meta["val"].shape):
            if isinstance(size, int) or not size.node.expr.is_Symbol or size.node.expr in names:
                continue
            short = "BS"[min(axis, 1)]
            counts[short] += 1
            names[size.node.expr] = sympy.Symbol(short if counts[short] == 1 else f"{short}{counts[short]}")
    return names
