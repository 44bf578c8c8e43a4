"""The algebra of dims against index tensors: what the solver says of an index is where the index really is."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shearfx.dims import Atom, Dim, MismatchError, Pin, Prod, Solver, Sum, concat, leaves, prod
from shearfx.graph import coordinates, kept_mask, mentions, new_size
from shearfx.plan_text import format_term, from_ranges, parse_term, to_ranges

# -- terms ----------------------------------------------------------------------------------------------


@st.composite
def terms(draw: st.DrawFn, atoms: list[Atom], repeat: bool = True) -> Dim:
    """A small term over these atoms; without ``repeat`` no product has an atom twice."""

    def term(depth: int, free: list[Atom]) -> Dim:
        kind = draw(st.sampled_from(("atom", "prod", "sum"))) if depth else "atom"
        if kind == "atom" or not free:
            return draw(st.sampled_from(free)) if free else prod(())
        if kind == "sum":
            return concat(term(depth - 1, free) for _ in range(draw(st.integers(1, 3))))
        first = term(depth - 1, free)
        rest = free if repeat else [a for a in free if a not in mentions((first,))]
        return prod((first, term(depth - 1, rest)))

    return term(3, atoms)


SIZES = st.lists(st.integers(2, 4), min_size=1, max_size=4)


@st.composite
def masked_terms(draw: st.DrawFn, repeat: bool = True) -> tuple[Dim, dict[Atom, Tensor]]:
    atoms = [Atom(size) for size in draw(SIZES)]
    term = draw(terms(atoms, repeat))
    masks = {}
    for atom in atoms:
        if draw(st.booleans()):
            masks[atom] = torch.tensor(draw(st.lists(st.booleans(), min_size=atom.size, max_size=atom.size)))
    return term, masks


@given(masked_terms())
def test_kept_indices_are_as_many_as_the_new_size(case: tuple[Dim, dict[Atom, Tensor]]) -> None:
    term, masks = case
    mask = kept_mask(term, masks)
    assert mask.shape == (term.size,)
    assert int(mask.sum()) == new_size(term, {atom: int(m.sum()) for atom, m in masks.items()})


@given(masked_terms(repeat=False))
def test_an_index_stays_where_all_its_coordinates_stay(case: tuple[Dim, dict[Atom, Tensor]]) -> None:
    term, masks = case
    expected = torch.ones(term.size, dtype=torch.bool)
    for atom, mask in masks.items():
        along = coordinates(term, atom)
        expected &= (along < 0) | mask[along.clamp_min(0)]
    assert torch.equal(kept_mask(term, masks), expected)


@given(masked_terms())
def test_terms_survive_being_written_down(case: tuple[Dim, dict[Atom, Tensor]]) -> None:
    term, masks = case
    cut = list(masks)
    text = format_term(term, {atom: i for i, atom in enumerate(cut)})
    read = parse_term(text, cut)
    assert read.size == term.size
    assert torch.equal(kept_mask(read, masks), kept_mask(term, masks))


@given(st.text("#0123456789*+() x", max_size=12))
def test_what_is_no_term_is_refused(text: str) -> None:
    atoms = [Atom(3), Atom(4)]
    try:
        term = parse_term(text, atoms)
    except ValueError:
        return
    assert mentions((term,)) <= {*atoms, *leaves(term)}


@given(st.sets(st.integers(0, 40), min_size=1))
def test_indices_survive_being_written_down(indices: set[int]) -> None:
    ordered = tuple(sorted(indices))
    assert from_ranges(to_ranges(ordered), ordered[-1] + 1) == ordered
    with pytest.raises(ValueError):
        from_ranges(to_ranges(ordered), ordered[-1])


# -- unification ---------------------------------------------------------------------------------------


def shape_of_terms(solver: Solver, dims: list[Dim]) -> list[str]:
    """The resolved terms as text, atoms numbered as they appear: the effect of solving, names left out."""
    numbers: dict[Atom, int] = {}

    def text(dim: Dim) -> str:
        if isinstance(dim, Atom):
            return f"#{numbers.setdefault(dim, len(numbers))}({dim.size}{'!' if dim.pin else ''})"
        if isinstance(dim, Prod):
            return "[" + "*".join(map(text, dim.factors)) + "]"
        assert isinstance(dim, Sum)
        return "(" + "+".join(map(text, dim.parts)) + ")"

    return [text(solver.resolve(dim)) for dim in dims]


@st.composite
def factors(draw: st.DrawFn, total: int) -> list[int]:
    """Numbers above one whose product is ``total``."""
    result = []
    while total > 1:
        divisors = [d for d in range(2, total + 1) if total % d == 0]
        result.append(draw(st.sampled_from(divisors)))
        total //= result[-1]
    return result


@st.composite
def parts(draw: st.DrawFn, total: int) -> list[int]:
    """Positive numbers whose sum is ``total``."""
    cuts = sorted(draw(st.sets(st.integers(1, total - 1), max_size=3))) if total > 1 else []
    return [b - a for a, b in itertools.pairwise([0, *cuts, total])]


Recipe = tuple[str, list[int]]


@st.composite
def equations(draw: st.DrawFn) -> tuple[int, list[Recipe]]:
    """A size, and ways to write it: as a product or as a sum."""
    size = draw(st.sampled_from((4, 6, 8, 12, 24)))
    ways: list[Recipe] = []
    for _ in range(draw(st.integers(2, 4))):
        kind = draw(st.sampled_from(("prod", "sum")))
        ways.append((kind, draw(factors(size) if kind == "prod" else parts(size))))
    return size, ways


def build(solver: Solver, ways: list[Recipe]) -> list[Dim]:
    made = []
    for kind, sizes in ways:
        pieces = [solver.fresh(size) for size in sizes]
        made.append(prod(pieces) if kind == "prod" else concat(pieces))
    return made


def assert_cut_alike(solver: Solver, dims: list[Dim]) -> None:
    """Whatever may be cut of one dim is cut of all."""
    atoms = {atom: None for dim in dims for atom in solver.atoms(dim) if atom.pin is None}
    for step in (2, 3):
        masks = {atom: torch.arange(atom.size) % step != i % step for i, atom in enumerate(atoms)}
        kept = [kept_mask(solver.resolve(dim), masks) for dim in dims]
        for mask in kept[1:]:
            assert torch.equal(mask, kept[0])


@given(equations())
def test_unification_is_symmetric_idempotent_and_keeps_sizes(case: tuple[int, list[Recipe]]) -> None:
    size, ways = case
    effects: list[object] = []
    for order in (1, -1):
        solver = Solver()
        dims = build(solver, ways)
        try:
            for a, b in itertools.pairwise(dims):
                solver.unify(*(a, b)[::order])
        except MismatchError:
            effects.append("mismatch")
            continue
        effects.append(shape_of_terms(solver, dims))
        for dim in dims:
            assert solver.resolve(dim).size == size
            assert sum(1 for _ in leaves(solver.resolve(dim))) == len(solver.atoms(dim))
        for a, b in itertools.pairwise(dims):
            solver.unify(a, b)
        assert shape_of_terms(solver, dims) == effects[-1]
        assert_cut_alike(solver, dims)
    assert effects[0] == effects[1]


@given(equations())
def test_what_cannot_be_equal_is_pinned(case: tuple[int, list[Recipe]]) -> None:
    solver = Solver()
    dims = build(solver, case[1])
    for a, b in itertools.pairwise(dims):
        solver.equate(a, b, "an operator", "node")
    assert_cut_alike(solver, dims)


@st.composite
def sides(draw: st.DrawFn, solver: Solver, depth: int = 1) -> tuple[Dim, Dim]:
    """Two terms of one size, made of the same and of other atoms, in which not all goes together."""
    kind = draw(st.sampled_from(("swapped", "fresh", "same", "sum", "prod") if depth else ("swapped", "fresh", "same")))
    if kind in ("sum", "prod"):
        pairs = [draw(sides(solver, depth - 1)) for _ in range(draw(st.integers(1, 3 if kind == "sum" else 2)))]
        join = concat if kind == "sum" else prod
        return join(left for left, _ in pairs), join(right for _, right in pairs)
    a, b = (solver.fresh(draw(st.integers(2, 4))) for _ in range(2))
    if kind == "same":
        return a, a
    return (prod((a, b)), prod((b, a))) if kind == "swapped" else (a, solver.fresh(a.size))


@settings(max_examples=300)
@given(st.data())
def test_what_follows_something_that_cannot_be_equal_is_equal_or_pinned_too(data: st.DataObject) -> None:
    solver = Solver()
    pairs = [data.draw(sides(solver)) for _ in range(data.draw(st.integers(2, 3)))]
    join = data.draw(st.sampled_from([concat, prod]))
    left, right = join(left for left, _ in pairs), join(right for _, right in pairs)
    solver.equate(left, right)
    assert_cut_alike(solver, [left, right])


def test_the_rest_of_an_equation_that_fails_is_solved() -> None:
    solver = Solver()
    a, b, c, d = (solver.fresh(size) for size in (2, 3, 5, 5))
    solver.equate(concat([prod((a, b)), c]), concat([prod((b, a)), d]))
    assert solver.pinned(a) and solver.pinned(b)
    assert solver.resolve(c) is solver.resolve(d) and not solver.pinned(c)


@given(equations(), st.integers(0, 3))
def test_a_pin_follows_what_an_atom_is_made_of(case: tuple[int, list[Recipe]], which: int) -> None:
    solver = Solver()
    dims = build(solver, case[1])
    pinned = dims[which % len(dims)]
    solver.pin(pinned, "a test")
    for a, b in itertools.pairwise(dims):
        solver.equate(a, b)
    assert solver.pinned(pinned)
    assert all(atom.pin is not None for dim in dims for atom in solver.atoms(dim))


# -- chains of operators on index tensors -------------------------------------------------------------


@dataclass
class Value:
    """A tensor of indices, its dims, and how it was made of others (to be made again of slices)."""

    full: Tensor
    dims: tuple[Dim, ...]
    made: str = "leaf"
    of: tuple[int, ...] = ()
    how: tuple[int, ...] = ()


@dataclass
class Chain:
    """Operators one after the other, each with its equations."""

    solver: Solver = field(default_factory=Solver)
    values: list[Value] = field(default_factory=list)

    def leaf(self, shape: list[int]) -> None:
        first = sum(v.full.numel() for v in self.values if v.made == "leaf")
        full = torch.arange(first, first + math.prod(shape)).reshape(shape)
        self.values.append(Value(full, tuple(self.solver.fresh(s) for s in shape)))

    def reshape(self, i: int, shape: list[int]) -> None:
        dims = tuple(self.solver.fresh(s) for s in shape)
        self.solver.equate(prod(self.values[i].dims), prod(dims))
        self.values.append(Value(self.values[i].full.reshape(shape), dims, "reshape", (i,)))

    def permute(self, i: int, order: list[int]) -> None:
        x = self.values[i]
        dims = tuple(x.dims[axis] for axis in order)
        self.values.append(Value(x.full.permute(order), dims, "permute", (i,), tuple(order)))

    def split(self, i: int, axis: int, at: int) -> None:
        x = self.values[i]
        size = x.full.shape[axis]
        low, high = self.solver.fresh(at), self.solver.fresh(size - at)
        self.solver.equate(x.dims[axis], concat((low, high)))
        for k, (start, part) in enumerate(((0, low), (at, high))):
            dims = (*x.dims[:axis], part, *x.dims[axis + 1 :])
            full = x.full.narrow(axis, start, part.size)
            self.values.append(Value(full, dims, "split", (i,), (axis, k, len(self.values) - k)))

    def cat(self, i: int, j: int, axis: int) -> None:
        a, b = self.values[i], self.values[j]
        for k, (left, right) in enumerate(zip(a.dims, b.dims, strict=True)):
            if k != axis:
                self.solver.equate(left, right)
        dims = (*a.dims[:axis], concat((a.dims[axis], b.dims[axis])), *a.dims[axis + 1 :])
        self.values.append(Value(torch.cat([a.full, b.full], axis), dims, "cat", (i, j), (axis,)))

    def add(self, i: int, j: int) -> None:
        a, b = self.values[i], self.values[j]
        for left, right in zip(a.dims, b.dims, strict=True):
            self.solver.equate(left, right)
        self.values.append(Value(1000 * a.full + b.full, a.dims, "add", (i, j)))

    def replay(self, masks: dict[Atom, Tensor]) -> None:
        """Make everything again of sliced leaves; each has to be the slice of what it was."""
        sizes = {atom: int(mask.sum()) for atom, mask in masks.items()}
        again: list[Tensor] = []
        for value in self.values:
            dims = [self.solver.resolve(dim) for dim in value.dims]
            expected = value.full
            for axis, dim in enumerate(dims):
                expected = expected.index_select(axis, kept_mask(dim, masks).nonzero().flatten())
            shape = [new_size(dim, sizes) for dim in dims]
            sources = [again[i] for i in value.of]
            if value.made == "leaf":
                actual = expected
            elif value.made == "reshape":
                actual = sources[0].reshape(shape)
            elif value.made == "permute":
                actual = sources[0].permute(value.how)
            elif value.made == "split":
                axis, k, first = value.how
                low = new_size(self.solver.resolve(self.values[first].dims[axis]), sizes)
                actual = sources[0].narrow(axis, 0 if k == 0 else low, shape[axis])
            elif value.made == "cat":
                actual = torch.cat(sources, value.how[0])
            else:
                actual = 1000 * sources[0] + sources[1]
            assert torch.equal(actual, expected), (value.made, dims)
            again.append(actual)


@st.composite
def chains(draw: st.DrawFn) -> Chain:
    chain = Chain()
    for _ in range(draw(st.integers(1, 3))):
        chain.leaf(draw(st.lists(st.sampled_from((2, 3, 4, 6)), min_size=1, max_size=3)))
    for _ in range(draw(st.integers(1, 7))):
        i = draw(st.integers(0, len(chain.values) - 1))
        x = chain.values[i].full
        alike = [j for j, v in enumerate(chain.values) if v.full.dim() == x.dim()]
        kind = draw(st.sampled_from(("reshape", "permute", "split", "cat", "add")))
        axis = draw(st.integers(0, x.dim() - 1)) if x.dim() else 0
        if kind == "reshape" and 1 < x.numel() <= 200:
            chain.reshape(i, draw(factors(x.numel())))
        elif kind == "permute":
            chain.permute(i, draw(st.permutations(range(x.dim()))))
        elif kind == "split" and x.shape[axis] > 1:
            chain.split(i, axis, draw(st.integers(1, x.shape[axis] - 1)))
        elif kind == "cat":
            fits = [j for j in alike if _but(chain.values[j].full, axis) == _but(x, axis)]
            if x.shape[axis] < 12:
                chain.cat(i, draw(st.sampled_from(fits)), axis)
        elif kind == "add":
            chain.add(i, draw(st.sampled_from([j for j in alike if chain.values[j].full.shape == x.shape])))
    return chain


def _but(x: Tensor, axis: int) -> list[int]:
    return [s for k, s in enumerate(x.shape) if k != axis]


@settings(max_examples=300)
@given(chains(), st.data())
def test_slicing_commutes_with_chains_of_operators(chain: Chain, data: st.DataObject) -> None:
    solver = chain.solver
    for value in chain.values:
        assert [solver.resolve(d).size for d in value.dims] == list(value.full.shape)
    atoms = {a: None for value in chain.values for d in value.dims for a in solver.atoms(d) if a.pin is None}
    masks = {}
    for atom in atoms:
        kept = data.draw(st.sets(st.integers(0, atom.size - 1), min_size=1), label=str(atom))
        masks[atom] = torch.zeros(atom.size, dtype=torch.bool)
        masks[atom][sorted(kept)] = True
    chain.replay(masks)


# -- examples that were wrong once -------------------------------------------------------------------------


def test_a_dim_of_open_size_is_pinned_only_as_far_as_it_is_open() -> None:
    import sympy

    batch = sympy.Symbol("s0", positive=True, integer=True)
    solver = Solver()
    flat = solver.fresh(6 * batch)
    solver.equate(flat, prod((solver.fresh(batch), solver.fresh(6))))
    assert [atom.pin is None for atom in solver.atoms(flat)] == [False, True]


def test_what_an_open_dim_that_is_pinned_turns_out_to_be_is_pinned() -> None:
    import sympy

    batch = sympy.Symbol("s0", positive=True, integer=True)
    solver = Solver()
    flat = solver.fresh(6 * batch)
    solver.pin(flat, "a running sum goes by position")
    solver.equate(flat, prod((solver.fresh(batch), solver.fresh(6))))
    assert solver.pinned(flat)


def test_the_first_reason_for_a_pin_is_kept() -> None:
    solver = Solver()
    dim = solver.fresh(4, Pin("first"))
    solver.pin(dim, "second")
    assert [atom.pin for atom in solver.atoms(dim)] == [Pin("first")]
