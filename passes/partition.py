"""Pruning-group partitioning: certificates, members and costs of every group."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from shearfx.dims import Atom
from shearfx.graph import CERTIFICATES, Graph, Group, Member, Pinned, mentions, module_path, natural, new_size
from shearfx.passes.kinds import kinds
from shearfx.passes.manager import Pass
from shearfx.passes.node_groups import atoms_of
from shearfx.rules.registry import Record
from shearfx.values import Value, classify, join


@dataclass(frozen=True)
class PartitionGroups(Pass):
    """Every atom that is not pinned and that a parameter mentions becomes a pruning group with its certificate.

    Source: LoRAShear, Algorithm 2; the certificates are shearfx's own (design, "From equations to pruning groups").
    """

    name: ClassVar[str] = "partition"
    requires: ClassVar[tuple[str, ...]] = ("infer", "node groups")
    ensures: ClassVar[tuple[str, ...]] = ("grouped or pinned", "members partition")

    def apply(self, graph: Graph) -> None:
        """Fill ``graph.groups`` and ``graph.pins``."""
        members = _members(graph)
        for atom in [a for a, found in members.items() if not any(_is_parameter(graph, m) for m in found)]:
            graph.solver.pin(atom, "no parameter mentions it, only buffers", members.pop(atom)[0].name)
        verdicts = certify(graph)
        named = kinds(graph)
        modules: dict[Atom, list[str]] = {}
        for group in graph.node_groups:
            modules[group.atom] = list(dict.fromkeys(module_path(n) for n in group.nodes if n.op == "call_function"))
        graph.groups = []
        for atom, found in members.items():
            verdict = verdicts.get(atom, Verdict())
            graph.groups.append(
                Group(
                    name=_name(found, atom), kind=named.get(atom, "features"), size=atom.size,
                    certificate=verdict.certificate, members=tuple(found), params=_cost(graph, found, atom), atom=atom,
                    reason=verdict.reason, node=verdict.node, modules=tuple(modules.get(atom, ())),
                )
            )  # fmt: skip
        graph.groups.sort(key=lambda g: natural(g.name))
        nodes = {node.name: node for node in graph.traced.graph.nodes}
        graph.pins = [
            Pinned(graph.solver.resolve(dim), pin.reason, pin.node,
                   graph.source(nodes[pin.node]) if pin.node in nodes else pin.node)
            for dim, pin in graph.solver.pins
        ]  # fmt: skip


def _members(graph: Graph) -> dict[Atom, list[Member]]:
    found: dict[Atom, list[Member]] = {}
    for name, dims in graph.tensor_dims.items():
        for axis, dim in enumerate(dims):
            for atom in mentions((dim,)):
                if atom.pin is None:
                    found.setdefault(atom, []).append(Member(name, axis, dim, atom))
    return found


def _is_parameter(graph: Graph, member: Member) -> bool:
    return graph.tensors[member.name].kind == "parameter"


def _name(members: list[Member], atom: Atom) -> str:
    """The smallest parameter, dim and position that mention the atom."""
    from shearfx.dims import leaves

    first = min(members, key=lambda m: (len(mentions((m.term,))), natural(m.name), m.dim))
    if first.term is atom:
        return f"{first.name}:{first.dim}"
    position = next(i for i, leaf in enumerate(leaves(first.term)) if leaf is atom)
    return f"{first.name}:{first.dim}.{position}"


def _cost(graph: Graph, members: list[Member], atom: Atom) -> int:
    sizes = {atom: atom.size - 1}
    cost = 0
    for name in dict.fromkeys(m.name for m in members):
        tensor = graph.tensors[name]
        if tensor.kind == "parameter":
            cost += math.prod(tensor.shape) - math.prod(new_size(d, sizes) for d in graph.tensor_dims[name])
    return cost


# -- certificates ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """A certificate, and what kept it from being exact."""

    certificate: str = "exact"
    reason: str = ""
    node: str = ""


def certify(graph: Graph) -> dict[Atom, Verdict]:
    """Follow a zeroed index of every atom through the graph to where the atom leaves it.

    Zeroing sets the slices of floating parameters to zero and leaves buffers alone, so parameters start at zero and
    everything else at what it is without zeroing. Returns the verdict of every atom that leaves somewhere.
    """
    base: dict[fx.Node, Value] = {}
    zeroed: dict[fx.Node, dict[Atom, Value]] = {}
    touched: dict[fx.Node, set[Atom]] = {}  # atoms whose slices zeroing changes, be it within the same class
    verdicts: dict[Atom, Verdict] = {}
    for node, record in graph.records.items():
        atoms = [a for a in atoms_of(graph, record.dims) if a.pin is None]
        if node.op == "placeholder":
            tensor = graph.traced.tensors.get(node)
            base[node] = _constant(graph.traced.constants, tensor.name) if tensor else Value.FINITE
            floating = tensor is not None and tensor.kind == "parameter" and tensor.dtype.is_floating_point
            zeroed[node] = dict.fromkeys(atoms, Value.ZERO) if floating else {}
            touched[node] = set(zeroed[node])
            continue
        sources = record.operands
        values = [base[s] for s in sources]
        base[node] = _assumed(record, values, record.transfer(values) if record.transfer else Value.UNKNOWN)
        zeroed[node] = {}
        touched[node] = {atom for atom in atoms if any(atom in touched[s] for s in sources)}
        carriers = _carriers(graph, record)

        def seen(
            atom: Atom, having: tuple[int, ...] | None = None, sources: tuple[fx.Node, ...] = sources
        ) -> list[Value]:
            return [
                zeroed[s].get(atom, base[s]) if having is None or i in having else base[s]
                for i, s in enumerate(sources)
            ]

        if record.transfer is not None:
            for atom in touched[node]:
                if atom in carriers:
                    value = join(record.transfer(seen(atom, having)) for having in carriers[atom])
                else:
                    values = seen(atom)
                    if record.sources is not None:
                        values = [values[i] for i in record.sources(atom)] or values
                    value = record.transfer(values)
                if record.divisor is not None and atom not in touched[sources[record.divisor]]:
                    value = _divided(value, seen(atom)[1 - record.divisor])
                if value is not base[node]:
                    zeroed[node][atom] = value
        for exit_ in record.exits:
            for atom in dict.fromkeys(graph.solver.atoms(exit_.dim)):
                if atom.pin is None:
                    exact = exit_.value(seen(atom, exit_.carriers)) is Value.ZERO
                    certificate = exit_.certificate if exact else "approximate"
                    new = Verdict(certificate, exit_.reason if not exact else exit_.cost or exit_.reason, node.name)
                    old = verdicts.get(atom, Verdict())
                    if CERTIFICATES.index(new.certificate) > CERTIFICATES.index(old.certificate):
                        verdicts[atom] = new
    return verdicts


def _divided(measured: Value, dividend: Value) -> Value:
    """What is known of a quotient whose divisor is not zero, though its class would allow that."""
    if dividend is Value.ZERO:
        return Value.ZERO
    return Value.FINITE if dividend <= Value.FINITE and measured > Value.FINITE else measured


def _carriers(graph: Graph, record: Record) -> dict[Atom, set[tuple[int, ...]]]:
    """For each atom of a result: which operands have the dim that mentions it, once for each such dim."""
    found: dict[Atom, set[tuple[int, ...]]] = {}
    for dim, having in record.carried:
        for atom in graph.solver.atoms(dim):
            found.setdefault(atom, set()).add(having)
    return found


def _assumed(record: Record, operands: list[Value], value: Value) -> Value:
    """What is assumed of numbers that nothing was zeroed in: the full model's own numbers are finite.

    Where they are not, they reach kept and removed indices alike, and the comparison with the masked model is of
    numbers that are not finite, which verification refuses. Infinities that the code writes down (masks) stay until
    something sums over them.
    """
    masked = max(operands, default=value) > Value.FINITE
    written = masked or _infinite((*record.node.args, *record.node.kwargs.values()))
    return value if value <= Value.FINITE or (written and not record.exits) else Value.FINITE


def _infinite(arguments: object) -> bool:
    if isinstance(arguments, (tuple, list)):
        return any(map(_infinite, arguments))
    return isinstance(arguments, float) and not math.isfinite(arguments)


def _constant(constants: Mapping[str, torch.Tensor], name: str) -> Value:
    value = constants.get(name)
    if value is None or value.is_meta or not value.is_floating_point():
        return Value.FINITE
    return max(Value.FINITE, classify(value))
