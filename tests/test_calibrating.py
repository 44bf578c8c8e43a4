"""Scores scaled to measured losses: they add up to what was measured, by kind or by node group."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import shearfx
from shearfx.errors import PlanError
from shearfx.knowledge import KnowledgeDistribution, Row, factors, name_of
from shearfx.knowledge.calibrating import FURTHEST
from shearfx.knowledge.trials import choose
from shearfx.selection import Selection, Tied, select
from tests.tiny_runs import Runs, tiny_llama, write_model, write_text

FULL = 2.0


@functools.cache
def node_groups() -> tuple[Tied, ...]:
    model = tiny_llama()
    graph = shearfx.trace(model, input_ids=torch.tensor([[5, 9, 200, 31]]), use_cache=False)
    return tuple(select(graph, model, Selection(form="fx"))[0])


def measured(losses: dict[str, float], shut: dict[str, int]) -> KnowledgeDistribution:
    rows = tuple(
        Row(name_of(one), tuple(g.name for g in one.groups), one.kind, 0, 0.5, shut[name_of(one)], one.groups[0].size,
            0.1, FULL + losses[name_of(one)], 1.0, 1.0, 1.0, None)
        for one in node_groups()
    )  # fmt: skip
    return KnowledgeDistribution(rows, FULL, 100.0, 1, (0.5,))


@given(st.data(), st.sampled_from(["kinds", "groups"]))
def test_scaled_scores_add_up_to_what_was_measured(data: st.DataObject, by: Literal["kinds", "groups"]) -> None:
    tied = node_groups()
    seed = data.draw(st.integers(0, 10))
    draw = torch.Generator().manual_seed(seed)
    scores = {g.name: torch.rand(g.size, generator=draw, dtype=torch.float64) + 0.1 for one in tied for g in one.groups}
    shut = choose(tied, scores, (0.5,))
    foretold = {}
    for one in tied:
        gone = zip(one.groups, shut[name_of(one)][0], strict=True)
        foretold[name_of(one)] = sum(float(scores[group.name][out].sum()) for group, out in gone)
    # at most three times more or less than foretold: nowhere near the limit
    losses = {name: data.draw(st.floats(0.5, 1.5)) * value for name, value in foretold.items()}
    found = factors(measured(losses, dict.fromkeys(losses, 1)), tied, scores, by)
    assert set(found) == set(scores)
    names: dict[str, list[Tied]] = {}
    for one in tied:
        names.setdefault(one.kind if by == "kinds" else name_of(one), []).append(one)
    for same in names.values():
        scaled = sum(found[one.groups[0].name] * foretold[name_of(one)] for one in same)
        assert scaled == pytest.approx(sum(losses[name_of(one)] for one in same), rel=1e-9)


def test_a_loss_that_falls_makes_no_score_negative() -> None:
    tied = node_groups()
    scores = {g.name: torch.ones(g.size, dtype=torch.float64) for one in tied for g in one.groups}
    losses = {name_of(one): 10.0 for one in tied} | {name_of(tied[0]): -1.0}
    by_group = factors(measured(losses, dict.fromkeys(losses, 1)), tied, scores, "groups")
    by_kind = factors(measured(losses, dict.fromkeys(losses, 1)), tied, scores, "kinds")
    first = tied[0].groups[0].name
    assert by_group[first] == pytest.approx(by_kind[first] / FURTHEST)
    assert all(factor > 0 for factor in by_group.values())
    fell = factors(measured(dict.fromkeys(losses, -1.0), dict.fromkeys(losses, 1)), tied, scores, "groups")
    assert all(factor > 0 for factor in fell.values())


def test_a_run_goes_by_what_it_measured(tmp_path: Path) -> None:
    runs = Runs(write_model(tmp_path / "model"), write_text(tmp_path / "text.txt"))
    sheared = runs(tmp_path / "run", calibrate="groups", ratio=0.3)
    found = KnowledgeDistribution.from_json((tmp_path / "run" / "knowledge.json").read_text())
    assert {row.kind for row in found.rows} == {"ffn"}
    assert sheared.plan.achieved == pytest.approx(0.3, abs=0.02)
    again = runs(tmp_path / "run", resume=True, calibrate="groups", ratio=0.3)
    assert again.plan.to_json() == sheared.plan.to_json()


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"calibrate": "kinds", "saliency": "magnitude"}, "no losses"),
        ({"calibrate": "kinds", "prune_share": 0.5}, "go at once"),
        ({"calibrate": "layers"}, "one of none, kinds, groups"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(tmp_path: Path, asked: dict[str, Any], match: str) -> None:
    runs = Runs(write_model(tmp_path / "model"), write_text(tmp_path / "text.txt"))
    with pytest.raises(PlanError, match=match):
        runs(tmp_path / "run", **asked)
