"""What a run cuts after LHSPG computes what the gated model computed, with what stands in for what faded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import shearfx
from shearfx.config import ShearConfig
from shearfx.errors import PlanError
from shearfx.pipeline.progressive import lengths
from tests.tiny_runs import Runs, faded_logits, write_model, write_text

IDS = torch.arange(48).reshape(3, 16) % 200


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("fading")
    return Runs(write_model(folder / "model"), write_text(folder / "text.txt"))


@pytest.mark.parametrize(
    "more",
    [
        {"compensation": True, "saliency": "compensated_fisher", "distill": 0.5},
        {"compensation": False, "saliency": "fisher"},
    ],
    ids=lambda more: ", ".join(f"{k} {v}" for k, v in more.items()),
)
def test_the_cut_model_computes_what_the_gated_one_did(runs: Runs, tmp_path: Path, more: dict[str, Any]) -> None:
    with faded_logits(IDS) as gated:
        sheared = runs(tmp_path / "run", prune_share=0.5, periods=2, tokens=10 * 2 * 32, **more)
    assert sheared.plan.achieved > 0.1
    cut = shearfx.load(tmp_path / "run" / "cut")
    with torch.no_grad():
        found = cut(input_ids=IDS).logits
    torch.testing.assert_close(found, gated[0], rtol=1e-4, atol=1e-4)  # float32


def test_weights_that_fade_are_not_refitted(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="refitted"):
        runs(tmp_path / "run", prune_share=0.5, carrier="weights", compensation=True)


def test_lhspg_by_itself_takes_all_steps_and_leaves_what_it_cut(runs: Runs, tmp_path: Path) -> None:
    sheared = runs(tmp_path / "run", prune_share=1.0, periods=3, tokens=None, steps=7)
    assert sheared.record["budget"] == {"steps": 7}
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "prune"] == list(range(1, 8))
    assert sheared.record["recover"]["losses"] == sheared.record["cut"]["losses"]
    left = shearfx.load(tmp_path / "run" / "cut").state_dict()
    assert all(torch.equal(value, left[name]) for name, value in sheared.model.state_dict().items())


@given(st.integers(1, 500), st.integers(1, 20), st.sampled_from([0.0, 0.2, 0.9]))
def test_periods_and_warm_up_take_all_steps(steps: int, periods: int, warmup: float) -> None:
    count, length = lengths(steps, ShearConfig(periods=periods, warmup=warmup))
    assert count == min(periods, steps) and length >= 1
    rest = steps - count * length
    assert 0 <= rest < max(round(warmup * steps), 0) + count or rest == round(warmup * steps)


@pytest.mark.parametrize("saliency", ["loraprune", "lora_taylor"])
def test_saliencies_of_training_are_refused_where_nothing_is_trained_before(
    saliency: str, runs: Runs, tmp_path: Path
) -> None:
    with pytest.raises(PlanError, match=r"none are trained before a cut at once(.|\n)*prune_share"):
        runs(tmp_path / "run", saliency=saliency)


def test_scores_that_are_all_equal_are_refused_before_anything_is_trained(runs: Runs, tmp_path: Path) -> None:
    def alike(self: Any, graph: Any, model: Any, *, groups: Any, **_: Any) -> dict[str, Tensor]:
        return {group.name: torch.ones(group.size) for group in groups}

    with (
        patch("shearfx.saliency.plain.Magnitude.score", alike),
        patch("shearfx.pipeline.progressive.Loop.run", side_effect=AssertionError("it trains")),
        pytest.raises(PlanError, match="all structures of every group score alike"),
    ):
        runs(tmp_path / "run", prune_share=0.5, saliency="magnitude")
