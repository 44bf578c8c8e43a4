"""Operator rules: what each operator says about the dims of its operands and results.

A rule is either a line of notation, close to einsum and einops ::

    rule(aten.linear.default, "... i, o i, [o] -> ... o")

or a function of a :class:`Site` that states equations and returns the dims of the result. Rules know no model and
no pass; passes know no operator. An operator without a rule is pinned, never guessed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import fx

from shearfx.dims import ONE, Atom, Dim, Size, Solver, concat, prod, same_size
from shearfx.values import Value, join, multiply

Dims: TypeAlias = tuple[Dim, ...]
Result: TypeAlias = "Dims | list[Dims | None] | None"
"""Dims of one tensor, of a list of tensors (None for what is no tensor), or None for no tensor at all."""

Transfer: TypeAlias = Callable[[list[Value]], Value]
"""From the classes of the operands (in the order of ``Record.operands``) to the class of the result."""


@dataclass(slots=True)
class Exit:
    """A place where a dimension leaves the graph of its dims: the operator sums over it, or reads its size.

    ``value`` gives the class of the number that a zeroed index adds there; cutting is the same as zeroing only if
    that is zero. ``certificate`` is the best that a group can get through this exit.
    """

    dim: Dim
    certificate: str
    value: Transfer
    reason: str
    cost: str = ""
    """What the certificate asks for where a zeroed index does add zero."""
    carriers: tuple[int, ...] | None = None
    """The operands (by place in ``Record.operands``) that have the dim here; others may mention its atoms elsewhere."""


@dataclass(frozen=True, slots=True)
class Replacement:
    """Another operator to do the same with, once dims have changed size.

    ``arguments`` follow the first one of the original call; dims among them become their new sizes.
    """

    target: Any
    arguments: tuple[Any, ...]


@dataclass(slots=True)
class Record:
    """What inference knows of one node of the graph."""

    node: fx.Node
    dims: Result
    operands: tuple[fx.Node, ...] = ()
    transfer: Transfer | None = None
    data: bool = False
    """Whether the numbers follow the model's input (an activation), rather than weights and positions alone."""
    divisor: int | None = None
    """Which operand the others are divided by: where zeroing leaves it alone, the full model vouches that it is not
    zero, as its own results would not be finite."""
    sources: Callable[[Atom], Sequence[int]] | None = None
    """For an atom of the result: which operands its slice is made of. None: all of them."""
    carried: list[tuple[Dim, tuple[int, ...]]] = field(default_factory=list)
    """For each dim of the result: which operands (by place in ``operands``) have it. An atom met twice in one tensor
    (rows and columns of a product of a vector with itself) is zero in a slice only as far as the slice's own dim is."""
    exits: list[Exit] = field(default_factory=list)
    sizes: list[tuple[str, Dim | Dims]] = field(default_factory=list)
    """(argument, term): this argument is the size of the term (a list: one for each), to be re-derived."""
    constants: list[tuple[str, Any]] = field(default_factory=list)
    """(argument, value): an argument left to a default that reads a size; written out before cutting."""
    created: bool = False
    """The result is a table made from sizes alone: it is made at full size, then sliced."""
    rescale: Dim | None = None
    """The result is a mean over this dim: times new size over old size, it is the mean over the full dim."""
    replace: Replacement | None = None
    constant: torch.Tensor | None = None
    """The numbers themselves, where the model's code wrote them down."""
    roles: list[tuple[str, Dim]] = field(default_factory=list)
    """What this operator takes a dim for (``heads``, ``channels``, ...), from which kinds of groups are named."""


RuleFunction: TypeAlias = "Callable[[Site], Result]"


@dataclass(frozen=True)
class Rule:
    """A registered rule: the function, where it came from, and samples that the tests run it on."""

    function: RuleFunction
    name: str
    samples: Callable[[], Iterable[tuple[Any, ...]]] | None = None


RULES: dict[Any, Rule] = {}


@functools.cache
def parameters_of(target: Any) -> tuple[tuple[str, Any, bool, bool], ...]:
    """(name, default, keyword only, tensor) of each argument of an operator, from its schema."""
    return tuple(
        (a.name, a.default_value if a.has_default_value() else None, a.kwarg_only, "Tensor" in str(a.type))
        for a in target._schema.arguments
    )


class Site:
    """One node under inference: what a rule reads, and where it says what it knows."""

    def __init__(self, node: fx.Node, solver: Solver, records: dict[fx.Node, Record]) -> None:
        self.node = node
        self.solver = solver
        self.records = records
        self.record = Record(node, None)

    # -- reading -----------------------------------------------------------------------------------

    def arg(self, name: str) -> Any:
        """The value of an argument by its schema name, or its default."""
        for i, (parameter, default, keyword, _) in enumerate(parameters_of(self.node.target)):
            if parameter == name:
                if not keyword and i < len(self.node.args):
                    return self.node.args[i]
                return self.node.kwargs.get(name, default)
        raise KeyError(f"{self.node.target} has no argument {name!r}")

    def tensors(self) -> list[fx.Node | None]:
        """The tensor arguments in schema order; None for absent optional ones; lists of tensors flattened."""
        found: list[fx.Node | None] = []
        for name, _, _, tensor in parameters_of(self.node.target):
            if tensor:
                value = self.arg(name)
                found.extend(value if isinstance(value, (list, tuple)) else [value])
        return [v if isinstance(v, fx.Node) and is_tensor(v) else None for v in found]

    def dims(self, value: Any) -> Dims:
        """The dims of a tensor argument, given by schema name or as a node."""
        node = self.arg(value) if isinstance(value, str) else value
        if not isinstance(node, fx.Node):
            return ()
        dims = self.records[node].dims
        assert isinstance(dims, tuple), f"{node} is no single tensor"
        return dims

    def shape(self, value: Any = None) -> tuple[Size, ...]:
        """The traced shape of a tensor argument (by name or as a node), or of the result."""
        node = self.node if value is None else self.arg(value) if isinstance(value, str) else value
        return shape_of(node.meta["val"])

    def axis(self, name: str, rank: int) -> int:
        """An axis argument, counted from the front."""
        axis = self.arg(name) if isinstance(name, str) else name
        return int(axis) % rank if rank else 0

    def axes(self, name: str, rank: int) -> list[int]:
        """A list-of-axes argument, counted from the front; absent or empty means all."""
        value = self.arg(name)
        if value is None or (isinstance(value, (list, tuple)) and not value):
            return list(range(rank))
        return [int(a) % rank for a in (value if isinstance(value, (list, tuple)) else [value])]

    # -- saying ------------------------------------------------------------------------------------

    def fresh(self, size: Size) -> Dim:
        """A new dimension of this size."""
        return self.solver.fresh(size)

    def fresh_like_output(self) -> Dims:
        """New dims for the single tensor that the node returns."""
        return tuple(self.fresh(size) for size in self.shape())

    def opaque(self, dims: Iterable[Dim], reason: str) -> Dims:
        """Forbid cutting these dims of operands and all of the single tensor that the node returns: what becomes of an
        index there is not followed. Returns the dims of the result."""
        out = self.fresh_like_output()
        self.pin([*dims, *out], reason)
        return out

    def equate(self, left: Dim, right: Dim) -> None:
        """State that two dims are the same."""
        self.solver.equate(left, right, f"the two sides of {self.node.target}", self.node.name)

    def pin(self, dims: Dim | Iterable[Dim], reason: str) -> None:
        """Forbid cutting."""
        for dim in (dims,) if isinstance(dims, Dim) else dims:
            self.solver.pin(dim, reason, self.node.name)

    def broadcast(self, shapes: Sequence[Dims]) -> Dims:
        """Equate dims as broadcasting does (aligned right, size one stretches) and return the common ones."""
        rank = max(map(len, shapes), default=0)
        result: list[Dim] = []
        for i in range(rank, 0, -1):
            present = [dims[len(dims) - i] for dims in shapes if len(dims) >= i]
            wide = [dim for dim in present if not is_one(dim.size)]
            for other in wide[1:]:
                if other is not wide[0]:
                    self.equate(wide[0], other)
            result.append(wide[0] if wide else ONE)
        return tuple(result)

    def operands(self, *nodes: Any, transfer: Transfer | None = None) -> None:
        """Name the tensor operands whose values matter, and how they make the value of the result."""
        self.record.operands = tuple(node for node in nodes if isinstance(node, fx.Node))
        self.record.transfer = transfer

    def joins(self, nodes: Sequence[fx.Node]) -> None:
        """The result's elements each come from one operand: a slice is made of the operands that mention its atom."""
        self.operands(*nodes, transfer=join)
        shapes = [self.dims(node) for node in nodes]
        solver = self.solver

        def sources(atom: Atom) -> list[int]:
            mentions = [any(atom in solver.atoms(dim) for dim in dims) for dims in shapes]
            return [i for i, mentioned in enumerate(mentions) if mentioned]

        self.record.sources = sources

    def contracts(
        self, dim: Dim, value: Transfer | None = None, what: str = "", carriers: tuple[int, ...] | None = None
    ) -> None:
        """State that ``dim`` is summed over: exact where what a zeroed index adds is zero."""
        reason = f"a zeroed index adds something other than zero to the sum in {what or self.node.target}"
        self.record.exits.append(Exit(dim, "exact", value or multiply, reason, carriers=carriers))

    def carried(self, dims: Dims, shapes: Sequence[Dims], places: Sequence[int] | None = None) -> None:
        """State which operands have each dim of the result, as broadcasting does: aligned right, ones stretch.

        Args:
            dims: of the result, or of some of its axes.
            shapes: of each operand, the axes that are aligned with these.
            places: of these operands among ``Record.operands``; by default in order.
        """
        for i, dim in enumerate(reversed(dims), start=1):
            having = [j for j, shape in enumerate(shapes) if len(shape) >= i and not is_one(shape[-i].size)]
            self.record.carried.append((dim, tuple(places[j] if places else j for j in having)))

    def approximates(self, dim: Dim, reason: str) -> None:
        """State that the operator's other results depend on how many indices ``dim`` has."""
        self.record.exits.append(Exit(dim, "approximate", multiply, reason))

    def sizes(self, argument: str, term: Dim | Dims) -> None:
        """Declare that an argument is the size of a term (or the sizes of several)."""
        self.record.sizes.append((argument, term))

    def attends(
        self, left: Any, right: Any, contracted: Iterable[Dim], batch: Iterable[Dim], free: Iterable[Dim]
    ) -> None:
        """A product of two activations is what attention is made of: name its dims accordingly."""
        if self.records[left].data and self.records[right].data:
            for role, dims in (("head_dim", contracted), ("heads", batch), ("value_dim", free)):
                for dim in dims:
                    self.role(role, dim)

    def role(self, role: str, dim: Dim) -> None:
        """Say what the operator takes ``dim`` for."""
        self.record.roles.append((role, dim))


def is_one(size: Size) -> bool:
    """Whether a size is the integer one."""
    return isinstance(size, int) and size == 1


def is_tensor(node: fx.Node) -> bool:
    """Whether a node stands for one tensor."""
    return isinstance(node.meta.get("val"), torch.Tensor)


def size_of(size: Any) -> Size:
    """An ``int`` or the sympy expression of a ``SymInt``."""
    return size if isinstance(size, int) else int(size) if size.node.is_constant() else _whole(size.node.expr)


def _whole(expression: Any) -> Size:
    return int(expression) if expression.is_Integer else expression


def shape_of(tensor: torch.Tensor) -> tuple[Size, ...]:
    """The sizes of a (fake) tensor."""
    return tuple(size_of(s) for s in tensor.shape)


def fits(result: Result, value: Any) -> bool:
    """Whether dims are of the sizes that a node's (fake) value has, one tensor or several."""
    if isinstance(result, list):
        several = isinstance(value, (list, tuple)) and len(value) == len(result)
        return several and all(dims is None or fits(dims, one) for dims, one in zip(result, value, strict=True))
    if result is None:
        return True
    if not isinstance(value, torch.Tensor) or len(result) != value.dim():
        return False
    return all(same_size(dim.size, size) for dim, size in zip(result, shape_of(value), strict=True))


# -- registering -----------------------------------------------------------------------------------


def rule(*targets: Any, samples: Any = None) -> Callable[[RuleFunction], RuleFunction]:
    """Register a function as the rule of one or more operators.

    Args:
        targets: operator overloads, such as ``torch.ops.aten.linear.default``.
        samples: a function returning calls ``(operator, args, kwargs)`` that the tests run the rule on.
    """

    def register(function: RuleFunction) -> RuleFunction:
        for target in targets:
            RULES[target] = Rule(function, getattr(function, "__name__", "rule"), samples)
        return function

    return register


__all__ = [
    "RULES",
    "Dims",
    "Exit",
    "Record",
    "Replacement",
    "Result",
    "Rule",
    "Site",
    "concat",
    "fits",
    "is_one",
    "is_tensor",
    "join",
    "prod",
    "rule",
    "shape_of",
    "size_of",
]
