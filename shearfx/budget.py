"""What cutting saves, in parameters, operations or time: sums of products of the sizes of dims.

A parameter holds as many numbers as the product of its dims, and a dim is a term over atoms, so what a cut saves
depends on what else was cut: the rows of a query projection are ``heads * group * (r + r)``, three groups meet there.
Costs are therefore never added up; they are read off the terms at the sizes of the moment.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch

from shearfx.dims import Atom, Dim, Prod, Sum
from shearfx.errors import PlanError, message
from shearfx.graph import Graph, Group, mentions, new_size
from shearfx.rules.registry import Record
from shearfx.running_time import FEMTOSECONDS, Currency, RunningTime, unit_name

aten = torch.ops.aten

UNKNOWN_SIZE = 16
"""Indices of an open dimension that follows the data rather than an input (tokens that reach an expert)."""


@dataclass(frozen=True, slots=True)
class Product:
    """``factor`` times the sizes of ``dims``: the numbers in a parameter, or the operations of a contraction."""

    name: str
    dims: tuple[Dim, ...]
    factor: int = 1


class Budget:
    """The cost of a model at the sizes its atoms have at the moment.

    ``sizes`` holds the sizes of the atoms that were cut and of the open dims; the others have their own.
    """

    def __init__(self, products: Iterable[Product], sizes: Mapping[Atom, int] | None = None) -> None:
        self.sizes: dict[Atom, int] = dict(sizes or {})
        self.products = list(products)
        self.total = sum(map(self._value, self.products))
        self._of: dict[Atom, list[int]] = {}
        for i, product in enumerate(self.products):
            for atom in mentions(product.dims):
                self._of.setdefault(atom, []).append(i)

    def touched(self, atoms: Iterable[Atom]) -> list[int]:
        """Which products mention one of the atoms."""
        return sorted({i for atom in atoms for i in self._of.get(atom, ())})

    def cost(self, products: Iterable[int], sizes: Mapping[Atom, int] | None = None) -> int:
        """What these products cost, were the atoms in ``sizes`` of these sizes."""
        if not sizes:
            return sum(self._value(self.products[i]) for i in products)
        before = {atom: self.sizes.get(atom) for atom in sizes}
        self.sizes.update(sizes)
        try:
            return sum(self._value(self.products[i]) for i in products)
        finally:
            for atom, size in before.items():
                if size is None:
                    del self.sizes[atom]
                else:
                    self.sizes[atom] = size

    def degree(self, products: Iterable[int], atoms: set[Atom]) -> int:
        """The highest degree that one of the products has in the atoms; one means that savings are proportional."""
        return max((sum(degree(d, atoms) for d in self.products[i].dims) for i in products), default=0)

    def _value(self, product: Product) -> int:
        value = product.factor
        for dim in product.dims:
            value *= new_size(dim, self.sizes)
        return int(value)


def degree(dim: Dim, atoms: set[Atom]) -> int:
    """The degree of a term's size as a polynomial in the sizes of some atoms."""
    if isinstance(dim, Atom):
        return int(dim in atoms)
    if isinstance(dim, Prod):
        return sum(degree(f, atoms) for f in dim.factors)
    assert isinstance(dim, Sum)
    return max((degree(p, atoms) for p in dim.parts), default=0)


def budget_of(graph: Graph, unit: Currency | RunningTime, groups: Iterable[Group]) -> Budget:
    """The budget that counts a unit; of structures, those of ``groups``.

    Raises:
        PlanError: there is no such unit.
    """
    if isinstance(unit, RunningTime):
        return time_budget(graph, unit)
    if unit == "structures":
        return structure_budget(groups)
    if unit == "params":
        return parameter_budget(graph)
    if unit == "flops":
        return operation_budget(graph)
    todo = f"choose one of {get_args(Currency)}, or pass what shearfx.measure_time found"
    raise PlanError(message(f"there is no unit {unit_name(unit)!r}", where="unit=", todo=todo))


# -- parameters ----------------------------------------------------------------------------------------


def parameter_budget(graph: Graph) -> Budget:
    """All unique parameters, those that the trace never reaches included: its total is ``graph.total_params``."""
    return Budget(_parameters(graph))


def _parameters(graph: Graph) -> Iterator[Product]:
    for tensor in graph.parameters():
        dims = graph.tensor_dims.get(tensor.name)
        yield Product(tensor.name, dims) if dims is not None else Product(tensor.name, (), math.prod(tensor.shape))


def structure_budget(groups: Iterable[Group]) -> Budget:
    """One for every structure of some groups: LoRAShear's K counts these."""
    return Budget(Product(group.name, (group.atom,)) for group in groups)


# -- time ----------------------------------------------------------------------------------------------


def time_budget(graph: Graph, time: RunningTime) -> Budget:
    """Femtoseconds of a run: each parameter at its rate, and the rest, which no cut saves.

    Raises:
        PlanError: the measurement is of another model.
    """
    strangers = time.rates.keys() - {tensor.name for tensor in graph.parameters()}
    if strangers:
        what = f"the time was measured of another model: it has a parameter {min(strangers)!r}"
        raise PlanError(message(what, where="unit=", todo="pass unit=shearfx.measure_time(graph, model) of this one"))
    products = [
        dataclasses.replace(product, factor=product.factor * rate)
        for product in _parameters(graph)
        if (rate := round(FEMTOSECONDS * time.rates.get(product.name, 0.0))) > 0
    ]
    rest = round(FEMTOSECONDS * time.total) - Budget(products).total
    return Budget([*products, Product("the rest", (), max(0, rest))])


# -- operations ----------------------------------------------------------------------------------------


def operation_budget(graph: Graph) -> Budget:
    """Floating point operations of the contractions of the traced call: two for each product that is summed up.

    Matrix products, convolutions and attention; element-wise operators, norms and lookups are left out, as is usual.
    Open dims are counted at the sizes of the example call, see :func:`open_sizes`.
    """
    products = [p for record in graph.records.values() for p in _operations(graph, record)]
    sizes = open_sizes(graph)
    atoms = mentions(d for p in products for d in p.dims)
    return Budget(products, {a: _at(a.size, sizes) for a in atoms if not isinstance(a.size, int)})


def open_sizes(graph: Graph) -> dict[str, int]:
    """The size that each open dimension had in the example call, by its symbol in ``graph.traced.call``."""
    found: dict[str, int] = {}
    for node in graph.traced.inputs.values():
        value = node.meta.get("val")
        for size in value.shape if isinstance(value, torch.Tensor) else ():
            if isinstance(size, torch.SymInt) and size.node.has_hint():
                for symbol in size.node.expr.free_symbols:
                    if size.node.expr == symbol:
                        found[str(symbol)] = int(size.node.hint)
    return dict(sorted(found.items()))


def _at(size: Any, known: Mapping[str, int]) -> int:
    values = {s: known.get(str(s), UNKNOWN_SIZE) for s in size.free_symbols}
    return max(1, int(size.subs(values)))


def _operations(graph: Graph, record: Record) -> Iterator[Product]:
    node, out = record.node, record.dims
    if node.op != "call_function" or not isinstance(out, tuple):
        return

    def term(*dims: Dim) -> Product:
        return Product(node.name, tuple(graph.solver.resolve(d) for d in dims), 2)

    def of(at: int) -> tuple[Dim, ...]:
        dims = graph.records[node.args[at]].dims  # type: ignore[index]
        return dims if isinstance(dims, tuple) else ()

    schema = getattr(getattr(node.target, "_schema", None), "name", "")
    if node.target is aten.scaled_dot_product_attention.default:
        query, keys = of(0), of(1)
        yield term(*query[:-1], keys[-2], query[-1])
        yield term(*out, keys[-2])
    elif schema.startswith("aten::conv"):
        transposed = "transpose" in schema or (schema == "aten::convolution" and bool(node.args[6]))
        # each output number sums over the inputs of its group and the kernel; transposed, each input is spread
        yield term(*of(0), *of(1)[1:]) if transposed else term(*out, *of(1)[1:])
    else:
        contracted = [dim for role, dim in record.roles if role == "contracted"]
        if contracted and len(record.operands) > 1:
            yield term(*out, *contracted)
