"""What an integer attribute may have to become: the new size of any term of its module that had its old value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from shearfx.dims import Atom, Dim, Prod, Sum, concat, prod
from shearfx.graph import Graph, module_paths, new_size

_LONGEST = 12
"""Of sums of more parts only whole runs from either end are taken for a term of their own."""


@dataclass(frozen=True)
class Variable:
    """An attribute of a class: what it may become in each of the class's instances."""

    kind: str
    attribute: str
    terms: str
    """The terms that its instances see, as text."""
    paths: tuple[str, ...]
    choices: Mapping[int, tuple[int, ...]] = field(hash=False, compare=False)
    """Position of a term to its new size in each instance."""


def variables(
    graph: Graph, model: nn.Module, read: Mapping[tuple[str, str], int], sizes: Mapping[Atom, int]
) -> list[Variable]:
    """The attributes that may have to change, one entry for all modules of a class.

    Args:
        read: the integers that the model's code reads, by module path and name.
        sizes: new sizes of the atoms that are cut.
    """
    terms = Terms(graph, {path for path, _ in read})
    instances: dict[tuple[str, str, str], list[tuple[str, list[Dim], int]]] = {}
    for (path, name), old in read.items():
        options = terms.of_size(path, old)
        if options:
            kind = type(model.get_submodule(path)).__qualname__
            # Modules of one class that see different terms (with and without a bias, say) are solved apart.
            instances.setdefault((kind, name, _signature(options)), []).append((path, options, old))
    found = []
    for (kind, name, signature), group in instances.items():
        choices: dict[int, tuple[int, ...]] = {}
        for at in range(max(len(options) for _, options, _ in group)):
            values = tuple(new_size(options[at], sizes) if at < len(options) else old for _, options, old in group)
            if values not in choices.values() and any(v != old for v, (_, _, old) in zip(values, group, strict=True)):
                choices[at] = values
        if choices:
            found.append(Variable(kind, name, signature, tuple(path for path, _, _ in group), choices))
    return found


def _signature(options: list[Dim]) -> str:
    names: dict[Atom, int] = {}

    def text(dim: Dim) -> str:
        if isinstance(dim, Atom):
            return f"#{names.setdefault(dim, len(names))}:{dim.size}"
        if isinstance(dim, Prod):
            return "(" + "*".join(map(text, dim.factors)) + ")"
        assert isinstance(dim, Sum)
        return "(" + "+".join(map(text, dim.parts)) + ")"

    return " ".join(map(text, options))


class Terms:
    """The distinct terms that the operators of each module mention, in the order of their appearance."""

    def __init__(self, graph: Graph, paths: set[str]) -> None:
        self.graph = graph
        self.nodes: dict[str, list[fx.Node]] = {path: [] for path in paths}
        for node in graph.traced.graph.nodes:
            for path in dict.fromkeys(module_paths(node)):
                if path in self.nodes:
                    self.nodes[path].append(node)
        self.known: dict[str, dict[int, list[Dim]]] = {}

    def of_size(self, path: str, size: int) -> list[Dim]:
        """Terms of this size in a module."""
        if path not in self.known:
            self.known[path] = self._collect(path)
        return self.known[path].get(size, [])

    def _collect(self, path: str) -> dict[int, list[Dim]]:
        by_size: dict[int, list[Dim]] = {}
        seen: set[Any] = set()
        wholes: set[int] = set()
        for node in self.nodes[path]:
            for source in (*node.all_input_nodes, node):
                dims = self.graph.records[source].dims
                for one in dims if isinstance(dims, list) else [dims]:
                    for dim in one or ():
                        dim = self.graph.solver.resolve(dim)
                        if id(dim) in wholes:
                            continue
                        wholes.add(id(dim))
                        for term in parts_of(dim):
                            if isinstance(term.size, int) and term.size > 1 and (key := _key(term)) not in seen:
                                seen.add(key)
                                by_size.setdefault(term.size, []).append(term)
        return by_size


def _key(dim: Dim) -> Any:
    if isinstance(dim, Atom):
        return id(dim)
    if isinstance(dim, Prod):
        return ("*", *map(_key, dim.factors))
    assert isinstance(dim, Sum)
    return ("+", *map(_key, dim.parts))


def parts_of(dim: Dim) -> Iterator[Dim]:
    """A term, and all its parts: neighbouring factors, neighbouring summands, and theirs."""
    yield dim
    if isinstance(dim, Atom):
        return
    children = dim.factors if isinstance(dim, Prod) else dim.parts  # type: ignore[attr-defined]
    join = prod if isinstance(dim, Prod) else concat
    count = len(children)
    for length in range(count - 1, 0, -1):
        for start in range(count - length + 1):
            if count <= _LONGEST or start in (0, count - length) or length == 1:
                part = join(children[start : start + length])
                if length > 1:
                    yield part
                else:
                    yield from parts_of(part)
