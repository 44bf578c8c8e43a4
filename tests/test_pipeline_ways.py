"""Ways of asking a run for something else: each does what its option says, and nothing besides."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import shearfx
from shearfx.config import ShearConfig
from shearfx.pipeline import Sheared, Silent
from shearfx.pipeline.stages import recover_model
from shearfx.pipeline.study import device_for, dtype_of
from tests.tiny_runs import WORDS, Runs, options, tiny_llama, write_model, write_text
from tests.tiny_tokenizers import byte_tokenizer


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("ways")
    return Runs(write_model(folder / "model"), write_text(folder / "text.txt"))


@pytest.fixture(scope="module")
def plain(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Sheared:
    """A run with nothing special."""
    return runs(tmp_path_factory.mktemp("plain") / "run", saliency="magnitude", compensation="none")


def events(run: Path, name: str) -> list[dict[str, Any]]:
    """The lines of a run's metrics of one kind."""
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == name]


def far(one: nn.Module, other: nn.Module) -> float:
    """How far the weights of two models are from each other, relative to their length."""

    def flat(model: nn.Module) -> Tensor:
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    return float((flat(one) - flat(other)).norm() / flat(other).norm())


CHAT = (
    "{% for m in messages %}{{ m.role[0] + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}a{% endif %}"
)
"""Short enough for windows of a few dozen bytes."""


@pytest.mark.usefixtures("plain")  # the model is analysed by then, as it lies in its folder
def test_instructions_come_after_text(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Algorithm 5, line 2: both stages learn, and both sources are judged all along."""
    monkeypatch.setattr("tests.tiny_runs.byte_tokenizer", lambda: byte_tokenizer(chat=CHAT))
    draw = random.Random(1)
    records = [{"prompt": f"{word}?", "completion": " ".join(draw.choices(WORDS, k=12))} for word in 20 * WORDS]
    (tmp_path / "asked.json").write_text(json.dumps(records))
    sheared = runs(
        tmp_path / "run", tiny_llama(), instruct=(str(tmp_path / "asked.json"),), tokens=12 * 128, sequence_length=64,
        rounds=2, saliency="magnitude", compensation="none", tolerance=0.0, lr=0.01,
    )  # fmt: skip
    stages = [line["stage"] for line in events(sheared.path, "recover")]
    assert len(stages) == 12 and stages == sorted(stages, reverse=True) and set(stages) == {"pretrain", "instruct"}
    rounds = events(sheared.path, "round")
    for stage, source in (("pretrain", "text"), ("instruct", "asked")):
        first, *_, last = [one for one in rounds if one["stage"] == stage]
        assert first["losses"].keys() == {source} and last["losses"][source] < first["losses"][source]
        for when in ("dense", "cut", "recover"):
            assert source in sheared.record[when]["losses"]


def test_the_papers_recipe_leaves_unprunable_groups_whole(runs: Runs, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"recipe": "paper", "gamma": 0.5, "min_tokens": 0}
    sheared = runs(tmp_path / "run", ratio=0.1, tokens=12 * 64, periods=2, **asked)
    assert ShearConfig.read(sheared.path / "config.yaml").carrier == "weights"
    (whole,) = sheared.record["knowledge"]["unprunable"]
    (cut,) = sheared.plan.cuts
    account = json.loads((sheared.path / "groups.json").read_text())["groups"]
    assert [g["name"] for g in account if g["why"].startswith("unprunable")] == [whole] != [cut.name]
    weight = whole.rpartition(":")[0]
    assert sheared.model.get_parameter(weight).shape == tiny_llama().get_parameter(weight).shape
    assert sheared.model.get_parameter(cut.name.rpartition(":")[0]).shape[1] == len(cut.kept) < cut.size


def recovered(runs: Runs, cut: Path, out: Path, **more: Any) -> nn.Module:
    """Recovery of a cut model by itself."""
    config = ShearConfig.of_mapping(options(runs.text, **more))
    recover_model(str(cut), str(runs.model), out, config, Silent())
    return shearfx.load(out / "model")


def test_two_microbatches_are_one_batch_of_twice_the_size(runs: Runs, plain: Sheared, tmp_path: Path) -> None:
    """Of text, whose windows all have as many labels; a budget of tokens is then as many steps."""
    asked: dict[str, Any] = {"tokens": 8 * 4 * 32, "rounds": 2, "tolerance": 0.0, "distill": 0.5}
    once = recovered(runs, plain.path / "cut", tmp_path / "once", batch_size=4, **asked)
    twice = recovered(runs, plain.path / "cut", tmp_path / "twice", batch_size=2, accumulate=2, **asked)
    losses = [[line["loss"] for line in events(tmp_path / name, "recover")] for name in ("once", "twice")]
    assert len(losses[0]) == 8 and losses[1] == pytest.approx(losses[0], rel=1e-5)  # float32: another order of sums
    moved = far(once, shearfx.load(plain.path / "cut"))
    assert far(twice, once) < 1e-3 * moved
    less = recovered(runs, plain.path / "cut", tmp_path / "less", batch_size=2, **asked)
    assert len(events(tmp_path / "less", "recover")) == 16 and far(less, once) > 0.1 * moved


def test_recomputed_activations_change_nothing(runs: Runs, tmp_path: Path) -> None:
    """Bit for bit: gates, what Fisher information collects at them, distillation, dropout, and recovery."""
    asked: dict[str, Any] = {"prune_share": 0.5, "periods": 2, "tokens": 12 * 64, "distill": 0.5, "dropout": 0.1,
                             "fitting_windows": 2}  # fmt: skip
    kept = runs(tmp_path / "kept", **asked)
    again = runs(tmp_path / "again", gradient_checkpointing=True, **asked)
    assert kept.plan.cuts == again.plan.cuts
    for (name, mine), theirs in zip(kept.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


def test_a_ratio_without_embeddings_is_of_the_rest(runs: Runs, tmp_path: Path) -> None:
    sheared = runs(
        tmp_path / "run", of="without_embeddings", ratio=0.3, tokens=0, saliency="magnitude", compensation="none"
    )
    dense, cut = sheared.record["dense"], sheared.record["cut"]
    rest = sum(p.numel() for name, p in tiny_llama().named_parameters() if "embed_tokens" not in name)
    assert dense["without_embeddings"] == rest
    assert 1 - cut["without_embeddings"] / rest == pytest.approx(0.3, abs=96 / rest)  # a structure has 96
    assert dense["parameters"] - cut["parameters"] == rest - cut["without_embeddings"]


@pytest.mark.parametrize("native", [True, False])
def test_on_a_cpu_dtype_and_device_follow_the_machine(
    native: bool, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bfloat16 where the processor computes in it; what is saved is in the model's own precision all the same."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    wanted = torch.bfloat16 if native else torch.float32
    assert device_for("auto").type == "cpu" and dtype_of("auto", tiny_llama(), device_for("auto")) == wanted
    assert dtype_of("auto", tiny_llama().bfloat16(), device_for("auto")) == wanted  # not imitated, ten times slower
    if not native:
        return
    sheared = runs(tmp_path / "run", dtype="auto", device="auto", saliency="magnitude", compensation="none")
    assert sheared.record["dense"]["dtype"] == str(wanted) and sheared.record["memory"]["on"] == "cpu"
    assert {p.dtype for p in sheared.model.parameters()} == {torch.float32}
    named = runs(tmp_path / "named", dtype="bfloat16", device="cpu", saliency="magnitude", compensation="none")
    assert far(sheared.model, named.model) == 0
