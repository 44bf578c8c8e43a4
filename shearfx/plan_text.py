"""Terms and sets of indices as text: the notation of a plan's JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from shearfx.dims import Atom, Dim, Prod, Sum, concat, prod
from shearfx.graph import mentions

LONGEST = 2**16
"""Characters of a term. Those of models have a few hundred at most; a stranger's may be meant to take forever."""


def format_term(dim: Dim, names: Mapping[Atom, int]) -> str:
    """A term over numbered atoms as text; everything else by its size."""
    if not mentions((dim,)) & names.keys():
        return str(dim.size)
    if isinstance(dim, Atom):
        return f"#{names[dim]}"
    if isinstance(dim, Prod):
        inner = (f"({format_term(f, names)})" if isinstance(f, Sum) else format_term(f, names) for f in dim.factors)
        return "*".join(inner)
    assert isinstance(dim, Sum)
    return "+".join(format_term(p, names) for p in dim.parts)


def parse_term(text: str, atoms: list[Atom]) -> Dim:
    """The reverse of :func:`format_term`.

    Raises:
        ValueError: the text is no term.
    """
    tokens = re.findall(r"#\d+|\d+|[*+()]", text[: LONGEST + 1])
    if "".join(tokens) != text or not 0 < len(text) <= LONGEST:
        raise ValueError(f"not a term: {text[:100]!r}")
    tokens.append("")
    at = 0

    def total() -> Dim:
        nonlocal at
        parts = [product()]
        while tokens[at] == "+":
            at += 1
            parts.append(product())
        return concat(parts)

    def product() -> Dim:
        nonlocal at
        factors = [factor()]
        while tokens[at] == "*":
            at += 1
            factors.append(factor())
        return prod(factors)

    def factor() -> Dim:
        nonlocal at
        token = tokens[at]
        at += 1
        if token == "(":
            inner = total()
            if tokens[at] != ")":
                raise ValueError(f"not a term: {text!r}")
            at += 1
            return inner
        if token.startswith("#"):
            if int(token[1:]) >= len(atoms):
                raise ValueError(f"no cut {token} in {text!r}")
            return atoms[int(token[1:])]
        return prod(()) if token == "1" else Atom(int(token))

    result = total()
    if tokens[at] != "":
        raise ValueError(f"not a term: {text!r}")
    return result


def to_ranges(indices: Iterable[int]) -> str:
    """``0, 1, 2, 5`` as ``0-2,5``."""
    runs: list[list[int]] = []
    for i in indices:
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def from_ranges(text: str, size: int) -> tuple[int, ...]:
    """The reverse of :func:`to_ranges`, for indices below ``size``, in order.

    Raises:
        ValueError: the text is no list of ranges, or leaves the bounds.
    """
    result: list[int] = []
    for part in text.split(",") if text else ():
        low, _, high = part.partition("-")
        first, last = int(low), int(high or low)
        if not (result[-1] if result else -1) < first <= last < size:
            raise ValueError(f"not increasing indices below {size}: {part}")
        result.extend(range(first, last + 1))
    return tuple(result)
