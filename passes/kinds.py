"""What a group is called: read off the operators that its atom passes through, never off a model's name."""

from __future__ import annotations

from shearfx.adapters import base_name
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
        for exit_ in record.exits:
            if exit_.certificate == "compensated":  # a root mean square that was composed of others
                for atom in graph.solver.atoms(exit_.dim):
                    roles.setdefault(atom, set()).add("normalised")
    shared = {atom for atom, found in roles.items() if {"heads", "repeated"} <= found}
    for atom, makers in _makers(graph, shared).items():
        if len(makers) > 1:  # only a part of the key is shared
            roles[atom].remove("repeated")
    return {atom: _kind(found) for atom, found in roles.items()}


def _makers(graph: Graph, atoms: set[Atom]) -> dict[Atom, set[str]]:
    """For each atom: the modules whose parameters bring it in, rather than sum over it; adapters count with theirs."""
    summed: set[tuple[Atom, str]] = set()
    for record in graph.records.values() if atoms else ():
        tensors = [t.name for one in record.operands if (t := graph.traced.tensors.get(one)) is not None]
        for exit_ in record.exits:
            summed |= {(atom, name) for atom in graph.solver.atoms(exit_.dim) if atom in atoms for name in tensors}
    found: dict[Atom, set[str]] = {atom: set() for atom in atoms}
    for name, dims in graph.tensor_dims.items() if atoms else ():
        base = base_name(name)
        for atom in {atom for dim in dims for atom in graph.solver.atoms(dim)} & atoms:
            if base is not None and (atom, name) not in summed:
                found[atom].add(base.rpartition(".")[0])
    return found


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
