"""What a group is called: read off the operators that its atom passes through, never off a model's name."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from shearfx.dims import Atom
from shearfx.graph import Graph


def kinds(graph: Graph) -> dict[Atom, str]:
    """A kind for every atom that some operator takes for something.

    ``heads`` (what attention is batched over), ``query_group`` (queries that share key and value), ``head_dim`` (contracted
    between query and key), ``value_dim``, ``hidden`` (embedded or normalised, and carried along), ``channels``
    (of convolutions), ``ffn`` (anything else that a linear layer contracts).
    """
    roles: dict[Atom, set[str]] = {}
    for record in graph.records.values():
        for role, dim in record.roles:
            for atom in graph.solver.atoms(dim):
                roles.setdefault(atom, set()).add(role)
    shared = {atom for atom, found in roles.items() if {"heads", "repeated"} <= found}
    for atom, count in _projected(graph, shared).items():
        if count > 1:  # only a part of the key is shared: keys or values have heads of their own
            roles[atom].remove("repeated")
    return {atom: _kind(found) for atom, found in roles.items()}


def _projected(graph: Graph, atoms: set[Atom]) -> dict[Atom, int]:
    """For each atom: how many products with a parameter bring it into what follows the data."""
    found = dict.fromkeys(atoms, 0)
    for record in graph.records.values() if atoms else ():
        if record.data and len(record.operands) > 1 and record.exits and isinstance(record.dims, tuple):
            came = _atoms(graph, [one for one in record.operands if graph.records[one].data])
            for atom in {atom for dim in record.dims for atom in graph.solver.atoms(dim)} & atoms - came:
                found[atom] += 1
    return found


def _atoms(graph: Graph, nodes: Iterable[fx.Node]) -> set[Atom]:
    dims = [graph.records[node].dims for node in nodes]
    return {atom for one in dims if isinstance(one, tuple) for dim in one for atom in graph.solver.atoms(dim)}


def _kind(roles: set[str]) -> str:
    if "heads" in roles:
        return "query_group" if "repeated" in roles else "heads"
    if "embedding" in roles:
        return "hidden"
    if "head_dim" in roles:
        return "head_dim"
    if "value_dim" in roles:
        return "value_dim"
    if "normalised" in roles:
        return "hidden"
    if "channels" in roles:
        return "channels"
    return "ffn" if "contracted" in roles else "features"
