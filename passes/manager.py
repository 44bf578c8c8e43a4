"""The pass manager: runs passes over the IR and checks the table of invariants after each.

A pass is a frozen dataclass whose fields are its options. It says what must have run before it (``requires``), does
its work in ``apply``, and names the invariants that hold from then on (``ensures``).
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from shearfx.dims import Dim
from shearfx.errors import SoundnessError, message
from shearfx.graph import Graph, mentions, show
from shearfx.rules.registry import fits


@dataclass(frozen=True)
class Pass:
    """Base class of all passes."""

    name: ClassVar[str] = "pass"
    requires: ClassVar[tuple[str, ...]] = ()
    ensures: ClassVar[tuple[str, ...]] = ()

    def apply(self, graph: Graph) -> None:
        """Do the work, in place."""
        raise NotImplementedError


def run(graph: Graph, passes: Sequence[Pass], after: Callable[[str, Graph], None] | None = None) -> Graph:
    """Run the passes in order; after each, check every invariant established so far.

    Args:
        after: called with the name of each finished pass and the graph (printing, drawing).

    Raises:
        SoundnessError: an invariant is broken; the message names the pass, the node and the dims.
    """
    done: list[str] = []
    promised: list[str] = ["lints"]
    for step in passes:
        missing = [name for name in step.requires if name not in done]
        if missing:
            raise ValueError(f"pass {step.name!r} needs {', '.join(missing)} to run first")
        start = time.perf_counter()
        with _no_collection():
            step.apply(graph)
            done.append(step.name)
            promised.extend(step.ensures)
            for invariant in dict.fromkeys(promised):
                _check(invariant, graph, step.name)
        graph.seconds[step.name] = time.perf_counter() - start
        if after is not None:
            after(step.name, graph)
    return graph


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection for the while: next to a large exported graph, it would cost more than the passes."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _check(invariant: str, graph: Graph, after: str) -> None:
    problem = INVARIANTS[invariant](graph)
    if problem:
        raise SoundnessError(
            message(
                f"invariant {invariant!r} does not hold: {problem}",
                where=f"after pass {after!r}",
                todo="this is a bug in shearfx or in a rule of yours; please report it with the model",
            )
        )


# -- invariants: each returns a description of what is wrong, or None ------------------------------------


def _lints(graph: Graph) -> str | None:
    graph.traced.graph.lint()
    return None


def _sizes_match(graph: Graph) -> str | None:
    for node, record in graph.records.items():
        value = node.meta.get("val")
        if not fits(record.dims, value):
            return f"{node.name} ({node.target}) has dims {record.dims} for {value} [{graph.source(node)}]"
    return None


def _grouped_or_pinned(graph: Graph) -> str | None:
    grouped = {g.atom for g in graph.groups}
    for name, dims in graph.tensor_dims.items():
        for axis, dim in enumerate(dims):
            for atom in mentions((dim,)):
                if (atom in grouped) == (atom.pin is not None):
                    how = "both" if atom.pin else "neither"
                    return f"dim {axis} of {name}: {show(atom)} is {how} grouped and pinned"
    return None


def _members_partition(graph: Graph) -> str | None:
    for group in graph.groups:
        for member in group.members:
            if member.atom is not group.atom or member.atom not in mentions((member.term,)):
                return f"{group.name} lists {member.name} dim {member.dim}, which does not mention it"
    claimed = {(m.name, m.dim, id(m.atom)) for g in graph.groups for m in g.members}
    for name, dims in graph.tensor_dims.items():
        for axis, dim in enumerate(dims):
            for atom in mentions((dim,)):
                if atom.pin is None and (name, axis, id(atom)) not in claimed:
                    return f"no group lists {name} dim {axis}"
    return None


INVARIANTS: dict[str, Callable[[Graph], str | None]] = {
    "lints": _lints,
    "sizes match": _sizes_match,
    "grouped or pinned": _grouped_or_pinned,
    "members partition": _members_partition,
}

__all__ = ["INVARIANTS", "Dim", "Pass", "run"]
