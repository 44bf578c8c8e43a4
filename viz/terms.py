"""Terms as text. Groups stand in them by number, ``{3}*{4}``, until folding has shown which may share a name."""

from __future__ import annotations

from typing import Any

import sympy

from shearfx.dims import Atom, Dim, Prod, Sum
from shearfx.graph import Graph
from shearfx.rules.registry import Dims

__all__ = ["Terms"]


class Terms:
    """Writes the dims of one graph: groups by number, open dims as ``B`` and ``S``, what is pinned by its size."""

    def __init__(self, graph: Graph) -> None:
        self.solver = graph.solver
        self.numbers = {g.atom: i for i, g in enumerate(graph.groups)}
        self.symbols = _symbols(graph)

    def dims(self, dims: Dims) -> str:
        """The dims of a tensor."""
        return ", ".join(map(self.term, dims)) or "scalar"

    def term(self, dim: Dim) -> str:
        """One dim."""
        return self._write(self.solver.resolve(dim))

    def _write(self, dim: Dim) -> str:
        if isinstance(dim, Atom):
            return f"{{{self.numbers[dim]}}}" if dim in self.numbers else self._size(dim.size)
        if isinstance(dim, Prod):
            inner = (f"({self._write(f)})" if isinstance(f, Sum) else self._write(f) for f in dim.factors)
            return "*".join(inner) or "1"
        assert isinstance(dim, Sum)
        return "+".join(map(self._write, dim.parts)) or "0"

    def _size(self, size: Any) -> str:
        return str(size) if isinstance(size, int) else str(sympy.sympify(size).subs(self.symbols)).replace(" ", "")


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
