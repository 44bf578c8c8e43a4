"""What a group is called: read off the operators that its atom passes through, never off a model's name."""

from __future__ import annotations

import torch
from torch import fx

from shearfx.dims import Atom
from shearfx.graph import Graph

ATTENTION = {torch.ops.aten.scaled_dot_product_attention.default}


def kinds(graph: Graph) -> dict[Atom, str]:
    """A kind for every atom that some operator takes for something.

    ``heads`` (what attention is batched over), ``query_group`` (queries that share key and value), ``head_dim``
    (contracted between query and key), ``value_dim``, ``hidden`` (embedded or normalised, and carried along),
    ``channels`` (of convolutions), ``ffn`` (anything else that a linear layer contracts).
    """
    roles: dict[Atom, set[str]] = {}
    for record in graph.records.values():
        for role, dim in record.roles:
            for atom in graph.solver.atoms(dim):
                roles.setdefault(atom, set()).add(role)
    shared = {atom for atom, found in roles.items() if {"heads", "repeated"} <= found}
    for node in graph.records if shared else ():
        if node.target in ATTENTION:
            for operand in (one for one in node.args[1:3] if isinstance(one, fx.Node)):  # key and value
                for atom in shared & _atoms(graph, operand):
                    if _is_projected(graph, operand, atom):  # only a part of the key is shared
                        roles[atom].discard("repeated")
    return {atom: _kind(found) for atom, found in roles.items()}


def _is_projected(graph: Graph, node: fx.Node, atom: Atom) -> bool:
    """Whether some product with a weight brings an atom into an activation, rather than repeating it."""
    seen, left = {node}, [node]
    while left:
        one = left.pop()
        sources = {source for source in one.all_input_nodes if atom in _atoms(graph, source)}
        data = {source for source in sources if graph.records[source].data}
        if not data and sources and graph.records[one].exits:
            return True
        left += data - seen
        seen |= data
    return False


def _atoms(graph: Graph, node: fx.Node) -> set[Atom]:
    dims = graph.records[node].dims
    return {atom for dim in dims for atom in graph.solver.atoms(dim)} if isinstance(dims, tuple) else set()


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
