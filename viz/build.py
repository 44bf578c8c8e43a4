"""From the IR, and a plan laid over it, to a scene."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from shearfx.dims import OPEN, Atom, leaves
from shearfx.graph import Graph, Group, module_path, module_paths, natural, source_of
from shearfx.pruning_plan import PruningPlan, check_terms, masks_of
from shearfx.rules.registry import Dims, Record
from shearfx.viz.folding import fold
from shearfx.viz.naming import named
from shearfx.viz.palette import colors_of
from shearfx.viz.scene import Box, GroupInfo, Item, Op, PinInfo, Scene, TensorInfo
from shearfx.viz.terms import Terms

__all__ = ["scene_of"]


def scene_of(graph: Graph, plan: PruningPlan | None = None) -> Scene:
    """Describe what there is to draw of an analysed model.

    Args:
        graph: the model.
        plan: laid over it: how much of each group and tensor stays.

    Raises:
        PlanError: the plan was not made for this model.
    """
    if plan is not None:
        plan.check_fits({name: t.shape for t in graph.tensors.values() for name in t.aliases})
        masks_of(graph, plan)
        check_terms(graph, plan)
    return _Builder(graph, plan).scene()


@dataclass(frozen=True, slots=True)
class _Placed:
    """An operator with the modules around it, outermost first, and the line of code that called it."""

    op: Op
    modules: tuple[tuple[str, str, str], ...]
    """Key of the call, path, class."""
    line: str


class _Builder:
    def __init__(self, graph: Graph, plan: PruningPlan | None) -> None:
        self.graph, self.plan = graph, plan
        self.terms = Terms(graph)
        self.nodes = {node.name: node for node in graph.records}
        self.pins: dict[tuple[str, str, str], int] = {}
        self.composed = {c.path: c.kind for c in graph.composed}
        self.modules = {path for node in graph.records for path in module_paths(node)}
        groups = {g.atom: g for g in graph.groups}
        self.groups_at: dict[fx.Node, dict[Atom, Group]] = {}
        for found in graph.node_groups:
            if found.atom in groups:
                for node in found.nodes:
                    self.groups_at.setdefault(node, {})[found.atom] = groups[found.atom]
        self.ids = itertools.count()

    def scene(self) -> Scene:
        placed = [self._placed(node, record) for node, record in self.graph.records.items() if self._drawn(node)]
        name = self.graph.traced.model_class.rpartition(".")[2]
        root = Box("root", "module", name, "", self.graph.traced.model_class, tuple(self._nest(placed, 0, "")), True)
        groups = {g.name: self._group(g) for g in self.graph.groups}
        pins = tuple(self._pin(*key) for key in self.pins)
        tensors = {t.name: self._tensor(t.name) for t in self.graph.tensors.values()}
        known = {g.name: (g.kind, g.size, g.certificate) for g in groups.values()}
        root = fold(root, known, {t.name: t.dims for t in tensors.values()})
        planned = self.plan is not None
        scene = Scene(name, root, groups, pins, tensors, self._summary(), planned)
        return colors_of(named(scene))

    def _drawn(self, node: fx.Node) -> bool:
        """Sizes are no tensors, and parameters are drawn at the operators that read them."""
        if node.op == "output":
            return True
        return self.graph.records[node].dims is not None and node not in self.graph.traced.tensors

    # -- operators -----------------------------------------------------------------------------------

    def _placed(self, node: fx.Node, record: Record) -> _Placed:
        stack = (node.meta.get("nn_module_stack") or {}).items()
        modules = tuple(
            (key, path, _class_name(entry[1]))
            for (key, entry), path in zip(stack, module_paths(node), strict=True)
            if path and path in self.modules and entry[1] is not None and not path.startswith("_empty")
        )
        return _Placed(self._op(node, record), modules, source_of(node).partition(" ")[2])

    def _op(self, node: fx.Node, record: Record) -> Op:
        read = [n for n in node.all_input_nodes if n in self.graph.traced.tensors]
        kind = {"placeholder": "input", "output": "output"}.get(node.op, "operator")
        shown = _each(record.dims)
        held = node.all_input_nodes if kind == "output" else (node, *read)
        dims = [d for n in held for one in _each(self.graph.records[n].dims) for d in one]
        atoms = list(dict.fromkeys(a for d in dims for a in leaves(self.graph.solver.resolve(d))))
        members = {a: g for n in (node, *read) for a, g in self.groups_at.get(n, {}).items()}
        ordered = [*atoms, *sorted(members, key=lambda a: natural(members[a].name))]  # first as the dims have them
        groups = {a: members[a] for a in ordered if a in members}
        return Op(
            name=node.name,
            kind=kind,
            title=node.name if kind == "input" else _title(node),
            dims="; ".join(map(self.terms.dims, shown)),
            inputs=tuple(dict.fromkeys(self._origin(n, node).name for n in node.all_input_nodes if self._drawn(n))),
            tensors=tuple(dict.fromkeys(self.graph.traced.tensors[n].name for n in read)),
            groups=tuple(g.name for g in groups.values()),
            pins=tuple(dict.fromkeys(self._pin_of(a) for a in atoms if a.pin is not None)),
            fixed=bool(atoms) and all(a.pin is not None for a in atoms),
            source=source_of(node),
        )

    def _origin(self, node: fx.Node, reader: fx.Node) -> fx.Node:
        """What a cast that changes nothing reads, for readers outside its module: they do not depend on that."""
        while _changes_nothing(node) and not _inside(module_path(reader), module_path(node)):
            source = node.args[0]
            if not isinstance(source, fx.Node) or not self._drawn(source):
                break
            node = source
        return node

    def _pin_of(self, atom: Atom) -> int:
        pin = atom.pin if isinstance(atom.size, int) else OPEN  # whatever else is said of an open size, it is open
        assert pin is not None
        key = (self.terms.term(atom), pin.reason, pin.node)
        return self.pins.setdefault(key, len(self.pins))

    def _pin(self, dims: str, reason: str, node: str) -> PinInfo:
        return PinInfo(dims, reason, node, source_of(self.nodes[node]) if node in self.nodes else "")

    # -- nesting -------------------------------------------------------------------------------------

    def _nest(self, placed: Sequence[_Placed], depth: int, parent: str) -> Iterator[Item]:
        def key(one: _Placed) -> tuple[str, ...]:
            if len(one.modules) > depth:
                return ("module", *one.modules[depth])
            return ("line", one.line) if one.line and one.op.kind == "operator" else ("alone", one.op.name)

        for (kind, *rest), found in itertools.groupby(placed, key):
            run = list(found)
            if kind == "module":
                yield self._module(run, depth, parent, *rest[1:])
            elif len(run) == 1:
                yield run[0].op
            else:
                ops = tuple(one.op for one in run)
                yield Box(self._id(), "line", self._line_title(run, parent), parent, rest[0], ops, False)

    def _module(self, run: Sequence[_Placed], depth: int, parent: str, path: str, detail: str) -> Box:
        children = tuple(self._nest(run, depth + 1, path))
        title = path.removeprefix(f"{parent}.") if parent else path
        kind = self.composed.get(path, "")
        if kind == "lora":
            return Box(self._id(), "composed", title, path, "LoRA on a linear layer", children, False)
        if len(children) == 1 and isinstance(children[0], Box) and children[0].kind != "line":
            only = children[0]
            return Box(only.id, only.kind, f"{title}.{only.title}", only.path, only.detail, only.children, only.open)
        matrices = sum(any(len(self.graph.tensors[t].shape) > 1 for t in one.op.tensors) for one in run)
        inside = any(isinstance(c, Box) and c.kind != "line" for c in children)
        return Box(self._id(), "module", title, path, detail, children, inside or matrices > 1)

    def _id(self) -> str:
        return f"b{next(self.ids)}"

    def _line_title(self, run: Sequence[_Placed], parent: str) -> str:
        """What the line calls, where that is no submodule; else its operators."""
        titles = list(dict.fromkeys(one.op.title for one in run))
        if len(titles) > 3:
            for name in re.findall(r"([A-Za-z_][\w.]*)\(", run[0].line.partition(": ")[2]):
                path = name.removeprefix("self.")
                if (f"{parent}.{path}" if parent else path) not in self.modules:
                    return str(name.rpartition(".")[2])
        return " · ".join(titles[:3]) + (" …" if len(titles) > 3 else "")

    # -- what panels say -----------------------------------------------------------------------------

    def _group(self, group: Group) -> GroupInfo:
        cuts = {c.name: c for c in self.plan.cuts} if self.plan else {}
        kept = None if self.plan is None else len(cuts[group.name].kept) if group.name in cuts else group.size
        return GroupInfo(
            name=group.name, label="", kind=group.kind, size=group.size,
            certificate=group.certificate, reason=group.reason,
            source=source_of(self.nodes[group.node]) if group.node in self.nodes else group.node, params=group.params,
            members=tuple((m.name, m.dim, self.terms.term(m.term)) for m in group.members), kept=kept,
        )  # fmt: skip

    def _tensor(self, name: str) -> TensorInfo:
        tensor = self.graph.tensors[name]
        dims = self.graph.tensor_dims.get(name)
        after = self.plan.shapes_after().get(name, tensor.shape) if self.plan else tensor.shape
        return TensorInfo(name, tensor.kind, self.terms.dims(dims) if dims is not None else "", tensor.shape, after)

    def _summary(self) -> str:
        total = self.graph.total_params
        text = f"{total:,} parameters; {self.graph.coverage:.1%} in groups that can be cut"
        if self.plan is not None:
            after = self.plan.shapes_after()
            left = sum(math.prod(after[t.name]) for t in self.graph.parameters())
            text += f"; the plan removes {1 - left / max(total, 1):.1%}, {left:,} stay"
        return text


def _each(dims: object) -> list[Dims]:
    if dims is None:
        return []
    return [dims] if isinstance(dims, tuple) else [d for d in dims if d is not None]  # type: ignore[attr-defined]


def _changes_nothing(node: fx.Node) -> bool:
    """Whether a node is a cast to the dtype that its operand has already; tracing lets others read its result."""
    packet = getattr(node.target, "overloadpacket", None)
    return packet is torch.ops.aten.to and node.meta["val"].dtype == node.args[0].meta["val"].dtype  # type: ignore[union-attr]  # a cast has an operand


def _inside(path: str, module: str) -> bool:
    return path == module or path.startswith(f"{module}.") or not module


def _title(node: fx.Node) -> str:
    if node.op == "output":
        return "output"
    packet = getattr(node.target, "overloadpacket", node.target)
    return str(getattr(packet, "__name__", packet))


def _class_name(kind: object) -> str:
    return (kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))).rpartition(".")[2]
