"""Operands of a product laid out: which axes tell instances, rows and features apart."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from shearfx.dims import Atom, Dim, Solver

OPEN = -1
"""The size of what the call leaves open."""


@dataclass(frozen=True)
class Layout:
    """How an operand becomes ``[instances, rows, features]``."""

    factors: tuple[tuple[int, ...], ...]
    """Of each axis: the sizes of what it is a product of."""
    first: tuple[int, ...]
    """Axes along which all is the same, so that the first index stands for all."""
    order: tuple[tuple[int, ...], ...]
    """Places among all factors: of instances, rows, features."""

    def __call__(self, tensor: Tensor) -> Tensor:
        """The operand in this layout, mostly a view."""
        sizes: list[int] = []
        for axis, of in enumerate(self.factors):
            if axis in self.first:
                tensor = tensor.narrow(axis, 0, 1)
                sizes += [1] * len(of)
            elif len(of) == 1:
                sizes.append(tensor.shape[axis])
            else:
                known = math.prod(one for one in of if one != OPEN)
                sizes += [tensor.shape[axis] // known if one == OPEN else one for one in of]
        moved = tensor.reshape(sizes).permute(tuple(itertools.chain(*self.order)))
        return moved.reshape([math.prod(sizes[i] for i in part) for part in self.order])


def factors(solver: Solver, dims: Sequence[Dim]) -> list[list[Atom]] | None:
    """Of each axis, what it is a product of; None where one is a concatenation."""
    found = []
    for dim in map(solver.resolve, dims):
        factors = [dim] if isinstance(dim, Atom) else list(getattr(dim, "factors", (None,)))
        if not all(isinstance(factor, Atom) for factor in factors):
            return None
        found.append(factors)
    return found


def layout(
    axes: Sequence[Sequence[Atom]], instances: Sequence[Atom], features: Sequence[Atom], first: Sequence[int] = ()
) -> Layout:
    """How an operand is laid out.

    Args:
        axes: what each is a product of.
        instances, features: some of these; all others are rows.
        first: axes along which all is the same.
    """
    flat = [atom for of in axes for atom in of]
    rows = [i for i, atom in enumerate(flat) if atom not in instances and atom not in features]
    sizes = tuple(tuple(atom.size if isinstance(atom.size, int) else OPEN for atom in of) for of in axes)
    order = tuple(flat.index(atom) for atom in instances), tuple(rows), tuple(flat.index(atom) for atom in features)
    return Layout(sizes, tuple(first), order)
