"""``shearfx layers``: what it lists, what it writes, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from shearfx.cli import app
from tests.tiny_models import llama
from tests.tiny_tokenizers import byte_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers whose vocabulary its tokenizer stays within."""
    out = tmp_path_factory.mktemp("models") / "llama"
    model = llama()
    model.resize_token_embeddings(260)  # type: ignore[operator]
    model.save_pretrained(out)  # type: ignore[operator]
    byte_tokenizer().save_pretrained(out)
    return out


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["layers", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


ONCE = ("--samples", 2, "--sequence-length", 16)


def test_a_shorter_model_is_an_ordinary_folder(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "shorter"
    code, said, _ = run(folder, "--drop", 1, *ONCE, "-o", out, "--json")
    assert code == 0
    data = json.loads(said)
    (gone,) = data["dropped"]
    distances = data["distances"]["model.layers"]["1"]
    assert gone == f"model.layers.{distances.index(min(distances))}"
    small, full = AutoModelForCausalLM.from_pretrained(out), AutoModelForCausalLM.from_pretrained(folder)
    assert (small.config.num_hidden_layers, full.config.num_hidden_layers) == (1, 2)
    lost = sum(p.numel() for p in full.parameters()) - sum(p.numel() for p in small.parameters())
    assert lost == next(layer["parameters"] for layer in data["layers"] if layer["path"] == gone)
    assert data["achieved"] == pytest.approx(lost / data["parameters"])
    stays = 1 - int(gone.rpartition(".")[2])
    left, kept = small.state_dict(), full.state_dict()
    assert torch.equal(left["model.layers.0.mlp.up_proj.weight"], kept[f"model.layers.{stays}.mlp.up_proj.weight"])
    assert "dropped whole layers of a `transformers" in (out / "README.md").read_text()


def test_the_plan_of_a_shorter_model_is_verified_and_applied_like_any(folder: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "shorter", tmp_path / "again"
    assert run(folder, "--layer", "model.layers.0", *ONCE, "-o", out)[0] == 0

    def said_by(*arguments: object) -> dict[str, Any]:
        result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
        assert result.exit_code == 0, result.output
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    checked = said_by("verify", out, "--original", folder)
    assert checked["sound"] and checked["layers_error"] <= 1e-10 < checked["moved"]
    applied = said_by("prune", folder, "--apply", out / "shearfx_plan.json", "-o", again)
    assert applied["layers"] == ["model.layers.0"] and applied["loads_with"] == "transformers"
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    other = AutoModelForCausalLM.from_pretrained(folder)
    other.model.layers[1].mlp.up_proj.weight.data += 1
    other.save_pretrained(tmp_path / "other")
    refused = CliRunner().invoke(app, ["verify", str(out), "--original", str(tmp_path / "other")])
    assert refused.exit_code == 1 and "is not what the plan makes" in refused.stderr


def test_without_anything_to_drop_it_lists(folder: Path) -> None:
    code, said, _ = run(folder, *ONCE)
    assert code == 0
    assert "model.layers" in said
    assert "goes" not in said
    assert "goes" in run(folder, "--layer", "model.layers.1", *ONCE)[1]


def test_a_ratio_that_whole_layers_do_not_make_is_met_as_near_as_can_be_and_said(tmp_path: Path) -> None:
    from tests.tiny_runs import tiny_llama

    model = tiny_llama(num_hidden_layers=6)
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    total = model.num_parameters()
    each = sum(p.numel() for p in model.model.layers[0].parameters())
    for asked, count, how in ((0.01, 1, ()), (2.4, 2, ()), (2.6, 3, ("--deepest",)), (5.9, 5, ())):
        code, said, noted = run(tmp_path / "model", "--ratio", asked * each / total, *ONCE, *how, "--json")
        data = json.loads(said)
        assert code == 0 and len(data["dropped"]) == count
        assert data["asked"] == pytest.approx(asked * each / total)
        assert data["achieved"] == pytest.approx(count * each / total)
        assert f"{count} whole layers make {count * each / total:.1%}" in noted


def test_models_without_text_have_layers_too(tmp_path: Path) -> None:
    """A vision transformer: nothing to measure on, but layers to name, and deepest ones."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_labels": 3}
    model = ViTForImageClassification(ViTConfig(**sizes, num_attention_heads=2, image_size=8, patch_size=4))
    folder = tmp_path / "vit"
    model.save_pretrained(folder)
    code, said, noted = run(folder)
    assert code == 0 and "parameters" in said and "distance" not in said
    assert "no distances, as the model has no tokenizer" in noted
    data = json.loads(run(folder, "--drop", 1, "--deepest", "--json")[1])
    (path,) = data["dropped"]
    assert path.endswith(".1") and data["distances"] == {}
    code, said, _ = run(folder, "--layer", path, "-o", tmp_path / "shorter", "--json")
    assert code == 0 and json.loads(said)["achieved"] > 0
    small = ViTForImageClassification.from_pretrained(tmp_path / "shorter")
    assert small.config.num_hidden_layers == 2
    code, _, noted = run(folder, "--drop", 1)
    assert code != 0 and "no tokenizer" in noted and "--deepest" in noted


def test_what_it_refuses(folder: Path, tmp_path: Path) -> None:
    for arguments, expected in (
        (("--drop", 1, "--layer", "model.layers.0"), "pass one of the three"),
        (("--drop", 1, "--ratio", 0.2), "pass one of the three"),
        (("-o", tmp_path / "out"), "pass one of the three"),
        (("--ratio", 1.5), "a share between 0 and 1"),
        (("--drop", 2), "cannot go in a run"),
        (("--layer", "model.embed_tokens", "-o", tmp_path / "out"), "no item of a list"),
        (("--samples", 100_000), "windows"),
    ):
        code, _, error = run(folder, *ONCE, *arguments)
        assert code == 1
        assert expected in error
        assert not (tmp_path / "out").exists()


def test_what_text_there_is_not_enough_of_is_said_before_anything_takes_long(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty, blank, short = (tmp_path / f"{name}.txt" for name in ("empty", "blank", "short"))
    empty.write_text("")
    blank.write_text(" \n\t\n")
    short.write_text("a dozen bytes")
    monkeypatch.setattr("shearfx.analysis.trace", lambda *_, **__: pytest.fail("the model was traced"))
    code, _, error = run(folder, *ONCE, "--text", short)
    assert code == 1 and str(short) in error
    assert "2 windows of 16 tokens (32 tokens in all) were asked for, and the text has 13 tokens" in error
    code, _, error = run(folder, "--samples", 100_000)
    assert code == 1 and "where: the manual that comes with Python" in error
    monkeypatch.setattr("shearfx.models.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    for path, said in ((empty, "the text is empty"), (blank, "nothing but blanks")):
        code, _, error = run(folder, *ONCE, "--text", path)
        assert code == 1 and said in error and str(path) in error
    code, _, error = run(folder, "--samples", 0)
    assert code == 1 and "0 windows of 128 tokens" in error and "--samples" in error and "longer text" not in error
    assert "--sequence-length" in run(folder, "--sequence-length", 0)[2]
