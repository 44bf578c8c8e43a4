"""A run that goes by a knowledge analysis from before."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from shearfx.errors import CheckpointError, PlanError, TrainingError
from shearfx.knowledge import KnowledgeDistribution, Row
from shearfx.pipeline.given import given
from tests.tiny_runs import Runs, Telling, write_model, write_text


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("tiny")
    return Runs(write_model(folder / "model"), write_text(folder / "text.txt"))


def test_what_it_found_crucial_stays_whole(runs: Runs, tmp_path: Path) -> None:
    less: dict[str, Any] = {"tokens": 0, "ratio": 0.1, "cuts": 1, "compensation": "none"}
    free = runs(tmp_path / "free", **less)
    graph = runs.known["global"][0]
    names = [group.name for group in graph.groups if group.kind == "ffn"]
    row = Row("", (), "ffn", 0, 0.5, 1, 2, 0.1, 3.0, 20.0, 1.0, 0.05, None)
    rows = [dataclasses.replace(row, name=n, groups=(n,), loss=3.0 + i) for i, n in enumerate(names)]
    found = KnowledgeDistribution(tuple(rows), 3.0, 100, 1, (0.5,), 0.5)
    found.save(file := tmp_path / "k.json")
    run = runs(tmp_path / "run", knowledge=str(file), **less)
    assert run.record["knowledge"]["unprunable"] == [names[-1]]
    assert {cut.name for cut in run.plan.cuts} == set(names[:-1]) and len(free.plan.cuts) == len(names)
    assert not runs(tmp_path / "all", knowledge=str(file), gamma=0.0, **less).record["knowledge"]["unprunable"]
    for name, wrong, match in (
        ("a", dataclasses.replace(found, rows=found.rows[1:]), f"says nothing of node group '{names[0]}'"),
        ("b", dataclasses.replace(found, rows=(dataclasses.replace(row, groups=("z",)), *rows)), "of another model"),
    ):
        wrong.save(file)
        with pytest.raises(PlanError, match=match):
            runs(tmp_path / name, knowledge=str(file), **less)
    file.write_text("{}")
    with pytest.raises(CheckpointError, match="no knowledge distribution"):
        runs(tmp_path / "c", knowledge=str(file), **less)


def test_a_text_that_the_model_cannot_foretell_is_doubted(runs: Runs, tmp_path: Path) -> None:
    """As with another model's tokenizer of a smaller vocabulary: every id is there, and nothing makes sense."""
    teller = Telling()
    runs(tmp_path / "run", teller=teller, tokens=0, cuts=1, compensation="none")
    (note,) = (note for note in teller.told if note.startswith("caution"))
    assert "does the tokenizer belong to the model" in note
    with pytest.raises(TrainingError, match=r"does the tokenizer belong to the model(.|\n)*set check_tokenizer: false"):
        runs(tmp_path / "refused", check_tokenizer=True)


@pytest.mark.parametrize(("trained", "doubted"), [("hub/other-7b", True), ("elsewhere/model", False), ("", False)])
def test_an_adapter_of_another_base_is_doubted(tmp_path: Path, trained: str, doubted: bool) -> None:
    from peft import LoraConfig, get_peft_model

    from shearfx.models import load_model
    from tests.tiny_tokenizers import byte_tokenizer

    base = load_model(str(write_model(tmp_path / "model"))).module
    wrapped = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    wrapped.peft_config["default"].base_model_name_or_path = trained
    teller = Telling()
    given(wrapped, byte_tokenizer(), teller)
    assert any("trained on hub/other-7b" in note for note in teller.told) == doubted
