"""The notation of contractions, close to einsum and einops: ``"... i, o i, [o] -> ... o"``."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from shearfx.dims import Dim
from shearfx.rules.registry import Dims, Site, is_one, rule
from shearfx.values import Value, add, multiply


@dataclass(frozen=True)
class Pattern:
    """A parsed line of notation."""

    text: str
    inputs: tuple[tuple[str, ...], ...]
    additive: tuple[bool, ...]
    output: tuple[str, ...]


@functools.cache
def parse(text: str) -> Pattern:
    """Parse ``"... i, o i, [o] -> ... o"``: operands by commas, dims by spaces; ``[]`` is optional and added.

    Raises:
        ValueError: the text is no pattern; the message shows where.
    """
    left, arrow, right = text.partition("->")
    if not arrow or "->" in right:
        raise ValueError(f"pattern {text!r}: expected exactly one '->'")
    inputs, additive = [], []
    for operand in left.split(","):
        operand = operand.strip()
        optional = operand.startswith("[") and operand.endswith("]")
        inputs.append(tuple(operand.strip("[]").split()))
        additive.append(optional)
    known = {letter for operand in inputs for letter in operand}
    output = tuple(right.split())
    for letter in output:
        if letter not in known:
            raise ValueError(f"pattern {text!r}: {letter!r} on the right is in no operand")
    return Pattern(text, tuple(inputs), tuple(additive), output)


def apply_pattern(site: Site, pattern: Pattern, nodes: Sequence[fx.Node | None]) -> Dims:
    """State what a pattern says of the given operands and return the dims of the result."""
    letters: dict[str, Dim] = {}
    having: dict[str, list[int]] = {}
    ellipses: list[Dims] = []
    stretched: list[int] = []
    present = [node for node in nodes if node is not None]
    place = -1
    for node, names in zip(nodes, pattern.inputs, strict=True):
        if node is None:
            continue
        place += 1
        dims = site.dims(node)
        named = [n for n in names if n != "..."]
        if "..." in names:
            at = names.index("...")
            count = len(dims) - len(named)
            ellipses.append(dims[at : at + count])
            stretched.append(place)
            dims = dims[:at] + dims[at + count :]
        for name, dim in zip(named[len(named) - len(dims) :], dims, strict=True):
            if not is_one(dim.size):
                having.setdefault(name, []).append(place)
            if name not in letters or is_one(letters[name].size):
                letters[name] = dim
            elif not is_one(dim.size):
                site.equate(letters[name], dim)
    shared = site.broadcast(ellipses)
    site.carried(shared, ellipses, stretched)
    site.record.carried += [(letters[n], tuple(having.get(n, ()))) for n in pattern.output if n != "..."]
    additive = [a for a, node in zip(pattern.additive, nodes, strict=True) if node is not None]
    product = [i for i, a in enumerate(additive) if not a]
    added = [i for i, a in enumerate(additive) if a]

    def term(values: list[Value]) -> Value:
        return multiply(values[i] for i in product)

    site.operands(*present, transfer=lambda values: add([term(values), *(values[i] for i in added)]))
    contracted = [name for name in letters if name not in pattern.output]
    for name in contracted:
        site.contracts(letters[name], term, carriers=tuple(having.get(name, ())))
        site.role("contracted", letters[name])
    if "..." not in pattern.output:
        for i, dim in enumerate(reversed(shared), start=1):
            axes = [(place, dims[-i]) for place, dims in zip(stretched, ellipses, strict=True) if len(dims) >= i]
            site.contracts(dim, term, carriers=tuple(place for place, axis in axes if not is_one(axis.size)))
    triples = zip(nodes, pattern.inputs, pattern.additive, strict=True)
    factors = [(node, names) for node, names, added in triples if not added]
    if len(factors) == 2 and all(node is not None for node, _ in factors):
        (left, right), (lefts, rights) = zip(*factors, strict=True)
        site.attends(left, right, [letters[n] for n in contracted],
                     [*shared, *(letters[n] for n in lefts if n in rights and n in pattern.output and n != "...")],
                     [letters[n] for n in pattern.output if n != "..." and (n in lefts) != (n in rights)])  # fmt: skip
    return tuple(d for name in pattern.output for d in (shared if name == "..." else (letters[name],)))


def pattern(target: Any, text: str, *, samples: Any = None) -> None:
    """Register a line of notation as the rule of a contraction."""
    parsed = parse(text)

    @rule(target, samples=samples or functools.partial(_pattern_samples, target, parsed))
    def apply(site: Site) -> Dims:
        return apply_pattern(site, parsed, site.tensors())


def _pattern_samples(target: Any, parsed: Pattern) -> Iterable[tuple[Any, ...]]:
    """Calls of the operator with a distinct size for each letter, with and without optional operands."""
    names = sorted({n for operand in parsed.inputs for n in operand if n != "..."})
    sizes = dict(zip(names, (4, 6, 5, 7, 3), strict=False))
    for batch in ((2, 3), (2,)) if any("..." in operand for operand in parsed.inputs) else ((),):
        shapes = [[s for n in operand for s in (batch if n == "..." else (sizes[n],))] for operand in parsed.inputs]
        tensors = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
        yield target, tuple(tensors), {}
        if parsed.additive[-1]:
            yield target, tuple(tensors[:-1]), {}
