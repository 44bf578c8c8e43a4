"""Knowledge distribution as data: what becomes unprunable, what a share leaves possible, files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shearfx.errors import CheckpointError, PlanError
from shearfx.knowledge import KnowledgeDistribution, Row, check_possible, name_of
from shearfx.knowledge.crucial import unlike_their_like
from tests.knowledge_cases import (
    analysed,
    case,
)


def row(name: str, loss: float, *, kind: str = "ffn", share: float = 0.01, ratio: float = 0.5, kl: float = 0.1) -> Row:
    perplexity = math.exp(loss) if loss < 700 else math.inf
    deviation = perplexity - math.exp(2)
    return Row(name, (name,), kind, 1, ratio, 1, 2, share, loss, perplexity, deviation, deviation / math.exp(2), kl)


losses = st.lists(st.one_of(st.floats(1, 30), st.just(math.inf), st.just(2.0)), min_size=1, max_size=40)


def of_losses(values: Sequence[float], **more: Any) -> KnowledgeDistribution:
    return KnowledgeDistribution(tuple(row(f"g{i}", v, **more) for i, v in enumerate(values)), 2.0, 100, 1, (0.5,))


@given(losses, st.floats(0, 0.999), st.floats(0, 0.999))
def test_a_larger_gamma_leaves_more_whole(values: list[float], one: float, other: float) -> None:
    found = of_losses(values)
    less, more = (found.unprunable(gamma) for gamma in sorted((one, other)))
    assert more[: len(less)] == less
    assert len(less) == math.floor(min(one, other) * len(values) + 1e-9) < len(values)
    of = {r.name: r.loss for r in found.rows}
    left = [of[name] for name in of if name not in more]
    assert not more or min(of[name] for name in more) >= max(left)
    assert found.unprunable(0) == found.unprunable(None) == ()


def test_equal_deviations_are_taken_in_the_order_of_the_model() -> None:
    assert of_losses([3.0, 4.0, 3.0, 3.0, 2.0]).unprunable(0.6) == ("g1", "g0", "g2")
    assert of_losses([3.0] * 10).unprunable(0.3) == ("g0", "g1", "g2")  # 0.3 * 10 is 3, whatever floats say


def test_ratios_count_alike_in_logarithms() -> None:
    rows = (row("a", 2.1, ratio=0.2), row("a", 9.0), row("b", 4.0, ratio=0.2), row("b", 8.0))
    found = KnowledgeDistribution(rows, 2.0, 100, 1, (0.2, 0.5))
    assert [s.name for s in found.ranking()] == ["b", "a"]
    assert [s.deviation for s in found.ranking()] == pytest.approx([4, 3.55])


def test_kl_ranks_by_itself() -> None:
    rows = (row("a", 2.1, kl=0.5), row("b", 4.0, kl=0.1))
    found = KnowledgeDistribution(rows, 2.0, 100, 1, (0.5,))
    assert found.unprunable(0.5) == ("b",) and found.unprunable(0.5, by="kl") == ("a",)
    with pytest.raises(PlanError, match="no metric"):
        found.ranking("loss")  # type: ignore[arg-type]


@pytest.mark.parametrize("gamma", [1.0, -0.1, math.nan, "some", True])
def test_no_share_is_refused(gamma: Any) -> None:
    with pytest.raises(PlanError, match="gamma"):
        of_losses([3.0, 4.0]).unprunable(gamma)
    with pytest.raises(PlanError, match="gamma"):
        case("llama").analyse(gamma=gamma)


deviations = st.one_of(st.floats(-1, 0), st.floats(1e-6, 10), st.just(math.inf))
standings = st.lists(st.tuples(st.sampled_from("ab"), st.floats(1e-4, 0.1), deviations), min_size=1, max_size=40)


@given(standings, st.floats(1e-3, 1e3), st.floats(1e-3, 1), st.randoms())
def test_auto_never_picks_everything_and_knows_no_units(some: list[Any], by: float, share: float, mix: Any) -> None:
    named = [(f"g{i}", *one) for i, one in enumerate(some)]
    picked = unlike_their_like(named)
    for kind in {one[1] for one in named}:
        members = [one for one in named if one[1] == kind]
        assert 2 * sum(one[0] in picked for one in members) <= len(members)
    mixed = mix.sample(named, len(named))
    assert unlike_their_like(mixed) == picked
    if all(math.isfinite(d) for *_, d in named):
        # powers of two, so that no rounding moves anything across the bound
        by, share = 2.0 ** round(math.log2(by)), 2.0 ** round(math.log2(share))
        assert len(unlike_their_like([(n, k, s * share, d * by) for n, k, s, d in named]) ^ picked) <= 1


@given(st.integers(8, 40), st.randoms(use_true_random=False), st.integers(1, 3))
def test_auto_finds_what_is_unlike_its_like(count: int, draw: Any, planted: int) -> None:
    usual = [("ffn", 0.02, 0.1 * draw.uniform(0.8, 1.25)) for _ in range(count)]
    heads = [("heads", 0.004, 0.1 * draw.uniform(0.8, 1.25)) for _ in range(count)]  # five times as dear, as a kind
    crucial = [(kind, share, deviation * 10) for kind, share, deviation in draw.sample(usual + heads, planted)]
    named = [(f"g{i}", *one) for i, one in enumerate([*usual, *heads, *crucial])]
    assert unlike_their_like(named) == {f"g{2 * count + i}" for i in range(planted)}


def test_auto_does_not_take_noise_for_knowledge() -> None:
    """Deviations of a model that knows nothing: above zero as often as below."""
    draw = torch.Generator().manual_seed(0)
    picked = [len(of_losses((2 + 1e-3 * torch.randn(60, generator=draw)).tolist()).unprunable()) for _ in range(50)]
    assert sum(picked) / (60 * 50) < 0.01  # beyond three standard deviations are 0.13%, estimated ones a few more


def test_auto_leaves_nothing_whole_where_all_are_alike_or_harmless() -> None:
    assert of_losses([3.0] * 9).unprunable() == of_losses([1.9] * 9).unprunable() == ()
    assert of_losses([2.1] * 9 + [math.inf]).unprunable() == ("g9",)
    assert of_losses([2.0, 9.0]).unprunable() == ()  # two of a kind do not tell which is the odd one


@given(losses)
def test_a_distribution_survives_json(values: list[float]) -> None:
    found = of_losses(values)
    text = found.to_json()
    json.loads(text, parse_constant=lambda constant: pytest.fail(constant))
    assert KnowledgeDistribution.from_json(text) == found


def test_files_are_whole_and_named_when_they_are_something_else(tmp_path: Path) -> None:
    found = analysed("llama")
    found.save(tmp_path / "knowledge.json")
    assert KnowledgeDistribution.load(tmp_path / "knowledge.json") == found
    assert [p.name for p in tmp_path.iterdir()] == ["knowledge.json"]
    with pytest.raises(CheckpointError, match="cannot be written"):
        found.save(tmp_path / "knowledge.json" / "below.json")
    for text in ("", "[]", '{"format": "x"}', found.to_json()[:-9]):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(CheckpointError, match="no knowledge distribution"):
            KnowledgeDistribution.load(tmp_path / "other.json")


# -- what is possible ----------------------------------------------------------------------------------------


def test_a_gamma_that_leaves_too_little_is_refused_and_a_possible_one_named() -> None:
    this = case("llama")
    ranked = [s.name for s in analysed("llama").ranking()]
    graph, tied = this.graph, this.tied
    most = [check_possible(graph, tied, ranked[:n], 0.0) for n in range(len(ranked))]
    assert most == sorted(most, reverse=True) and most[-1] < most[0]
    for n in range(1, len(ranked)):
        ratio = (most[n] + most[n - 1]) / 2
        if most[n] == most[n - 1]:
            continue
        assert check_possible(graph, tied, ranked[: n - 1], ratio) == most[n - 1]
        with pytest.raises(PlanError, match="left whole") as caught:
            check_possible(graph, tied, ranked[:n], ratio)
        words = str(caught.value).split("gamma=")
        if len(words) > 1:
            gamma = float(words[1].split()[0])
            names = analysed("llama").unprunable(gamma)
            assert len(names) == n - 1 and check_possible(graph, tied, names, ratio) >= ratio


@settings(max_examples=15, deadline=None)
@given(gamma=st.floats(0, 0.99), ratio=st.floats(0, 0.9))
def test_a_share_is_refused_before_the_analysis_only_if_no_order_allows_it(gamma: float, ratio: float) -> None:
    this = case("llama")
    try:
        check_possible(this.graph, this.tied, gamma, ratio)
    except PlanError:
        names = [name_of(one) for one in sorted(this.tied, key=lambda t: t.groups[0].params * t.groups[0].size)]
        with pytest.raises(PlanError):
            check_possible(this.graph, this.tied, names[: math.floor(gamma * len(names) + 1e-9)], ratio)
    assert check_possible(this.graph, this.tied, "auto", 0.01) == check_possible(this.graph, this.tied, None, 0.01)


def test_most_of_the_model_left_whole_is_refused_before_the_analysis() -> None:
    this = case("llama")
    with pytest.raises(PlanError, match=r"pass gamma=.* or less|leave no node group whole"):
        check_possible(this.graph, this.tied, 0.95, 0.3)
    with pytest.raises(PlanError, match="no node group"):
        check_possible(this.graph, this.tied, ["nothing"], 0.1)
