"""Properties that hold for every model: tested on random architectures and random plans.

The common run takes a few dozen examples a property; ``SHEARFX_EXAMPLES=3000 pytest -m slow tests/test_properties.py``
takes as many as are asked for. A failing example prints as code: keep it in ``test_regressions.py``.
"""

import os
import random
import time
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import nn

import shearfx
from shearfx.comparison import TOLERANCE, relative_error
from shearfx.errors import PlanError
from shearfx.graph import Graph, Group, kept_mask
from shearfx.slicing import cut_named
from shearfx.testing import Architecture, architectures, plans, prunable, random_cuts
from shearfx.testing.blocks import Act
from shearfx.testing.heads import Attention
from shearfx.testing.plans import plan_of

RENAMED = Architecture(
    "tokens",
    4,
    (Act("abs"), Attention(2, 4, 2, 4, "grouped", "matmul", "expand", "", norm=True, causal=False, bias=False)),
    "linear",
    0,
)
"""Cut to one key-value head, its other groups take each other's names."""

LONG = int(os.environ.get("SHEARFX_EXAMPLES", "1000"))
SECONDS = 30.0
"""The longest that tracing, analysing, cutting and comparing one random architecture may take."""


def analysed(architecture: Architecture) -> tuple[nn.Module, tuple[torch.Tensor, ...], Graph]:
    module = architecture.build()
    inputs = architecture.inputs()
    with torch.no_grad():
        assume(bool(torch.isfinite(module(*inputs)).all()))  # the traps may divide by zero of their own accord
    return module, inputs, shearfx.trace(module, *inputs)


def run(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [module(*inputs)]


def check_sound(architecture: Architecture, data: st.DataObject) -> str:
    """All that must hold of one architecture and one plan; says how it ended."""
    start = time.process_time()
    module, inputs, graph = analysed(architecture)
    assert not [pin for pin in graph.pins if "failed" in pin.reason], "a rule raised an exception"
    outcome = "nothing prunable"
    if prunable(graph):
        plan = data.draw(plans(graph))
        assert shearfx.PruningPlan.from_json(plan.to_json()) == plan
        report = shearfx.verify(module, plan, *inputs, graph=graph)
        assert report.max_relative_error <= TOLERANCE
        if plan.cuts:
            assert plan.achieved > 0
            wider = architecture.inputs(batch=3, time=5 if architecture.input == "words" else 3)
            if not graph.traced.specialised:
                shearfx.verify(module, plan, *wider, graph=graph)
        outcome = "whole" if not plan.cuts else "moved" if report.moved else "unmoved"
    assert time.process_time() - start < SECONDS
    return outcome


@settings(max_examples=25)
@given(st.data())
def test_cutting_is_zeroing(data: st.DataObject) -> None:
    check_sound(data.draw(architectures(max_blocks=3)), data)


@pytest.mark.slow
@settings(max_examples=LONG)
@given(st.data())
@pytest.mark.timeout(0)
def test_cutting_is_zeroing_long(data: st.DataObject) -> None:
    check_sound(data.draw(architectures(max_blocks=4)), data)


def test_the_properties_are_not_vacuous() -> None:
    """Most random architectures can be cut, and most cuts move the output: else sound would mean little."""
    outcomes: Counter[str] = Counter()

    @settings(max_examples=20, database=None)
    @given(architectures(max_blocks=3))
    def count(architecture: Architecture) -> None:
        module, inputs, graph = analysed(architecture)
        cuts = random_cuts(graph, random.Random(0))
        if not cuts:
            outcomes["nothing"] += 1
            return
        masked = shearfx.mask(module, plan_of(graph, cuts))
        outcomes["moved" if relative_error(run(module, inputs), run(masked, inputs)) > 1e-6 else "unmoved"] += 1

    count()
    assert outcomes["moved"] > 0.6 * sum(outcomes.values()), outcomes


@settings(max_examples=8)
@given(architectures(max_blocks=2), st.integers(0, 99))
@example(Architecture("words", 4, (Act("abs"),), "tied", 0), 0)
def test_construct_commutes_with_loading(architecture: Architecture, seed: int) -> None:
    """Cutting a model loaded with weights is loading the cut model with the cut weights."""
    module, inputs, graph = analysed(architecture)
    cuts = random_cuts(graph, random.Random(seed))
    assume(cuts)
    plan = plan_of(graph, cuts)
    other = Architecture(architecture.input, architecture.width, architecture.blocks, architecture.head, 77).build()
    weights = other.state_dict()
    small = shearfx.construct(module, plan, form="fx")
    missing, unexpected = small.load_state_dict({n: cut_named(n, t, plan) for n, t in weights.items()}, strict=False)
    assert not unexpected and all(name not in weights for name in missing)
    module.load_state_dict(weights)
    again = shearfx.construct(module, plan, form="fx")
    (name,) = graph.traced.inputs
    with torch.no_grad():
        assert torch.equal(small(**{name: inputs[0]}), again(**{name: inputs[0]}))


def same(group: Group, left: Group, stay: list[int], graph: Graph, cuts: dict[str, list[int]]) -> bool:
    """Whether a group of a cut model is what the cut left of a group of the original."""
    if left.size != len(stay) or [(m.name, m.dim) for m in group.members] != [(m.name, m.dim) for m in left.members]:
        return False
    masks = {
        g.atom: torch.isin(torch.arange(g.size), torch.tensor(cuts[g.name])) for g in graph.groups if g.name in cuts
    }
    for member, after in zip(group.members, left.members, strict=True):
        keeps = kept_mask(member.term, masks)
        position = keeps.cumsum(0) - 1
        rows = [position[row[keeps[row]]].tolist() for row in member.indices[stay]]
        if rows != after.indices.tolist():
            return False
    return True


@settings(max_examples=8)
@given(architectures(max_blocks=2), st.integers(0, 99))
@example(RENAMED, 92)
def test_two_cuts_equal_one(architecture: Architecture, seed: int) -> None:
    """Cutting what is left of a cut model is cutting both at once."""
    module, inputs, graph = analysed(architecture)
    rng = random.Random(seed)
    first, then = random_cuts(graph, rng), random_cuts(graph, rng)
    assume(first)
    (name,) = graph.traced.inputs
    small = shearfx.construct(module, plan_of(graph, first), form="fx")
    call: dict[str, Any] = {name: inputs[0]}
    regraph = shearfx.trace(small, **call)
    both: dict[str, list[int]] = dict(first)
    second: dict[str, list[int]] = {}
    left = {group.name: group for group in regraph.groups if group.certificate in ("exact", "compensated")}
    for group in graph.groups:
        stay = first.get(group.name, list(range(group.size)))
        keep = [i for i in stay if i in then.get(group.name, stay)]
        # a group of which one structure is left is no group any more, and another may go by its name
        if keep and len(keep) < len(stay) and group.name in left and same(group, left[group.name], stay, graph, first):
            second[group.name] = [stay.index(i) for i in keep]
            both[group.name] = keep
    assume(second)
    twice = shearfx.construct(small, plan_of(regraph, second), form="fx", graph=regraph)
    once = shearfx.construct(module, plan_of(graph, both), form="fx", graph=graph)
    with torch.no_grad():
        assert relative_error([once(**{name: inputs[0]})], [twice(**{name: inputs[0]})]) <= TOLERANCE


@settings(max_examples=8)
@given(architectures(max_blocks=2), st.integers(0, 99))
def test_the_original_class_is_sound_where_it_can_hold_the_cut(architecture: Architecture, seed: int) -> None:
    """What ``plan(form="module")`` admits computes the same in the original class."""
    module, inputs, graph = analysed(architecture)
    assume(prunable(graph))
    try:
        plan = shearfx.plan(graph, ratio=0.2, saliency="random", model=module, form="module")
    except PlanError:
        assume(False)
    report = shearfx.verify(module, plan, *inputs, graph=graph)
    assert report.module_error is not None and report.module_error <= TOLERANCE


class _Reshapes(nn.Module):
    """A chain of views of one linear layer's features, the sizes chosen by an adversary."""

    def __init__(self, width: int, shapes: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.up, self.down, self.shapes = nn.Linear(3, width), nn.Linear(width, 2), shapes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.up(x)
        for shape in self.shapes:
            y = y.reshape(-1, *shape)
            y = y.transpose(1, -1).flatten(1) if sum(shape) % 2 else y.flatten(1)
        result: torch.Tensor = self.down(y)
        return result


@st.composite
def _factorings(draw: st.DrawFn, width: int) -> tuple[int, ...]:
    sizes = []
    while width > 1:
        size = draw(st.sampled_from([d for d in range(2, width + 1) if width % d == 0]))
        sizes.append(size)
        width //= size
    return tuple(sizes)


@settings(max_examples=8)
@given(st.sampled_from((12, 24, 36, 60, 64)).flatmap(lambda w: st.tuples(
    st.just(w), st.lists(_factorings(w), min_size=1, max_size=8).map(tuple))), st.integers(0, 9))  # fmt: skip
def test_chains_of_reshapes_end(case: tuple[int, tuple[tuple[int, ...], ...]], seed: int) -> None:
    module = _Reshapes(*case).double().eval()
    x = torch.randn(2, 3, dtype=torch.float64)
    start = time.process_time()
    graph = shearfx.trace(module, x)
    assert sum(graph.seconds.values()) < 5
    cuts = random_cuts(graph, random.Random(seed))
    if cuts:
        shearfx.verify(module, plan_of(graph, cuts), x, graph=graph)
    assert time.process_time() - start < SECONDS
