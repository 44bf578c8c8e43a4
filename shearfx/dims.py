"""The dimension algebra: what the size of a tensor is made of.

Every dimension of every tensor in a traced graph is a term::

    Dim = Atom(size) | Prod(Dim, ...) | Sum(Dim, ...)

``Prod`` is a row-major product (the rows of a query projection are ``heads * head_dim``), ``Sum`` a
concatenation (fused query, key and value). Operators state equations between terms; :class:`Solver` solves them
by unification. It binds atoms, splits them where two sides factor differently, and *pins* the atoms of sides that
cannot be reconciled. Each step binds an atom, once and for good, to strictly smaller pieces or to another term,
so solving always terminates.

Sizes are integers, or sympy expressions for the dimensions that the traced call leaves open (batch, sequence).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import sympy

Size: TypeAlias = Any
"""An ``int``, or a ``sympy.Expr`` over the open dimensions of the traced call."""

MAX_ROWS = 64
"""A concatenation is cut into rows (to read it as a product) up to this many; beyond, it is pinned."""


@dataclass(frozen=True, slots=True)
class Pin:
    """Why something may not be cut: the reason, and the graph node that said so."""

    reason: str
    node: str = ""


OPEN = Pin("its size is open: it follows the batch or sequence of the traced call")
"""Of an atom whose size is an expression. What it turns out to be a multiple of may be cut all the same."""


class Dim:
    """A term of the algebra. Immutable but for the binding of atoms, which only the solver sets."""

    __slots__ = ("size",)
    size: Size


class Atom(Dim):
    """An indivisible dimension of ``size`` indices, until the solver finds out what it is made of."""

    __slots__ = ("bound", "name", "pin", "serial")
    _serials = itertools.count()

    def __init__(self, size: Size, pin: Pin | None = None) -> None:
        self.size = size
        self.pin = pin
        self.bound: Dim | None = None
        self.serial = next(Atom._serials)
        self.name = ""

    def __repr__(self) -> str:
        return self.name or f"a{self.serial}({self.size})"


class Prod(Dim):
    """Row-major product: the last factor varies fastest. ``Prod(())`` is the dimension of size one."""

    __slots__ = ("factors",)

    def __init__(self, factors: tuple[Dim, ...], size: Size) -> None:
        self.factors = factors
        self.size = size

    def __repr__(self) -> str:
        return " * ".join(f"({f})" if isinstance(f, Sum) else repr(f) for f in self.factors) or "1"


class Sum(Dim):
    """Concatenation of the parts, in order. ``Sum(())`` is the empty dimension."""

    __slots__ = ("parts",)

    def __init__(self, parts: tuple[Dim, ...], size: Size) -> None:
        self.parts = parts
        self.size = size

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.parts)) or "0"


ONE = Prod((), 1)
ZERO = Sum((), 0)


def prod(factors: Iterable[Dim]) -> Dim:
    """The product of ``factors``, flattened, ones left out."""
    flat: list[Dim] = []
    size: Size = 1
    for factor in factors:
        if isinstance(factor, Prod):
            flat.extend(factor.factors)
        elif factor.size != 1:
            flat.append(factor)
        size = size * factor.size
    if len(flat) == 1:
        return flat[0]
    if size == 0:
        return ZERO
    return Prod(tuple(flat), size) if flat else ONE


def concat(parts: Iterable[Dim]) -> Dim:
    """The concatenation of ``parts``, flattened, empty ones left out."""
    flat: list[Dim] = []
    size: Size = 0
    for part in parts:
        if isinstance(part, Sum):
            flat.extend(part.parts)
        elif part.size != 0:
            flat.append(part)
        size = size + part.size
    if len(flat) == 1:
        return flat[0]
    return Sum(tuple(flat), size) if flat else ZERO


def quotient(a: Size, b: Size) -> Size | None:
    """``a / b`` where it is a whole number (or a whole expression), else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    if a == b:
        return 1
    ratio = sympy.cancel(sympy.sympify(a) / sympy.sympify(b))
    _, denominator = sympy.fraction(ratio)
    return _as_size(ratio) if denominator == 1 else None


def _as_size(expression: Any) -> Size:
    return int(expression) if isinstance(expression, sympy.Integer) else expression


def same_size(a: Size, b: Size) -> bool:
    """Whether two sizes are equal, as far as algebra can tell."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return bool(a == b) or sympy.expand(sympy.sympify(a) - sympy.sympify(b)) == 0


class MismatchError(Exception):
    """Terms that no product or concatenation reconciles; all else of the equation that they are in is solved."""

    def __init__(self, *pairs: tuple[Dim, Dim]) -> None:
        left, right = pairs[0]
        super().__init__(f"{left} (size {left.size}) against {right} (size {right.size})")
        self.pairs = pairs


class Solver:
    """Solves equations between dims by unification, and remembers what is pinned and why."""

    def __init__(self) -> None:
        self.pins: list[tuple[Dim, Pin]] = []

    # -- making and reading terms ------------------------------------------------------------------

    def fresh(self, size: Size, pin: Pin | None = None) -> Dim:
        """A new dimension of which nothing is known but its size. Open sizes are pinned."""
        if isinstance(size, int):
            if size == 1:
                return ONE
            if size == 0:
                return ZERO
        elif pin is None:
            pin = OPEN
        atom = Atom(size, pin)
        if pin is not None and isinstance(size, int):
            self.pins.append((atom, pin))
        return atom

    def resolve(self, dim: Dim) -> Dim:
        """The term with every bound atom replaced by what it is bound to."""
        if isinstance(dim, Atom):
            if dim.bound is None:
                return dim
            dim.bound = self.resolve(dim.bound)
            return dim.bound
        if isinstance(dim, Prod):
            factors = [self.resolve(f) for f in dim.factors]
            return dim if all(map(_is, factors, dim.factors)) else prod(factors)
        assert isinstance(dim, Sum)
        parts = [self.resolve(p) for p in dim.parts]
        return dim if all(map(_is, parts, dim.parts)) else concat(parts)

    def atoms(self, dim: Dim) -> list[Atom]:
        """The atoms of the resolved term, left to right, with repetitions."""
        return list(leaves(self.resolve(dim)))

    def pinned(self, dim: Dim) -> bool:
        """Whether nothing of the dimension may be cut."""
        return all(atom.pin is not None for atom in leaves(self.resolve(dim)))

    def pin(self, dim: Dim, reason: str, node: str = "") -> None:
        """Forbid cutting anything of ``dim``. The first reason an atom was given is the one it keeps."""
        pin = Pin(reason, node)
        dim = self.resolve(dim)
        if any(atom.pin is None for atom in leaves(dim)):
            self.pins.append((dim, pin))
        _spread(dim, pin)

    # -- equations ---------------------------------------------------------------------------------

    def equate(self, left: Dim, right: Dim, why: str = "", node: str = "") -> None:
        """Make the two terms equal; where they cannot be, pin what disagrees."""
        try:
            self.unify(left, right)
        except MismatchError as mismatch:
            for pair in mismatch.pairs:
                reason = f"{why or 'the two sides of an operator'} factor differently: {MismatchError(pair)}"
                for side in pair:
                    self.pin(side, reason, node)

    def unify(self, left: Dim, right: Dim) -> None:
        """Make the two terms equal.

        Raises:
            MismatchError: the terms cannot be made equal. What was bound before stands; it follows from the equation.
        """
        left, right = self.resolve(left), self.resolve(right)
        if left is right:
            return
        if not same_size(left.size, right.size):
            raise MismatchError((left, right))
        if isinstance(left, Atom):
            self._bind(left, right)
        elif isinstance(right, Atom):
            self._bind(right, left)
        elif isinstance(left, Prod) and isinstance(right, Prod):
            self._unify_products(left, right)
        elif isinstance(left, Sum):
            self._unify_sum(left, right)
        else:
            assert isinstance(right, Sum)
            self._unify_sum(right, left)

    def _bind(self, atom: Atom, term: Dim) -> None:
        if any(leaf is atom for leaf in leaves(term)):
            raise MismatchError((atom, term))
        atom.bound = term
        if atom.pin is not None and atom.pin is not OPEN:
            _spread(term, atom.pin)

    def _unify_products(self, left: Prod, right: Prod) -> None:
        lefts, rights = list(left.factors), list(right.factors)
        failed: list[tuple[Dim, Dim]] = []
        while lefts and rights:
            a, b = self.resolve(lefts.pop(0)), self.resolve(rights.pop(0))
            for term, rest in ((a, lefts), (b, rights)):
                if isinstance(term, Prod):  # bound meanwhile
                    rest[:0] = term.factors
            if isinstance(a, Prod) or isinstance(b, Prod):
                if not isinstance(a, Prod):
                    lefts.insert(0, a)
                if not isinstance(b, Prod):
                    rights.insert(0, b)
                continue
            whole = prod((a, *lefts)), prod((b, *rights))
            try:
                if same_size(a.size, b.size):
                    outer_a, outer_b = a, b
                elif (inner := quotient(b.size, a.size)) is not None:
                    outer_a, (outer_b, rest_b) = a, self.factor(b, a.size, inner)
                    rights.insert(0, rest_b)
                elif (inner := quotient(a.size, b.size)) is not None:
                    (outer_a, rest_a), outer_b = self.factor(a, b.size, inner), b
                    lefts.insert(0, rest_a)
                else:
                    raise MismatchError(whole)
            except MismatchError:
                failed.append(whole)
                break
            self._unify_or(failed, outer_a, outer_b)
        else:
            if lefts or rights:
                failed.append((prod(lefts), prod(rights)))
        if failed:
            raise MismatchError(*failed)

    def _unify_sum(self, left: Dim, right: Dim) -> None:
        failed: list[tuple[Dim, Dim]] = []
        while True:
            left, right = self.resolve(left), self.resolve(right)
            heads = [term.parts[0].size for term in (left, right) if isinstance(term, Sum)]
            if left is right or not heads:
                self._unify_or(failed, left, right)
                break
            at = min(heads) if all(isinstance(h, int) for h in heads) else heads[0]
            try:
                (first_left, rest_left), (first_right, rest_right) = self.cut(left, at), self.cut(right, at)
            except MismatchError:
                failed.append((left, right))
                break
            self._unify_or(failed, first_left, first_right)
            left, right = rest_left, rest_right
        if failed:
            raise MismatchError(*failed)

    def _unify_or(self, failed: list[tuple[Dim, Dim]], left: Dim, right: Dim) -> None:
        """Make two terms equal, or note what of them cannot be, and go on."""
        try:
            self.unify(left, right)
        except MismatchError as mismatch:
            failed += mismatch.pairs

    # -- taking terms apart ------------------------------------------------------------------------

    def cut(self, dim: Dim, at: Size) -> tuple[Dim, Dim]:
        """Write ``dim`` as the concatenation of its first ``at`` indices and the rest; return both.

        Raises:
            MismatchError: it cannot be; nothing is solved then that does not follow.
        """
        dim = self.resolve(dim)
        if same_size(at, 0):
            return ZERO, dim
        if same_size(at, dim.size):
            return dim, ZERO
        if isinstance(dim, Atom):
            left, right = self._child(dim, at), self._child(dim, dim.size - at)
            self._bind(dim, concat((left, right)))
            return left, right
        if not isinstance(at, int) or not isinstance(dim.size, int):
            raise MismatchError((dim, dim))
        if isinstance(dim, Sum):
            return self._cut_sum(dim, at)
        assert isinstance(dim, Prod)
        first, inner = dim.factors[0], prod(dim.factors[1:])
        rows, columns = divmod(at, inner.size)
        above, below = self.cut(first, rows)
        if columns == 0:
            return prod((above, self.resolve(inner))), prod((self.resolve(below), self.resolve(inner)))
        row, below = self.cut(below, 1)
        left, right = self.cut(inner, columns)
        inner = self.resolve(inner)
        above, row, below = self.resolve(above), self.resolve(row), self.resolve(below)
        return concat((prod((above, inner)), prod((row, left)))), concat((prod((row, right)), prod((below, inner))))

    def _cut_sum(self, dim: Sum, at: int) -> tuple[Dim, Dim]:
        offset = 0
        for i, part in enumerate(dim.parts):
            if offset + part.size > at:
                left, right = self.cut(part, at - offset)
                before, after = concat((*dim.parts[:i], left)), concat((right, *dim.parts[i + 1 :]))
                return self.resolve(before), self.resolve(after)
            offset += part.size
        raise AssertionError("a cut beyond the end")

    def factor(self, dim: Dim, outer: Size, inner: Size) -> tuple[Dim, Dim]:
        """Write ``dim`` as the product of an outer and an inner dimension of these sizes; return both.

        Raises:
            MismatchError: it cannot be.
        """
        dim = self.resolve(dim)
        if same_size(outer, 1):
            return ONE, dim
        if same_size(inner, 1):
            return dim, ONE
        if isinstance(dim, Atom):
            left, right = self._child(dim, outer), self._child(dim, inner)
            self._bind(dim, prod((left, right)))
            return left, right
        if isinstance(dim, Prod):
            return self._factor_product(dim, outer, inner)
        assert isinstance(dim, Sum)
        return self._factor_sum(dim, outer, inner)

    def _factor_product(self, dim: Prod, outer: Size, inner: Size) -> tuple[Dim, Dim]:
        split = Prod((self._like(dim, outer), self._like(dim, inner)), dim.size)
        self._unify_products(split, dim)
        return self.resolve(split.factors[0]), self.resolve(split.factors[1])

    def _factor_sum(self, dim: Sum, outer: Size, inner: Size) -> tuple[Dim, Dim]:
        counts = [quotient(part.size, inner) for part in dim.parts]
        if all(count is not None for count in counts):
            pieces = [self.factor(part, count, inner) for part, count in zip(dim.parts, counts, strict=True)]
        elif isinstance(outer, int) and isinstance(inner, int) and outer <= MAX_ROWS:
            pieces, rest = [], self.resolve(dim)
            for _ in range(outer):
                row, rest = self.cut(self.resolve(rest), inner)
                pieces.append((ONE, row))
        else:
            raise MismatchError((dim, dim))
        for _, row in pieces[1:]:
            self.unify(pieces[0][1], row)
        return self.resolve(concat(rows for rows, _ in pieces)), self.resolve(pieces[0][1])

    def _child(self, atom: Atom, size: Size) -> Dim:
        if isinstance(size, int) and size <= 1:
            return ONE if size else ZERO
        if isinstance(size, int) and atom.pin is OPEN:
            return Atom(size)
        return Atom(size, atom.pin or (None if isinstance(size, int) else OPEN))

    def _like(self, dim: Dim, size: Size) -> Dim:
        return ONE if size == 1 else Atom(size, None if isinstance(size, int) else OPEN)


def _is(a: object, b: object) -> bool:
    return a is b


def _spread(dim: Dim, pin: Pin) -> None:
    for atom in leaves(dim):
        if atom.pin is None or atom.pin is OPEN:  # what an open atom turns out to be a multiple of is pinned then too
            atom.pin = pin


def leaves(dim: Dim) -> Iterator[Atom]:
    """The atoms of a resolved term, left to right, with repetitions."""
    if isinstance(dim, Atom):
        yield dim
    else:
        children: Sequence[Dim] = dim.factors if isinstance(dim, Prod) else dim.parts  # type: ignore[attr-defined]
        for child in children:
            yield from leaves(child)
