"""What a group is called: read off the operators that its atom passes through, never off a model's name."""

from __future__ import annotations

from shearfx.dims import Atom
from shearfx.graph import Graph


def kinds(graph: Graph) -> dict[Atom, str]:
    """A kind for every atom that some operator takes for something.

    ``heads`` (what attention is batched over), ``query_group`` (heads that share a key), ``head_dim`` (contracted
    between query and key), ``value_dim``, ``hidden`` (embedded or normalised, and carried along), ``channels``
    (of convolutions), ``ffn`` (anything else that a linear layer contracts).
    """
    roles: dict[Atom, set[str]] = {}
    for record in graph.records.values():
        for role, dim in record.roles:
            for atom in graph.solver.atoms(dim):
                roles.setdefault(atom, set()).add(role)
    return {atom: _kind(found) for atom, found in roles.items()}


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
