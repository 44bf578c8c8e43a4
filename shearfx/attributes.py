"""Which integer attributes of the original class must change, and to what, so that its code computes the cut graph.

Solved for, not looked up: try the smallest set of changes first, where the code first goes wrong; accept a set when
the re-captured module is, operator by operator, the graph that the plan asks for (``shearfx.acceptance``).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from shearfx.acceptance import Failure, UnsupportedError, difference, of_plan, of_traced
from shearfx.candidates import Variable, variables
from shearfx.capture import CaptureError, capture
from shearfx.errors import PlanError, message
from shearfx.graph import Graph
from shearfx.hollow import hollow
from shearfx.memory import Memory, memory_of
from shearfx.overlay import is_integer, read, write
from shearfx.probes import check_probe
from shearfx.pruning_plan import PruningPlan, masks_of
from shearfx.shallow import representative

MAX_TRIES = 300
"""Captures in one search; a class that needs more is refused."""

Assignment = dict[Variable, int]


@dataclass(frozen=True)
class Solution:
    """What was solved: attributes by module path, or why the original class cannot hold the cut."""

    attributes: dict[str, dict[str, int | float]] = field(default_factory=dict)
    ok: bool = True
    reason: str = ""
    where: str = ""
    tries: int = 0


def solve(model: nn.Module, graph: Graph, plan: PruningPlan, example_call: Mapping[str, Any] | None = None) -> Solution:
    """Find the attributes with which the model's own class computes what the plan asks for.

    Args:
        model: the full-size model; on meta is enough, no weight is read.
        graph: its analysis.
        plan: the cut.
        example_call: arguments by name, where they cannot be made from the graph.
    """
    memory = memory_of(model, graph, example_call)
    if memory.usable:
        return Solution(ok=False, reason=memory.usable)
    try:
        return _solve(model, graph, plan, memory)
    except PlanError as error:
        return Solution(ok=False, reason=str(error))


def _solve(model: nn.Module, graph: Graph, plan: PruningPlan, memory: Memory) -> Solution:
    if memory.graph is graph:
        return _Search(memory, memory.model, graph, plan, memory.read).run()
    # First on few layers, under all probes; then on all of them, starting from what was found.
    first = _Search(memory, memory.model, memory.graph, representative(plan, memory.graph), memory.read).run()
    if not first.ok:
        return first
    full = hollow(model, like=graph)
    kinds: dict[str, set[str]] = {}
    for path, name in memory.read:
        kinds.setdefault(type(memory.model.get_submodule(path)).__qualname__, set()).add(name)
    everywhere = {
        (path, name): value
        for path, module in full.named_modules()
        for name in sorted(kinds.get(type(module).__qualname__, ()))
        if is_integer(value := read(module, name)) and value > 1
    }
    search = _Search(memory, full, graph, plan, everywhere)
    if any(not cut.kept for cut in plan.cuts):
        # Caches and masks ask single layers, such as the first of those with full attention, which few layers may lack.
        search.probes = memory.probes_of_all(full)
    return search.run()


def solve_shallow(memory: Memory, plan: PruningPlan, probing: bool = True) -> Solution:
    """The same for a plan over the groups of the graph that is probed; with or without other calls than the user's."""
    try:
        search = _Search(memory, memory.model, memory.graph, plan, memory.read)
        if not probing:
            search.probes = []
        return search.run()
    except PlanError as error:
        return Solution(ok=False, reason=str(error))


def settle(model: nn.Module, graph: Graph, plan: PruningPlan) -> PruningPlan:
    """The plan with its attributes solved for.

    Raises:
        PlanError: the original class cannot hold the cut; the message says which line stands against it.
    """
    solution = solve(model, graph, plan)
    if not solution.ok:
        raise PlanError(
            message(
                f"{type(model).__name__} cannot express this cut in its own class: {solution.reason}",
                where=solution.where,
                todo='choose form="fx", or leave these groups whole: ' + ", ".join(sorted({c.kind for c in plan.cuts})),
            )
        )
    return settled(plan, solution)


def settled(plan: PruningPlan, solution: Solution) -> PruningPlan:
    """The plan with the attributes that were solved for."""
    return replace(plan, attributes=solution.attributes, options={"form": "module", **plan.options})


def _far(failure: Failure) -> tuple[bool, int]:
    return failure.ran, failure.rank


class _Search:
    def __init__(
        self, memory: Memory, model: nn.Module, graph: Graph, plan: PruningPlan, reads: Mapping[tuple[str, str], int]
    ) -> None:
        self.model, self.small, self.plan, self.memory = model, hollow(model, plan), plan, memory
        self.probes = memory.probes if graph is memory.graph else []
        masks = masks_of(graph, plan)
        sizes = {atom: int(mask.sum()) for atom, mask in masks.items()}
        # What mirrors a parameter's shape has been adjusted already.
        left = {
            (path, name): old for (path, name), old in reads.items()
            if read(self.small.get_submodule(path), name) == old
        }  # fmt: skip
        self.variables = variables(graph, model, left, sizes)
        self.table: dict[Any, int] = {}
        self.expected, self.module = of_plan(graph, masks, plan.shapes_after(), memory.sizes, self.table)
        # What is emptied goes by its name: in another layer it may be another matter.
        self.kinds = frozenset(cut.kind if cut.kept else cut.name for cut in plan.cuts)
        self.tried: dict[frozenset[tuple[Variable, int]], Failure | None] = {}
        self.best: tuple[Failure, Assignment] | None = None
        """The failure that came farthest: it says what really stands against the cut."""
        self.lines = False
        """Whether failures say in which line of code."""

    def run(self) -> Solution:
        for start in self._starts():
            found = self._descend(start)
            if found is not None:
                self._keep(found)
                return Solution(self._values(found), tries=len(self.tried))
        failure = Failure("")
        if self.best is not None:
            self.lines = True  # costs a third more, hence now only
            failure = self._judge(self.best[1]) or self.best[0]
        return Solution(ok=False, reason=failure.reason, where=failure.where, tries=len(self.tried))

    def _starts(self) -> Iterator[Assignment]:
        """What worked for a plan of the same kinds, then nothing."""
        known = sorted((kinds for kinds in self.memory.chosen if kinds <= self.kinds), key=len)
        remembered = {key: at for kinds in known for key, at in self.memory.chosen[kinds].items()}
        guess = {
            v: remembered[v.kind, v.attribute, v.terms] for v in self.variables
            if remembered.get((v.kind, v.attribute, v.terms)) in v.choices
        }  # fmt: skip
        if guess:
            yield guess
        yield {}

    def _descend(self, assignment: Assignment) -> Assignment | None:
        """Depth first: change what is read where the code goes wrong, fewest changes first."""
        failure = self._attempt(assignment)
        if failure is None:
            return assignment
        near = [v for v in self.variables if v not in assignment and set(v.paths) & set(failure.paths)]
        near.sort(key=lambda v: -max(len(p) for p in v.paths if p in failure.paths))
        for count in (1, 2, 3, 4):
            steps: list[tuple[int, Assignment]] = []
            for chosen in itertools.combinations(near, count):
                for values in itertools.product(*(v.choices for v in chosen)):
                    if len(self.tried) >= MAX_TRIES:
                        return None
                    step = {**assignment, **dict(zip(chosen, values, strict=True))}
                    if frozenset(step.items()) in self.tried:
                        continue
                    result = self._attempt(step)
                    if result is None:
                        return step
                    if result.rank > failure.rank:
                        steps.append((result.rank, step))
            for _, step in sorted(steps, key=lambda pair: -pair[0]):
                found = self._descend(step)
                if found is not None:
                    return found
        return None

    def _attempt(self, assignment: Assignment) -> Failure | None:
        key = frozenset(assignment.items())
        if key not in self.tried:
            self.tried[key] = self._judge(assignment)
            failure = self.tried[key]
            if failure is not None and (self.best is None or _far(failure) > _far(self.best[0])):
                self.best = failure, assignment
        return self.tried[key]

    def _judge(self, assignment: Assignment) -> Failure | None:
        before = self._write(self._values(assignment))
        try:
            failure = self._compare()
            if failure is None:
                failure = self._probe(assignment)
            return failure
        finally:
            self._write(before)

    def _compare(self) -> Failure | None:
        try:
            actual = capture(self.small, self.memory.call, lines=self.lines)
        except CaptureError as error:
            if error.partial is None:
                return Failure(str(error), error.where, error.paths)
            partial = self._difference(error.partial)
            paths = tuple(dict.fromkeys((*error.paths, *partial.paths))) if partial else error.paths
            return Failure(str(error), error.where, paths, partial.rank if partial else -1)
        return self._difference(actual)

    def _difference(self, traced: Any) -> Failure | None:
        try:
            return difference(self.expected, self.module, of_traced(traced, self.table), traced)
        except UnsupportedError as error:
            return Failure(str(error))

    def _probe(self, assignment: Assignment) -> Failure | None:
        """Other calls: a mask, other attention implementations, decoding with a cache. Once per kind of change."""
        changes = frozenset((v.kind, v.attribute, at) for v, at in assignment.items())
        key = (self.model is self.memory.model, self.kinds, changes)
        if key in self.memory.probed:
            return None
        for probe in self.probes:
            failure = check_probe(probe, self.small, self.plan, self.lines)
            if failure is not None:
                # Each costs a capture of the whole model: what goes wrong now is the first to go wrong next time.
                self.probes = sorted(self.probes, key=lambda other: other is not probe)
                return replace(failure, reason=f"{failure.reason} ({probe.name})", rank=10**9, ran=True)
        if self.probes:
            self.memory.probed.add(key)
        return None

    def _values(self, assignment: Assignment) -> dict[str, dict[str, int | float]]:
        attributes: dict[str, dict[str, int | float]] = {}
        for variable, at in assignment.items():
            for path, value in zip(variable.paths, variable.choices[at], strict=True):
                if read(self.model.get_submodule(path), variable.attribute) != value:
                    attributes.setdefault(path, {})[variable.attribute] = value
        return attributes

    def _write(self, attributes: Mapping[str, Mapping[str, int | float]]) -> dict[str, dict[str, int | float]]:
        """Set attributes; return what they were."""
        before: dict[str, dict[str, int | float]] = {}
        for path, changes in attributes.items():
            module = self.small.get_submodule(path)
            for name, value in changes.items():
                before.setdefault(path, {})[name] = read(module, name)
                write(module, name, value, path)
        return before

    def _keep(self, assignment: Assignment) -> None:
        chosen = self.memory.chosen.setdefault(self.kinds, {})
        chosen.update({(v.kind, v.attribute, v.terms): at for v, at in assignment.items()})


__all__ = ["MAX_TRIES", "Solution", "settle", "settled", "solve", "solve_shallow"]
