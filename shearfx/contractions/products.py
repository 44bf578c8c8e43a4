"""Products of what a model computes with its weights, wherever in a graph: which operand is which, and which numbers of
both are one feature.

A rule says of its operator which dims are summed over. Stated once more, of fresh dims, it says by which axes of which
operand: of a linear layer, of a matrix product with a parameter of no module, of fused experts, all alike.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor, fx

from shearfx.adapters import base_name
from shearfx.contractions.layouts import Layout, factors, layout
from shearfx.contractions.picks import picked_along, picks
from shearfx.dims import Atom, Dim, Size, Solver
from shearfx.graph import Graph, coordinates, mentions
from shearfx.routed_products import PRODUCT
from shearfx.rules import RULES, Site
from shearfx.rules.registry import Exit, Record, is_tensor, shape_of
from shearfx.values import Value

aten = torch.ops.aten

Named: TypeAlias = Callable[[fx.Node], frozenset[str]]
"""From a node that is made of no data to the names of the parameters and buffers that it is made of."""


@dataclass(frozen=True, eq=False)
class Product:
    """One activation that one weight is multiplied with and summed up over features.

    *Instances* are parts of both that have nothing to do with each other: groups of a convolution, matrices of a batch,
    experts. Where data chooses which rows go with which (``chosen``), they are those of the weight.
    """

    key: str
    """The same for the same product in another trace of the model."""
    node: fx.Node
    activation: fx.Node
    weight: fx.Node
    exits: tuple[int, ...]
    """Places among the exits of the node's record."""
    rows: Layout
    """Of the activation: ``[instances, rows, features]``."""
    weights: Layout
    """Of the weight: ``[instances, outputs, features]``."""
    featured: tuple[tuple[int, tuple[int, ...]], ...]
    """Axes of the activation that have features, and at which axes of ``grid`` their factors are."""
    grid: tuple[int, ...]
    """Sizes of the instances (none, where they are chosen), then of the features, one for each factor."""
    inner: int
    """How many axes of ``grid`` are features."""
    axes: tuple[int, ...]
    """Of the weight, which have features."""
    made_of: frozenset[str]
    """Names of the parameters and buffers that the weight is made of."""
    count: int
    """Of instances."""
    chosen: fx.Node | None = None
    """Says for each row of the activation which instance it goes with, or up to which row each is read."""

    @property
    def features(self) -> int:
        """Of one instance."""
        return math.prod(self.grid[len(self.grid) - self.inner :])

    def where(self, graph: Graph, atom: Atom) -> Tensor:
        """LongTensor ``[instances, features]`` (one instance for all where they are chosen): the structure of a group
        that each feature goes with, -1 where it has none."""
        dims = graph.records[self.activation].dims
        assert isinstance(dims, tuple)
        found = torch.full(self.grid, -1)
        for axis, places in self.featured:
            if atom in mentions((dims[axis],)):
                shape = [size if i in places else 1 for i, size in enumerate(self.grid)]
                here = coordinates(dims[axis], atom).reshape(shape).expand(self.grid)
                found = torch.where(found >= 0, found, here)
        return found.reshape(-1, self.features)

    def instances(self, rows: Tensor, chosen: Tensor | None) -> Iterator[tuple[int, Tensor]]:
        """What each instance reads: its number and rows ``[rows, features]``.

        Args:
            rows: the activation laid out.
            chosen: the value of the node of that name.
        """
        if chosen is None:
            yield from enumerate(rows)
            return
        if self.node.target is PRODUCT:
            chosen = torch.bucketize(torch.arange(len(rows), device=chosen.device), chosen, right=True)
        for instance in chosen.unique().tolist():
            if instance < self.count:  # rows beyond the last are read by none
                yield instance, rows[chosen == instance].flatten(0, 1)


def _sources(graph: Graph) -> Named:
    known: dict[fx.Node, frozenset[str]] = {}
    for node, record in graph.records.items():
        tensor = graph.traced.tensors.get(node)
        if tensor is not None:
            known[node] = frozenset((tensor.name,))
        elif not record.data:
            known[node] = frozenset().union(*(known.get(one, frozenset()) for one in node.all_input_nodes))
    return lambda node: known.get(node, frozenset())


def products(graph: Graph, wanted: Callable[[Dim, str], bool]) -> list[Product]:
    """The products of a graph over some of its dims, in the order in which they run.

    Args:
        graph: analysed.
        wanted: of what is summed over, resolved, and the key.
    """
    named, plain, parameters = _sources(graph), _uncontracted(graph), {tensor.name for tensor in graph.parameters()}
    counts: dict[str, int] = {}
    found = []
    for node, record in graph.records.items():
        pairs: dict[tuple[int, int], list[int]] = {}
        for number, exit_ in enumerate(record.exits):
            for pair in _pairs(graph, record, exit_, plain, named, parameters):
                pairs.setdefault(pair, []).append(number)
        for (activation, weight), exits in pairs.items():
            names = sorted(base_name(name) or name for name in named(record.operands[weight]))
            of = " ".join(names) + f" {_name_of(node)}"
            counts[of] = counts.get(of, 0) + 1
            key = f"{of} {counts[of]}"
            if names and any(wanted(graph.solver.resolve(record.exits[i].dim), key) for i in exits):
                product = _product(graph, node, key, (activation, weight), exits, named)
                if product is not None:
                    found.append(product)
    return found


def _name_of(node: fx.Node) -> str:
    return str(getattr(node.target, "overloadpacket", node.target))


def _uncontracted(graph: Graph) -> set[fx.Node]:
    """Nodes made of weights alone, and without a sum of products."""
    found: set[fx.Node] = set()
    for node, record in graph.records.items():
        multiplied = record.exits and len(record.operands) > 1
        made = all(one in found for one in node.all_input_nodes if is_tensor(one))
        if made and not multiplied and not record.data:
            found.add(node)
    return found


def _pairs(
    graph: Graph, record: Record, exit_: Exit, plain: set[fx.Node], named: Named, parameters: set[str]
) -> Iterator[tuple[int, int]]:
    """The operands that are multiplied where an operator sums over a dim: one that follows the data, and weights."""
    having = range(len(record.operands)) if exit_.carriers is None else exit_.carriers
    if exit_.certificate != "exact" or len(having) < 2:
        return
    data = [i for i in having if graph.records[record.operands[i]].data]
    if not data:  # made of positions, say, as is what weights make of them
        data = [i for i in having if record.operands[i] not in plain]
    if not data:
        data = [i for i in having if not named(record.operands[i]) & parameters]
    weights = [i for i in having if i not in data]
    if len(data) != 1 or any(not _is_floating(record.operands[i]) for i in having):
        return

    def added(zero: Sequence[int]) -> Value:
        return exit_.value([Value.ZERO if i in zero else Value.FINITE for i in range(len(record.operands))])

    if added(data) is Value.ZERO and added(weights) is Value.ZERO:
        alone = len(weights) == 1 or not any(added((i,)) is Value.ZERO for i in weights)
        yield from ((data[0], i) for i in weights if alone)


def _is_floating(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _product(
    graph: Graph,
    node: fx.Node,
    key: str,
    pair: tuple[int, int],
    exits: Sequence[int],
    named: Named,
) -> Product | None:
    """A product laid out; None where features of one operand are none of the other."""
    activation, weight = (graph.records[node].operands[i] for i in pair)
    stated = _stated(graph, node)
    if stated is None:
        return None
    solver, record, dims = stated
    left, right = (factors(solver, dims[one]) for one in (activation, weight))
    lefts, rights = (list(itertools.chain(*side)) if side is not None else [] for side in (left, right))
    if left is None or right is None or len({*lefts}) < len(lefts) or len({*rights}) < len(rights):
        return None
    summed = {atom for i in exits for atom in solver.atoms(record.exits[i].dim)}
    count: Size = None
    features = [atom for atom in lefts if atom in summed and atom in rights]
    shared = [atom for atom in lefts if atom not in summed and atom in rights]
    foreign = [
        axis for axis, of in enumerate(right)
        if any(atom in shared for atom in of) and _is_foreign(graph, weight, axis, named)
    ]  # fmt: skip
    instances = own = [atom for atom in shared if not any(atom in right[axis] for axis in foreign)]
    picked, first = picked_along(graph, weight, foreign), tuple(foreign)
    chosen: fx.Node | None = None
    if node.target is PRODUCT:
        (instances,), (own,) = ([left[0]], [right[0]])
        chosen, count = node.args[2], shape_of(weight.meta["val"])[0]  # type: ignore[assignment]
    elif picked is not None:
        if own or len(foreign) != 1 or len(right[foreign[0]]) != 1:
            return None
        instances = own = list(right[foreign[0]])
        first, (chosen, count) = (), picked
    elif next(picks(graph, weight), None) is not None:
        return None
    inside = {*features, *(() if chosen is not None else instances)}
    grid = [*(() if chosen is not None else instances), *features]
    featured = [axis for axis, of in enumerate(left) if any(atom in features for atom in of)]
    if not features or any(atom not in inside for axis in featured for atom in left[axis]):
        return None
    if any(not isinstance(size, int) for size in (*(atom.size for atom in grid), 0 if chosen is None else count)):
        return None
    return Product(
        key, node, activation, weight, tuple(exits),
        layout(left, instances, features), layout(right, own, features, first),
        tuple((axis, tuple(grid.index(atom) for atom in left[axis])) for axis in featured),
        tuple(atom.size for atom in grid), len(features),
        tuple(axis for axis, of in enumerate(right) if any(atom in features for atom in of)),
        named(weight), math.prod(atom.size for atom in instances) if chosen is None else count, chosen,
    )  # fmt: skip


def _stated(graph: Graph, node: fx.Node) -> tuple[Solver, Record, Mapping[fx.Node, tuple[Dim, ...]]] | None:
    """What the operator's rule says of operands of which nothing is known but their sizes."""
    solver = Solver()
    dims = {
        one: tuple(solver.fresh(size) for size in shape_of(one.meta["val"]))
        for one in node.all_input_nodes if is_tensor(one)
    }  # fmt: skip
    records = {one: replace(graph.records[one], dims=dims.get(one)) for one in node.all_input_nodes}
    site = Site(node, solver, records)
    RULES[node.target].function(site)
    return (solver, site.record, dims) if len(site.record.exits) == len(graph.records[node].exits) else None


def _is_foreign(graph: Graph, weight: fx.Node, axis: int, named: Named) -> bool:
    """Whether no parameter that a weight is made of has one of its axes: it was picked, or stretched, to that size."""
    dims = graph.records[weight].dims
    assert isinstance(dims, tuple)
    own = mentions(dim for name in named(weight) for dim in graph.tensor_dims.get(name, ()))
    return not mentions((dims[axis],)) & own
