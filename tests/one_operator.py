"""A graph of one operator: what its rule says, and what its rewriting does, against running it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from shearfx import tracing
from shearfx.dims import Atom
from shearfx.graph import Graph, coordinates, kept_mask, mentions
from shearfx.passes.infer import InferDims
from shearfx.passes.partition import _carriers
from shearfx.passes.subnetwork import _Rewriter
from shearfx.rules.registry import Dims, Record, Result
from shearfx.values import Value, classify, join

Call = tuple[Any, tuple[Any, ...], dict[str, Any]]
Masks = Mapping[Atom, Tensor]


@dataclass
class OneOperator:
    """One call of an operator under inference; its tensor arguments are free, nothing is pinned from outside."""

    graph: Graph
    node: fx.Node
    inputs: dict[fx.Node, Tensor]

    @classmethod
    def of(cls, call: Call) -> OneOperator:
        """:meth:`infer`, remembered: tests ask for the same call in every example."""
        key = id(call)
        if key not in _INFERRED:
            _INFERRED[key] = call, cls.infer(call)  # the call is kept, so that its id stays its own
        return _INFERRED[key][1]

    @classmethod
    def infer(cls, call: Call) -> OneOperator:
        """Infer the dims of a call ``(operator, args, kwargs)``."""
        target, args, kwargs = call
        graph = fx.Graph()
        inputs: dict[fx.Node, Tensor] = {}
        nodes: dict[int, fx.Node] = {}

        def placeholder(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if id(value) not in nodes:
                node = nodes[id(value)] = graph.placeholder(f"p{len(nodes)}")
                node.meta["val"] = inputs[node] = value
            return nodes[id(value)]

        args, kwargs = pytree.tree_map(placeholder, (args, kwargs))
        node = graph.call_function(target, args, kwargs)
        node.meta["val"] = run(call)
        tensors = {
            n: tracing.Tensor(n.name, (n.name,), "parameter", tuple(v.shape), v.dtype) for n, v in inputs.items()
        }
        spec = pytree.tree_structure(None)
        analysed = Graph(tracing.Traced(graph, tensors, [], {}, {}, spec, {}, "one operator"))
        InferDims().apply(analysed)
        return cls(analysed, node, inputs)

    @property
    def record(self) -> Record:
        return self.graph.records[self.node]

    def dims_of(self, node: fx.Node) -> Dims:
        dims = self.graph.records[node].dims
        assert isinstance(dims, tuple)
        return tuple(map(self.graph.solver.resolve, dims))

    @property
    def results(self) -> list[tuple[Tensor, Dims]]:
        """Each tensor that the operator returns, with its dims."""
        pairs = zip_dims(self.node.meta["val"], self.record.dims)
        return [(value, tuple(map(self.graph.solver.resolve, dims))) for value, dims in pairs]

    @property
    def atoms(self) -> list[Atom]:
        """All atoms that may be cut, in order."""
        dims = [self.dims_of(node) for node in self.inputs] + [dims for _, dims in self.results]
        free = {a for one in dims for a in mentions(one) if a.pin is None and isinstance(a.size, int)}
        return sorted(free, key=lambda a: a.serial)

    # -- cutting, zeroing and running ------------------------------------------------------------------

    def zeroed(self, masks: Masks, operands: Sequence[fx.Node]) -> dict[fx.Node, Tensor]:
        """The inputs, with the removed slices of these operands zeroed."""
        inputs = dict(self.inputs)
        for node in operands:
            for axis, dim in enumerate(self.dims_of(node)):
                removed = (~kept_mask(dim, masks)).nonzero().flatten()
                inputs[node] = inputs[node].index_fill(axis, removed, 0)
        return inputs

    def cut(self, masks: Masks, inputs: Mapping[fx.Node, Tensor]) -> list[Tensor]:
        """Results of the operator, rewritten as subnetwork construction does, on sliced inputs."""
        root, new = nn.Module(), fx.Graph()
        rewriter = _Rewriter(self.graph, masks, root, new)
        copies = {node: new.placeholder(node.name) for node in inputs}
        new.output(rewriter.copy(self.node, copies))
        module = fx.GraphModule(root, new)
        return self._told(module(*(take(value, self.dims_of(node), masks) for node, value in inputs.items())))

    def full(self, inputs: Mapping[fx.Node, Tensor]) -> list[Tensor]:
        """Results of the operator as it stands, in the order of ``results``."""
        args, kwargs = fx.node.map_arg((self.node.args, self.node.kwargs), lambda n: inputs[n])
        return self._told(run((self.node.target, args, kwargs)))

    def _told(self, result: Any) -> list[Tensor]:
        """The tensors that the rule gives dims to."""
        return [value for value, _ in zip_dims(result, self.record.dims)]

    def seen(self, atom: Atom, zeroed: Sequence[fx.Node], having: tuple[int, ...] | None = None) -> list[Value]:
        """The class of each operand where ``atom`` is cut, as certificates see it.

        Args:
            having: the operands that have the dim in question, by place; None: all that mention the atom.
        """
        return [
            Value.ZERO
            if node in zeroed and atom in mentions(self.dims_of(node)) and (having is None or i in having)
            else max(Value.FINITE, classify(self.inputs[node]))
            for i, node in enumerate(self.record.operands)
        ]

    def claimed(self, atom: Atom, zeroed: Sequence[fx.Node]) -> Value:
        """What the rule says of the result's slice at a removed index of ``atom``."""
        record = self.record
        assert record.transfer is not None
        carriers = _carriers(self.graph, record)
        if atom in carriers:
            return join(record.transfer(self.seen(atom, zeroed, having)) for having in carriers[atom])
        values = self.seen(atom, zeroed)
        if record.sources is not None:
            values = [values[i] for i in record.sources(atom)] or values
        return record.transfer(values)

    def exits(self, atom: Atom, zeroed: Sequence[fx.Node]) -> str:
        """The best certificate that the operator's exits leave to ``atom``: exact, compensated or approximate."""
        worst = "exact"
        for exit_ in self.record.exits:
            if atom in self.graph.solver.atoms(exit_.dim):
                zero = exit_.value(self.seen(atom, zeroed, exit_.carriers)) is Value.ZERO
                if exit_.certificate == "approximate" or not zero:
                    return "approximate"
                worst = exit_.certificate
        return worst


_INFERRED: dict[int, tuple[Call, OneOperator]] = {}


def zip_dims(result: Any, dims: Result) -> list[tuple[Tensor, Dims]]:
    """Each tensor of a result that its rule gives dims to, with them."""
    if isinstance(dims, tuple):
        return [(result, dims)]
    return [(value, d) for value, d in zip(result, dims or (), strict=True) if d is not None]


def run(call: Call) -> Any:
    """Call an operator."""
    target, args, kwargs = call
    return target(*args, **kwargs)


def take(value: Tensor, dims: Dims, masks: Masks) -> Tensor:
    """A tensor at the kept indices of its dims."""
    for axis, dim in enumerate(dims):
        value = value.index_select(axis, kept_mask(dim, masks).nonzero().flatten())
    return value


def where(dims: Dims, atom: Atom) -> Tensor | None:
    """Shape of the tensor: each element's index along ``atom``. None if no dim, or more than one, mentions it."""
    axes = [axis for axis, dim in enumerate(dims) if atom in mentions((dim,))]
    if len(axes) != 1:
        return None
    along = coordinates(dims[axes[0]], atom)
    shape = [dim.size for dim in dims]
    return along.reshape([-1 if i == axes[0] else 1 for i in range(len(dims))]).expand(shape)


def contains(claimed: Value, actual: Value) -> bool:
    """Whether every number of class ``actual`` is of class ``claimed``."""
    if actual is claimed or claimed is Value.UNKNOWN:
        return True
    if claimed is Value.FINITE:
        return actual <= Value.FINITE
    if claimed is Value.MASKED:
        return actual <= Value.MASKED
    return claimed is Value.NONNEGATIVE and actual in (Value.ZERO, Value.POSITIVE)
