"""What LHSPG leaves alone: whatever is not fading sees exactly the plain optimiser, bit for bit, all along the run.

Source of what is asked: LoRAShear, Algorithm 4, lines 6 and 7.
"""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from shearfx.graph import Graph, Group
from shearfx.optim.choosing import Chooser, selected
from shearfx.selection import Selection, Tied
from tests.drawn_runs import Drawn, entries_of, plain, runs, same_gradients
from tests.tiny_models import tied, traced, train


def stepped(run: Drawn, model: nn.Module, opt: torch.optim.Optimizer, twin: nn.Module, other: Any, step: int) -> None:
    """One step of both by the gradients of the first, whose gates are half shut."""
    opt.zero_grad()
    run.loss(model, step).backward()
    same_gradients(model, twin)
    opt.step()
    other.step()


def a_share(draw: Any, graph: Graph, left: list[Tied]) -> int:
    """How many structures go, of those that can."""
    most = Chooser(graph, left, unit="structures").most_possible()
    assume(most > 0)
    return int(draw(st.integers(1, most)))


@settings(max_examples=25)
@given(st.data())
def test_what_shares_nothing_with_what_fades_sees_the_plain_optimiser(data: st.DataObject) -> None:
    """Only rows of B and columns of A of what was picked differ, and slices of weights that fade themselves."""
    run = data.draw(runs())
    graph = traced(run.name)[1]
    left = data.draw(st.lists(st.sampled_from(tied(run.name)), min_size=1, unique_by=lambda t: t.groups[0].name))
    model, twin = run.model(), run.model()
    opt = run.optimizer(model, tied=left, target=a_share(data.draw, graph, left), merge="never")
    other = plain([p for p in twin.parameters() if p.requires_grad], run.variant)
    gates, differs = run.fading["carrier"] == "gates", False
    for step in range(run.schedule.steps + 2):
        stepped(run, model, opt, twin, other, step)
        own = entries_of(graph, run.name, model, opt.redundant)
        for (name, mine), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
            beside = ~own[name] | (gates and "lora_" not in name)
            assert torch.equal(mine[beside], theirs[beside]), (step, name)
            differs |= not torch.equal(mine, theirs)
    assert opt.zeros and (differs or gates)


@settings(max_examples=25)
@given(st.data())
def test_what_may_not_be_cut_changes_as_the_plain_optimiser_changes_it(data: st.DataObject) -> None:
    """Groups that stay whole by module, by kind, or for what they know: no projection and no fading reaches a row."""
    run = data.draw(runs())
    base, graph = traced(run.name)
    kinds, names = sorted({t.kind for t in tied(run.name)}), [t.groups[0].name for t in tied(run.name)]
    wanted = Selection(
        kinds=tuple(data.draw(st.lists(st.sampled_from(kinds), min_size=1, unique=True))),
        exclude_kinds=tuple(data.draw(st.lists(st.sampled_from(kinds), max_size=1))),
        exclude=tuple(data.draw(st.lists(st.sampled_from(paths_of(run.name)), max_size=1))),
        unprunable=tuple(data.draw(st.lists(st.sampled_from(names), max_size=2, unique=True))), form="fx",
    )  # fmt: skip
    whole = {g.name for g in graph.groups if g.name not in names or stays(g, wanted)}
    assume(whole and set(names) - whole)
    left = selected(graph, base, wanted)
    assert not whole & {t.groups[0].name for t in left}
    model, twin = run.model(), run.model()
    opt = run.optimizer(model, tied=left, target=a_share(data.draw, graph, left), merge="never")
    other = plain([p for p in twin.parameters() if p.requires_grad], run.variant)
    rows = entries_of(graph, run.name, model, {g.name: range(g.size) for g in graph.groups if g.name in whole})
    assert any(bool(mask.any()) for mask in rows.values())
    for step in range(run.schedule.steps):
        stepped(run, model, opt, twin, other, step)
        assert not whole & {*opt.redundant, *opt.zeros, *opt.gates.groups}
        crossing = entries_of(graph, run.name, model, opt.redundant)  # where a row meets a column that may fade
        for (name, mine), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
            mask = rows[name] & ~crossing[name]
            assert torch.equal(mine[mask], theirs[mask]), (step, name)
    assert opt.zeros


def paths_of(name: str) -> list[str]:
    """All modules that have slices of groups."""
    return sorted({m.name.rpartition(".")[0] for t in tied(name) for m in t.groups[0].members})


def stays(group: Group, wanted: Selection) -> bool:
    """Whether a group is to stay whole."""
    inside = any(m.name.startswith(f"{path}.") for path in wanted.exclude for m in group.members)
    asked = group.kind in (wanted.kinds or ()) and group.kind not in wanted.exclude_kinds
    return inside or not asked or group.name in wanted.unprunable


@settings(max_examples=30)
@given(st.data())
def test_with_target_zero_and_no_merge_it_is_the_plain_optimiser(data: st.DataObject) -> None:
    run = data.draw(runs())
    model, twin = run.model(), run.model()
    opt = run.optimizer(model, target=0, merge="never")
    other = plain([p for p in twin.parameters() if p.requires_grad], run.variant)
    steps = run.schedule.steps + 1
    assert train(run.name, model, opt, steps, run.seed) == train(run.name, twin, other, steps, run.seed)
    for (name, mine), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
    assert not opt.gates.places.sites and not opt.zeros
