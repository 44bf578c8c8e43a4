"""``assert_sound``: for users' own test-suites."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from shearfx.analysis import trace
from shearfx.attributes import settle
from shearfx.bundles import Bundle, bundles
from shearfx.errors import PlanError, SoundnessError, message
from shearfx.graph import Graph
from shearfx.pruning_plan import of_cuts
from shearfx.testing.plans import SOUND, plan_of, prunable, random_cuts, random_tied_cuts, steps
from shearfx.verification import verify

Cuts = dict[str, list[int]]


@dataclass(frozen=True)
class Soundness:
    """What :func:`assert_sound` found."""

    plans: int
    """How many random plans were verified."""
    coverage: float
    """Share of the parameters that exact and compensated groups reach."""
    groups: int
    """How many groups can be cut."""
    max_relative_error: float
    moved: float
    """The furthest that a plan moved the output, relative to it: a test that moves nothing shows nothing."""


def assert_sound(
    model: nn.Module,
    *inputs: Any,
    plans: int = 20,
    seed: int = 0,
    form: str = "fx",
    **kwargs: Any,
) -> Soundness:
    """Verify by random plans that cutting ``model`` computes what zeroing the same structures computes.

    Every plan cuts random structures of all exact and compensated groups together; masked and sliced outputs must
    agree to 1e-10 of the largest output, in float64.

    Args:
        model: any module; left as it was.
        inputs, kwargs: an example call.
        plans: how many random plans.
        seed: of the plans; the same seed makes the same plans.
        form: ``"fx"``, or ``"module"``: random structures of all groups that the original class can express, in the
            original class and in the fx form.

    Returns:
        What was verified; print it, a coverage near zero means that little was.

    Raises:
        SoundnessError: a cut differs; the message names the smallest plan that still does.
        PlanError: nothing is prunable, so nothing would be tested; the message says what pins most, or why the class
            can express none of what is exact or compensated.
        TraceError: the model does not export.
    """
    if form not in ("fx", "module"):
        raise PlanError(message(f"there is no form {form!r}", todo='choose "fx" or "module"'))
    graph = trace(model, *inputs, **kwargs)
    groups = prunable(graph)
    if not groups:
        raise PlanError(_nothing(graph, model))
    tied = bundles(graph, model) if form == "module" else []
    if form == "module" and not any(map(steps, tied)):
        raise PlanError(_inexpressible(tied, model))
    rng = random.Random(seed)
    worst = moved = 0.0
    verified = 0
    refusal: PlanError | None = None

    def check(cuts: Cuts) -> tuple[float, float]:
        plan = plan_of(graph, cuts) if form == "fx" else settle(model, graph, of_cuts(graph, cuts))
        report = verify(model, plan, *inputs, graph=graph, **kwargs)
        return report.max_relative_error, report.moved

    for _ in range(plans):
        cuts = random_cuts(graph, rng) if form == "fx" else random_tied_cuts(tied, rng)
        try:
            error, far = check(cuts)
        except SoundnessError as found:
            raise _smallest(graph, model, cuts, check, found) from found
        except PlanError as unable:
            if form == "fx":
                raise
            refusal = unable  # a cut so far down that the class cannot hold it is refused, which is sound
            continue
        verified += 1
        worst, moved = max(worst, error), max(moved, far)
    if refusal is not None and not verified:
        raise refusal
    if moved == 0.0:
        warnings.warn(f"no plan of {plans} moved an output of {type(model).__name__}", stacklevel=2)
    return Soundness(verified, graph.coverage, len(groups), worst, moved)


def minimal(cuts: Cuts, sizes: dict[str, int], fails: Callable[[Cuts], bool]) -> Cuts:
    """The smallest failing plan that is found greedily: groups dropped one by one, then structures given back."""
    for name in list(cuts):
        without = {n: kept for n, kept in cuts.items() if n != name}
        if without and fails(without):
            cuts = without
    for name in list(cuts):
        for index in range(sizes[name]):
            more = sorted({*cuts[name], index})
            if index not in cuts[name] and len(more) < sizes[name] and fails({**cuts, name: more}):
                cuts = {**cuts, name: more}
    return cuts


def _smallest(
    graph: Graph, model: nn.Module, cuts: Cuts, check: Callable[[Cuts], Any], found: SoundnessError
) -> SoundnessError:
    last = found

    def fails(candidate: Cuts) -> bool:
        nonlocal last
        try:
            check(candidate)
        except SoundnessError as error:
            last = error
            return True
        except PlanError:
            return False  # groups that the class can only cut together
        return False

    smallest = minimal(cuts, {g.name: g.size for g in graph.groups}, fails)
    what = "\n".join(f"    {_described(graph, name)}: kept {kept}" for name, kept in smallest.items())
    return SoundnessError(
        message(
            f"cutting differs from zeroing:\n{what}\n  {str(last).splitlines()[0]}",
            where=f"{type(model).__name__}, coverage {graph.coverage:.0%}",
            todo="report it with the model; until then exclude the group by name",
        )
    )


def _described(graph: Graph, name: str) -> str:
    group = next(g for g in graph.groups if g.name == name)
    return f"{name} ({group.kind} of {group.size}, {group.certificate})"


def _inexpressible(tied: Sequence[Bundle], model: nn.Module) -> str:
    exact = [bundle for bundle in tied if all(g.certificate in SOUND for g in bundle.groups)]
    refused = next((bundle for bundle in exact or tied if not bundle.expressible), None)
    others = sum(bundle.expressible for bundle in tied if bundle not in exact)
    what = f"{type(model).__name__} can express no exact cut in its own class"
    if others:
        what += f", only {others} that {'is' if others == 1 else 'are'} approximate"
    if refused is not None:
        what += f": {refused.reason}"
    return message(what, where=refused.where if refused is not None else "", todo='choose form="fx"')


def _nothing(graph: Graph, model: nn.Module) -> str:
    counts = Counter(pin.reason for pin in graph.pins)
    reasons: Sequence[str] = [f"{reason} ({count})" for reason, count in counts.most_common(3)]
    approximate = sum(g.certificate == "approximate" for g in graph.groups)
    return message(
        f"nothing in {type(model).__name__} can be cut exactly, so there is nothing to verify",
        where=f"{approximate} groups are approximate; pinned: " + "; ".join(reasons),
        todo="look at graph.pins of shearfx.trace(model, ...)",
    )
