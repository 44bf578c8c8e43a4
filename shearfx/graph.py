"""The IR: a traced graph, what the algebra knows of it, and the groups of structures that can be cut."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from shearfx.dims import Atom, Dim, Pin, Prod, Solver, Sum
from shearfx.displayed import Displayed
from shearfx.rules.registry import Dims, Record
from shearfx.tracing import Tensor, Traced

CERTIFICATES = ("exact", "compensated", "approximate")
"""From best to worst; what is not even approximate is pinned."""


@dataclass(frozen=True, slots=True)
class Composed:
    """Several operators that count as one: a LoRA linear, or a root-mean-square norm written out.

    For a norm, ``weight`` is multiplied onto the result as ``offset + weight``, ``epsilon`` is added to the mean of
    squares at the node of that name, and ``over`` is the dim it normalises.
    """

    kind: str
    path: str
    nodes: tuple[fx.Node, ...]
    weight: str | None = None
    offset: float = 0.0
    mean: fx.Node | None = None
    epsilon: fx.Node | None = None
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class Pinned:
    """A dimension that may not be cut, and why."""

    dims: Dim
    reason: str
    node: str
    source: str
    """Where in the model's code the node comes from: module path and line."""


@dataclass(frozen=True)
class Member:
    """The slices of one dim of one parameter or buffer that belong to a group."""

    name: str
    dim: int
    term: Dim
    atom: Atom

    @functools.cached_property
    def indices(self) -> torch.Tensor:
        """LongTensor ``[structures, slices per structure]``: row ``i`` goes with structure ``i``.

        Where a term is a product that mentions the group twice, a slice is in the rows of both its structures.
        """
        if _squared(self.term, self.atom):
            each = ~torch.eye(self.atom.size, dtype=torch.bool)
            return torch.stack([(~kept_mask(self.term, {self.atom: keep})).nonzero().flatten() for keep in each])
        where = coordinates(self.term, self.atom)
        order = torch.argsort(where, stable=True)
        return order[where[order] >= 0].reshape(self.atom.size, -1)


@dataclass(frozen=True)
class Group:
    """A pruning group: one atom of the algebra. Each of its ``size`` indices is a structure that can be removed."""

    name: str
    kind: str
    size: int
    certificate: str
    members: tuple[Member, ...]
    params: int
    """Parameters that one structure takes along when nothing else is cut."""
    atom: Atom
    reason: str = ""
    """Why the certificate is not ``exact``."""
    node: str = ""
    modules: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Group({self.name!r}, {self.kind}, size={self.size}, {self.certificate}, params={self.params})"


@dataclass(frozen=True)
class NodeGroup:
    """The nodes whose tensors mention an atom. Two node groups overlap where they share a node."""

    atom: Atom
    nodes: tuple[fx.Node, ...]


@dataclass
class Graph(Displayed):
    """A traced model under analysis. Passes fill it in; see ``shearfx.passes``."""

    traced: Traced
    solver: Solver = field(default_factory=Solver)
    records: dict[fx.Node, Record] = field(default_factory=dict)
    composed: list[Composed] = field(default_factory=list)
    node_groups: list[NodeGroup] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    pins: list[Pinned] = field(default_factory=list)
    tensor_dims: dict[str, Dims] = field(default_factory=dict)
    """Resolved dims of each parameter, buffer and constant that the graph reads, by (first) name."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time of each pass."""

    # -- tensors -----------------------------------------------------------------------------------

    @functools.cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Every parameter, buffer and constant of the model by its first name, reached by the trace or not."""
        return {t.name: t for t in (*self.traced.tensors.values(), *self.traced.unused)}

    def parameters(self) -> list[Tensor]:
        """The unique parameters."""
        return [t for t in self.tensors.values() if t.kind == "parameter"]

    @property
    def total_params(self) -> int:
        """Number of unique parameters."""
        return sum(math.prod(t.shape) for t in self.parameters())

    # -- coverage ----------------------------------------------------------------------------------

    @property
    def coverage(self) -> float:
        """Share of all unique parameters that exact and compensated groups reach."""
        return self._coverage(("exact", "compensated"))

    @property
    def coverage_exact(self) -> float:
        """Share of all unique parameters that exact groups reach."""
        return self._coverage(("exact",))

    def _coverage(self, certificates: tuple[str, ...]) -> float:
        atoms = {id(g.atom) for g in self.groups if g.certificate in certificates}
        reached = 0.0
        for tensor in self.parameters():
            missed = 1.0
            for dim in self.tensor_dims.get(tensor.name, ()):
                missed *= 1 - _share(dim, atoms)
            reached += math.prod(tensor.shape) * (1 - missed)
        return reached / max(self.total_params, 1)

    # -- sizes -------------------------------------------------------------------------------------

    def source(self, node: fx.Node | str) -> str:
        """Where a node comes from: module path, and the line of the model's code."""
        if isinstance(node, str):
            node = next((n for n in self.traced.graph.nodes if n.name == node), node)
        return "" if isinstance(node, str) else source_of(node)

    def to_text(self) -> str:
        """The IR as text: a line a node with its dims, then groups and pins."""
        names = {g.atom: f"<{g.name}>" for g in self.groups}
        lines = []
        for node, record in self.records.items():
            dims = record.dims if isinstance(record.dims, list) else [record.dims]
            shown = ", ".join(
                "(" + ", ".join(show(self.solver.resolve(d), names) for d in one) + ")"
                for one in dims
                if one is not None
            )
            lines.append(f"{node.name} = {getattr(node.target, '__name__', node.target)}{node.args} : {shown}")
        lines += [f"group {g.name} kind={g.kind} size={g.size} {g.certificate}" for g in self.groups]
        lines += [f"pin {show(p.dims, names)}: {p.reason} [{p.node}]" for p in self.pins]
        return "\n".join(lines)


def module_path(node: fx.Node) -> str:
    """Path of the module whose code made the node."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values()]
    return _dotted(paths[-1]) if paths else ""


def module_paths(node: fx.Node) -> list[str]:
    """Paths of all the modules around the node, outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    return [_dotted(entry[0]) for entry in stack.values()]


def module_kinds(node: fx.Node) -> dict[str, str]:
    """The classes of the modules around the node, by path, outermost first."""
    stack = (node.meta.get("nn_module_stack") or {}).values()
    return {path: str(entry[1]) for path, entry in zip(module_paths(node), stack, strict=True)}


def _dotted(path: str) -> str:
    # a module called twice appears as ``path@1``; items of containers as ``L['self'].layers.0``
    return re.sub(r"@\d+$", "", re.sub(r"^L\['self'\]\.?", "", path))


def source_of(node: fx.Node) -> str:
    """Module path and innermost line of code of a node."""
    trace = node.meta.get("stack_trace") or ""
    files = re.findall(r'File "([^"]+)", line (\d+), in (\S+)\n\s*(.*)', trace)
    line = f"{files[-1][0]}:{files[-1][1]}: {files[-1][3]}" if files else ""
    return " ".join(part for part in (module_path(node), line) if part)


def show(dim: Dim, names: Mapping[Atom, str] | None = None) -> str:
    """A term as text, atoms by name where they have one."""
    if isinstance(dim, Atom):
        return (names or {}).get(dim) or (f"{dim.size}!" if dim.pin else f"a{dim.serial}:{dim.size}")
    if isinstance(dim, Prod):
        inner = (f"({show(f, names)})" if isinstance(f, Sum) else show(f, names) for f in dim.factors)
        return " * ".join(inner) or "1"
    assert isinstance(dim, Sum)
    return " + ".join(show(p, names) for p in dim.parts) or "0"


# -- terms as index arithmetic -------------------------------------------------------------------------


def coordinates(dim: Dim, atom: Atom) -> torch.Tensor:
    """For each flat index of a term, the index along ``atom`` it has; -1 where it has none. Shape ``[size]``.

    Where a product mentions the atom twice, the first mention counts.
    """
    if dim is atom:
        return torch.arange(atom.size)
    if isinstance(dim, Prod):
        for i, factor in enumerate(dim.factors):
            if _mentions(factor, atom):
                outer = math.prod(f.size for f in dim.factors[:i])
                inner = math.prod(f.size for f in dim.factors[i + 1 :])
                return coordinates(factor, atom).repeat_interleave(inner).repeat(outer)
    if isinstance(dim, Sum):
        return torch.cat([coordinates(part, atom) for part in dim.parts])
    return torch.full((dim.size,), -1)


def _squared(dim: Dim, atom: Atom) -> bool:
    """Whether some product in a term mentions an atom more than once, so that an index has two coordinates."""
    if isinstance(dim, Prod):
        return sum(_mentions(f, atom) for f in dim.factors) > 1 or any(_squared(f, atom) for f in dim.factors)
    return isinstance(dim, Sum) and any(_squared(part, atom) for part in dim.parts)


def kept_mask(dim: Dim, masks: Mapping[Atom, torch.Tensor]) -> torch.Tensor:
    """Which flat indices of a term stay, given for some atoms which of their indices stay. Bool ``[size]``."""
    if isinstance(dim, Atom):
        mask = masks.get(dim)
        return torch.ones(dim.size, dtype=torch.bool) if mask is None else mask
    if isinstance(dim, Prod):
        result = torch.ones(1, dtype=torch.bool)
        for factor in dim.factors:
            result = (result[:, None] & kept_mask(factor, masks)[None, :]).reshape(-1)
        return result
    assert isinstance(dim, Sum)
    parts = [kept_mask(part, masks) for part in dim.parts]
    return torch.cat(parts) if parts else torch.ones(0, dtype=torch.bool)


def new_size(dim: Dim, sizes: Mapping[Atom, int]) -> Any:
    """The size of a resolved term after atoms have changed size."""
    if isinstance(dim, Atom):
        return sizes.get(dim, dim.size)
    if isinstance(dim, Prod):
        result = 1
        for factor in dim.factors:
            result = result * new_size(factor, sizes)
        return result
    assert isinstance(dim, Sum)
    return sum(new_size(part, sizes) for part in dim.parts)


def mentions(dims: Iterable[Dim]) -> set[Atom]:
    """The atoms that resolved terms mention."""
    from shearfx.dims import leaves

    return {atom for dim in dims for atom in leaves(dim)}


def _mentions(dim: Dim, atom: Atom) -> bool:
    return atom in mentions((dim,))


def _share(dim: Dim, atoms: set[int]) -> float:
    """Share of a dim's indices that can go by cutting some of these atoms."""
    if isinstance(dim, Atom):
        return float(id(dim) in atoms)
    if isinstance(dim, Prod):
        return 1 - math.prod(1 - _share(f, atoms) for f in dim.factors)
    assert isinstance(dim, Sum)
    return sum(_share(p, atoms) * p.size for p in dim.parts) / dim.size if dim.size else 0.0


def natural(name: str) -> tuple[Any, ...]:
    """Sort key under which ``layers.10`` comes after ``layers.9``."""
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", name))


Resolver = Callable[[Dim], Dim]
__all__ = ["CERTIFICATES", "Composed", "Graph", "Group", "Member", "NodeGroup", "Pin", "Pinned"]
