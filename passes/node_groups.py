"""Overlapping node-group detection: which nodes mention which atom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from shearfx.dims import Atom
from shearfx.graph import Graph, NodeGroup
from shearfx.passes.manager import Pass


@dataclass(frozen=True)
class DetectNodeGroups(Pass):
    """One node group for each atom that may be cut. Groups that share a node overlap there.

    Source: LoRAShear, section 3.1 and Algorithm 2. A composed operator counts as one node: where an atom touches
    one of its operators, all of them belong to the node group.
    """

    name: ClassVar[str] = "node groups"
    requires: ClassVar[tuple[str, ...]] = ("infer",)

    def apply(self, graph: Graph) -> None:
        """Fill ``graph.node_groups``."""
        nodes: dict[Atom, dict[fx.Node, None]] = {}
        composed = {node: c.nodes for c in graph.composed if c.kind == "lora" for node in c.nodes}
        for node, record in graph.records.items():
            for atom in atoms_of(graph, record.dims):
                if atom.pin is None:
                    nodes.setdefault(atom, {}).update(dict.fromkeys(composed.get(node, (node,))))
        graph.node_groups = [NodeGroup(atom, tuple(members)) for atom, members in nodes.items()]


def atoms_of(graph: Graph, dims: object) -> list[Atom]:
    """The distinct atoms that a record's dims mention."""
    if dims is None:
        return []
    if isinstance(dims, list):
        return list(dict.fromkeys(a for one in dims for a in atoms_of(graph, one)))
    assert isinstance(dims, tuple)
    return list(dict.fromkeys(a for dim in dims for a in graph.solver.atoms(dim)))
