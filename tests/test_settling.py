"""Where the original class holds every cut by itself but not all together: plans keep what it does hold."""

from __future__ import annotations

import functools
import io
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor, nn

import shearfx
from shearfx.attributes import Solution, solve
from shearfx.cli.plan_shown import show_plan
from shearfx.errors import PlanError
from shearfx.graph import Graph
from shearfx.pruning_plan import PruningPlan, of_cuts

WIDTHS = (20, 16, 12)


class Coupled(nn.Module):
    """Three branches. Where the first and the second are both cut, the code does something else."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(6, width) for width in WIDTHS)
        self.down = nn.ModuleList(nn.Linear(width, 6) for width in WIDTHS)

    def forward(self, x: Tensor) -> Tensor:
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(torch.relu(up(x)))
        if all(self.up.get_parameter(f"{i}.weight").shape[0] < WIDTHS[i] for i in (0, 1)):
            x = -x
        return x


@functools.cache
def coupled() -> tuple[nn.Module, Tensor, Graph]:
    torch.manual_seed(0)
    model, x = Coupled().eval(), torch.randn(3, 6)
    return model, x, shearfx.trace(model, x)


def branches(*which: int) -> list[str]:
    return [f"down.{i}.weight:1" for i in which]


def test_the_class_holds_any_two_of_these_but_the_first_and_the_second() -> None:
    """What the tests below rest on."""
    model, _, graph = coupled()
    assert [g.name for g in graph.groups] == branches(0, 1, 2)
    for pair in itertools.combinations(branches(0, 1, 2), 2):
        assert solve(model, graph, of_cuts(graph, {n: range(4) for n in pair})).ok == (pair != (*branches(0, 1),))


@pytest.mark.parametrize("unit", ["params", "flops"])
@pytest.mark.parametrize("ratio", [0.2, 0.5])
def test_what_does_not_go_together_stays_whole_and_the_rest_meets_the_ratio(ratio: float, unit: str) -> None:
    model, x, graph = coupled()
    with pytest.warns(UserWarning, match=r"left whole: down\.1\.weight:1: the class cannot express it beside"):
        plan = shearfx.plan(graph, ratio, "magnitude", model, unit=unit)  # type: ignore[arg-type]
    assert [cut.name for cut in plan.cuts] == branches(0, 2)  # the branch that saves more is kept
    assert plan.achieved == pytest.approx(ratio, abs=0.02)
    ((reason, names),) = plan.options["left_whole"].items()
    assert names == branches(1)
    assert "x = -x" in reason  # the line of the model's code
    assert shearfx.verify(model, plan, x, graph=graph).module_error is not None
    assert PruningPlan.from_json(plan.to_json()) == plan
    said = io.StringIO()
    show_plan(Console(file=said, width=100), plan)
    assert f"left whole: down.1.weight:1: {reason}" in said.getvalue()


def test_a_plan_that_the_class_holds_says_nothing_of_this(recwarn: pytest.WarningsRecorder) -> None:
    model, _, graph = coupled()
    plan = shearfx.plan(graph, 0.2, "magnitude", model, exclude=("up.0",))
    assert [cut.name for cut in plan.cuts] == branches(1, 2)
    assert "left_whole" not in plan.options
    assert not [w for w in recwarn if "left whole" in str(w.message)]


def test_a_ratio_that_is_then_out_of_reach_is_an_error_that_says_why() -> None:
    model, _, graph = coupled()
    assert shearfx.plan(graph, 0.7, "magnitude", model, form="fx").achieved > 0.6
    with pytest.raises(PlanError, match=r"0\.7 is out of reach: at most 0\.56") as caught:
        shearfx.plan(graph, 0.7, "magnitude", model)
    assert "cannot express it beside the other cuts" in str(caught.value)
    assert "down.1.weight:1" in str(caught.value)


def test_where_nothing_is_left_that_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, graph = coupled()
    monkeypatch.setattr("shearfx.settling.solve", lambda *_: Solution(ok=False, reason="no", where="here"))
    with pytest.raises(PlanError, match="nothing can be cut") as caught:
        shearfx.plan(graph, 0.2, "magnitude", model)
    assert 'the class cannot express it so deep (form="fx" can): no here: 3 groups' in str(caught.value)


# -- any combinations that do not go together -------------------------------------------------------------


class Branches(nn.Module):
    """Three wide and three narrow branches, each kind alike in all layers."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.ModuleList(nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 6)) for _ in range(3))
        self.narrow = nn.ModuleList(nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 6)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for branch in (*self.wide, *self.narrow):
            x = x + branch(x)
        return x


@functools.cache
def six() -> tuple[nn.Module, Graph]:
    torch.manual_seed(0)
    model = Branches().eval()
    return model, shearfx.trace(model, torch.randn(3, 6))


NAMES = [f"{kind}.{i}.0.bias:0" for kind in ("wide", "narrow") for i in range(3)]


@settings(max_examples=40)
@given(
    st.lists(st.frozensets(st.sampled_from(NAMES), min_size=1, max_size=3), max_size=4),
    st.sampled_from([0.1, 0.3, 0.5]),
    st.sampled_from(["global", "uniform"]),
)
@pytest.mark.filterwarnings("ignore:left whole")
def test_what_is_kept_goes_together_and_nothing_is_dropped_without_cause(
    conflicts: list[frozenset[str]], ratio: float, scope: str
) -> None:
    model, graph = six()
    assert {g.name for g in graph.groups} == {*NAMES}

    def judged(_model: nn.Module, _graph: Graph, plan: PruningPlan) -> Solution:
        cuts = {cut.name for cut in plan.cuts}
        if any(conflict <= cuts for conflict in conflicts):
            return Solution(ok=False, reason="they do not go together")
        return Solution()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shearfx.settling.solve", judged)
        patch.setattr("shearfx.settling.settle", lambda *_: pytest.fail("no culprit was found"))
        try:
            plan = shearfx.plan(graph, ratio, "magnitude", model, scope=scope)  # type: ignore[arg-type]
        except PlanError as error:
            assert conflicts
            assert "out of reach" in str(error) or "nothing can be cut" in str(error)
            assert "they do not go together" in str(error)
            return
    cuts = {cut.name for cut in plan.cuts}
    assert not any(conflict <= cuts for conflict in conflicts)
    assert plan.achieved == pytest.approx(ratio, abs=0.06)  # a step of three narrow branches saves 0.05
    dropped = [name for names in plan.options.get("left_whole", {}).values() for name in names]
    assert not cuts & {*dropped}
    assert len(dropped) == len({*dropped})
    if scope == "global":  # else layers are one
        for name in dropped:
            kind = name.partition(".")[0]
            alike = {f"{kind}.{i}.0.bias:0" for i in (0, 2)} <= {*dropped}  # then the one between goes with them
            assert alike or any(name in conflict for conflict in conflicts)
