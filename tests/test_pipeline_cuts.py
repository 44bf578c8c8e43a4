"""Several cuts without training, stopped among them; options that cannot act are said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from shearfx.config import ShearConfig
from shearfx.config_idle import KNOWLEDGE, RECOVERY, beside, idle
from shearfx.pipeline.scoring import Scoring
from tests.tiny_runs import Runs, Telling, options, write_model, write_text


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("tiny")
    return Runs(write_model(folder / "model"), write_text(folder / "text.txt"))


@pytest.mark.parametrize("stop", [2, 3])
@pytest.mark.parametrize(
    "more",
    [
        {"compensation": "least_squares"},
        {"compensation": "none", "calibrate": "groups", "knowledge_windows": 2},
        {"compensation": "bias", "saliency": "flap"},
    ],
    ids=["least_squares", "calibrated", "bias"],
)
def test_a_run_that_is_stopped_among_its_cuts_does_not_begin_anew(
    runs: Runs, tmp_path: Path, more: dict[str, Any], stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"tokens": 0, "cuts": 3, "ratio": 0.3} | more
    whole = runs(tmp_path / "whole", **asked)
    score, seen = Scoring._score, []

    def stopped(self: Scoring, groups: Any, cut: int = 1, of: str = "") -> Any:
        if cut == stop:
            raise KeyboardInterrupt
        return score(self, groups, cut, of)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Scoring, "_score", stopped)
        runs(tmp_path / "run", **asked)

    def counted(self: Scoring, groups: Any, cut: int = 1, of: str = "") -> Any:
        seen.append(cut)
        return score(self, groups, cut, of)

    monkeypatch.setattr(Scoring, "_score", counted)
    again = runs(tmp_path / "run", resume=True, **asked)
    assert [cut for cut in seen if cut > 1] == list(range(stop, 4))
    assert again.plan.cuts == whole.plan.cuts
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    assert not (tmp_path / "run" / "state" / "cuts").exists()


def test_what_does_nothing_is_said_and_where_there_is_nothing_to_resume(runs: Runs, tmp_path: Path) -> None:
    told = Telling()
    runs(tmp_path / "run", teller=told, resume=True, tokens=0, cuts=1, periods=3, compensation="none")
    assert f"there is no run in {tmp_path / 'run'} to go on with: a new one begins" in told.told
    notes = [note for note in told.told if "does nothing" in note]
    assert notes == ["caution: periods: 3 does nothing, as prune_share: 0 lets all structures go at once"]


def test_every_option_acts_somewhere() -> None:
    assert not idle(ShearConfig()) and not idle(ShearConfig.paper())
    assert not idle(ShearConfig.of_mapping({"recipe": "paper", "periods": 3, "merge": "period"}))
    faded = ShearConfig.of_mapping({"prune_share": 0.5, "periods": 3, "cuts": 2, "gamma": 0.1, "knowledge_windows": 4})
    assert idle(faded) == {"cuts": "prune_share: 0.5 lets structures go in periods"}
    assert set(idle(ShearConfig(merge="period", knowledge_windows=3))) == {"merge", "knowledge_windows"}
    names = set(ShearConfig.__dataclass_fields__)
    assert set(RECOVERY) <= names and set(KNOWLEDGE) <= names
    assert beside(ShearConfig(ratio=0.3, lr=1e-3, cuts=2), RECOVERY) == ["ratio", "cuts"]
    asked = ShearConfig.of_mapping(options(Path("text.txt"), knowledge_ratios=[0.3]))
    assert "knowledge_ratios" not in beside(asked, KNOWLEDGE)
