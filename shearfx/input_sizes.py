"""The sizes of inputs for which a trace holds: what is fixed in it, and where the model's code would branch off."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import nn
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.printers import PythonPrinter
from torch.utils._sympy.reference import PythonReferenceAnalysis
from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

from shearfx.errors import TraceError, message
from shearfx.rules.registry import shape_of

Shapes = Mapping[str, Sequence[Any]]
"""The sizes of each input, by name; open ones are symbols."""


@dataclass(frozen=True)
class InputSizes:
    """Which sizes of its inputs a graph was traced for."""

    shapes: Shapes
    conditions: tuple[Any, ...] = ()
    """What must be true of the symbols: on it the model's code decided which way to go."""

    def misfit(self, given: Shapes) -> str:
        """The first thing in which the sizes of a call are not those of the trace; empty where there is none."""
        known: dict[Any, Any] = {}
        for name, shape in self.shapes.items():
            if len(given[name]) != len(shape):
                return f"{name} has {len(given[name])} dims, not {len(shape)}"
            for axis, (size, traced) in enumerate(zip(given[name], shape, strict=True)):
                wanted = traced if isinstance(traced, int) else known.setdefault(traced, size)
                if size != wanted:
                    return f"{name}.shape[{axis}] is {size}, not {wanted}"
        for condition in self.conditions:
            if condition.free_symbols <= known.keys() and not _holds(condition, known):
                said = ", ".join(f"{self._place(s)} = {known[s]}" for s in sorted(condition.free_symbols, key=str))
                return f"not {self.told(condition)} with {said}"
        return ""

    def told(self, condition: Any) -> str:
        """A condition in terms of the inputs."""
        symbols = {s: sympy.Symbol(self._place(s), integer=True) for s in condition.free_symbols}
        return str(PythonPrinter().doprint(condition.subs(symbols)))

    def _place(self, symbol: Any) -> str:
        found = (
            f"{n}.shape[{axis}]" for n, shape in self.shapes.items() for axis, s in enumerate(shape) if s == symbol
        )
        return next(found, str(symbol))

    def chosen(self, example: Mapping[str, int], sizes: Sequence[int]) -> dict[str, int]:
        """A size for each symbol of the example, out of ``sizes`` if those fit the conditions, else the example's."""
        for choice in itertools.islice(itertools.permutations(sizes, len(example)), 1000):
            found = dict(zip(example, choice, strict=True))
            if all(_holds(c, {s: found.get(str(s), 1) for s in c.free_symbols}) for c in self.conditions):
                return found
        return dict(example)


def conditions_of(inputs: Iterable[torch.Tensor]) -> tuple[Any, ...]:
    """What an export took for true of the open sizes of its inputs, beyond what their fixed sizes say."""
    values: list[Any] = [size for tensor in inputs for size in tensor.shape if not isinstance(size, int)]
    if not values:
        return ()
    env: Any = values[0].node.shape_env
    symbols = {symbol for size in values for symbol in size.node.expr.free_symbols}
    found: dict[Any, None] = {}
    ranges = {symbol: env.var_to_range.get(symbol, ValueRanges.unknown_int()) for symbol in symbols}
    for symbol, bounds in ranges.items():
        if bounds.lower > 2:  # two is where every export starts: it takes no open size for 0 or 1
            found[sympy.Ge(symbol, bounds.lower)] = None
        if bounds.upper.is_Integer:
            found[sympy.Le(symbol, bounds.upper)] = None
    for guard in env.guards:
        condition = guard.expr.xreplace(env.replacements)
        if condition.free_symbols and condition.free_symbols <= symbols:
            bound = bound_sympy(condition, ranges)
            if not (bound.is_singleton() and bound.lower == sympy.true):
                found[condition] = None
    return tuple(found)


def _holds(condition: Any, sizes: Mapping[Any, Any]) -> bool:
    return bool(sympy_interp(PythonReferenceAnalysis, dict(sizes), condition))


class SizeCheck(nn.Module):
    """Stands first in a graph and refuses inputs of sizes for which it was not traced."""

    _is_impure = True  # so that fx keeps it though it returns nothing

    def __init__(self, sizes: InputSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.passed: tuple[Any, ...] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> SizeCheck:
        return SizeCheck(self.sizes)

    def forward(self, *inputs: torch.Tensor) -> None:
        """Check the inputs, in the order of the graph's placeholders.

        Raises:
            TraceError: they do not fit.
        """
        shapes = tuple(tuple(tensor.shape) for tensor in inputs)
        fixed = all(isinstance(size, int) for shape in shapes for size in shape)
        if fixed and shapes == self.passed:
            return
        misfit = self.sizes.misfit(dict(zip(self.sizes.shapes, shapes, strict=True)))
        if misfit:
            raise TraceError(
                message(
                    f"this graph was traced for other sizes: {misfit}",
                    where="call of the fx form",
                    todo='trace the model with an example of these sizes and construct again, or choose form="module"',
                )
            )
        self.passed = shapes if fixed else None


def shapes_of(inputs: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """The sizes of traced inputs, open ones as symbols, by name."""
    return {name: shape_of(node.meta["val"]) for name, node in inputs.items()}
