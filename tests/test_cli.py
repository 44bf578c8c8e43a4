"""The command line: what it prints, what it writes, and what it says when something is wrong."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import shearfx
from shearfx.cli import app, summary
from shearfx.errors import ShearError, message
from shearfx.pruning_plan import PruningPlan

FACTORY = """
import torch
from torch import nn

def mlp():
    torch.manual_seed(0)
    print("a factory may print")
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), (torch.randn(2, 4),)

def broken():
    raise RuntimeError("no such luck")

def pinned():
    return nn.Linear(4, 3), (torch.randn(2, 4),)

class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, x, *, scale):
        return scale * self.down(torch.relu(self.up(x)))

def scaled():
    torch.manual_seed(0)
    return Scaled(), (torch.randn(2, 4),), {"scale": 2.0}

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(512, 8), nn.Linear(8, 32), nn.Linear(32, 512)

    def forward(self, input_ids):
        return self.down(torch.relu(self.up(self.embed(input_ids))))

def words():
    torch.manual_seed(0)
    return Words(), {"input_ids": torch.randint(512, (2, 8))}
"""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers as a Hugging Face folder, without a tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        max_position_embeddings=64,
    )
    folder = tmp_path_factory.mktemp("models") / "llama"
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of factories in the current directory."""
    name = f"nets_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    return name


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])  # type: ignore[return-value]


def data_of(*arguments: Any) -> dict[str, Any]:
    """Run with --json; the whole of stdout has to be one JSON document."""
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    data: dict[str, Any] = json.loads(result.stdout)
    return data


def refusal_of(*arguments: Any) -> str:
    """Run what must fail; returns what stderr says, which is no traceback."""
    result = call(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    _, found, said = f"\n{result.stderr}".partition("\nerror: ")
    assert found, result.stderr
    return said


# -- starting ----------------------------------------------------------------------------------------------


def test_help_waits_for_nothing_heavy() -> None:
    # What makes a command line slow to start is what it imports; seconds depend on what else the machine does.
    code = (
        "import sys; from typer.testing import CliRunner; from shearfx.cli import app\n"
        "result = CliRunner().invoke(app, ['prune', '--help'])\n"
        "print(result.exit_code, *({'torch', 'numpy', 'transformers', 'safetensors', 'sympy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0"]


@pytest.mark.parametrize("command", ["analyze", "prune", "verify", "eval"])
def test_every_command_shows_examples_and_takes_json(command: str) -> None:
    text = call(command, "--help").stdout
    assert "Examples" in text
    assert f"shearfx {command}" in text
    assert "--json" in text


def test_module_runs_as_the_command(llama: Path) -> None:
    command = [sys.executable, "-m", "shearfx", "analyze", str(llama / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.rpartition("error: ")[2].startswith("there is no model")


# -- analyze -----------------------------------------------------------------------------------------------


def test_analyze_shows_groups_layers_coverage_pins_and_times(llama: Path) -> None:
    text = call("analyze", llama).stdout
    for part in (
        "model.layers.*.mlp",
        "model.layers.0-1",
        "coverage:",
        "pinned:",
        "looked up by data",
        "export",
        "infer",
    ):
        assert part in text, text


def test_analyze_json_agrees_with_the_graph(llama: Path) -> None:
    data = data_of("analyze", llama)
    model = LlamaForCausalLM.from_pretrained(llama)
    graph = shearfx.trace(model, input_ids=torch.randint(64, (2, 16)))
    assert data["coverage"] == {"exact": graph.coverage_exact, "exact_and_compensated": graph.coverage}
    assert {(g["name"], g["size"], g["certificate"]) for g in data["groups"]} == {
        (g.name, g.size, g.certificate) for g in graph.groups
    }
    assert data["parameters"] == sum(p.numel() for p in model.parameters())
    assert data["layers"]["model.layers.1"]["ffn"] == [48]
    assert {p["reason"] for p in data["pins"]} == {p.reason for p in graph.pins}
    assert set(data["seconds"]["passes"]) == {"compose", "infer", "node groups", "partition"}


def test_analyze_prints_the_ir_after_a_pass(llama: Path) -> None:
    early = call("analyze", llama, "--print-after", "infer").stdout
    late = call("analyze", llama, "--print-after", "partition").stdout
    assert "linear" in early
    assert "group model.layers.0" not in early
    assert "group model.layers.0" in late


def test_stdout_stays_json_whatever_a_factory_prints(factory: str) -> None:
    data = data_of("analyze", f"{factory}:mlp")
    assert data["parameters"] == 4 * 8 + 8 + 8 * 3 + 3


# -- prune, verify, eval -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pruned(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ``prune`` says of the Llama that it made smaller."""
    out = tmp_path_factory.mktemp("pruned") / "small"
    return data_of("prune", llama, "--ratio", 0.15, "--scope", "uniform", "--kinds", "ffn", "-o", out)


def test_sizes_are_rounded_on_request(llama: Path, tmp_path: Path) -> None:
    asked = ("prune", llama, "--form", "fx", "--kinds", "ffn", "--plan-only", "-o")
    data_of(*asked, tmp_path / "plan.json", "--round-to", 8)
    cuts = PruningPlan.from_json((tmp_path / "plan.json").read_text()).cuts
    assert cuts and all(len(cut.kept) % 8 == 0 for cut in cuts)
    data_of(*asked, tmp_path / "auto.json", "--round-to", "auto")
    assert json.loads((tmp_path / "auto.json").read_text())["options"]["round_to"] == "auto"
    assert "round_to" in refusal_of(*asked, tmp_path / "bad.json", "--round-to", "eight")


def test_prune_then_verify_in_two_commands(llama: Path, pruned: dict[str, Any]) -> None:
    assert pruned["loads_with"] == "transformers"
    small = LlamaForCausalLM.from_pretrained(pruned["out"])
    assert small.num_parameters() == pruned["parameters_after"] < pruned["parameters_before"]
    assert pruned["achieved"] == pytest.approx(1 - pruned["parameters_after"] / pruned["parameters_before"])
    assert pruned["achieved"] == pytest.approx(0.15, abs=0.02)
    report = data_of("verify", pruned["out"], "--original", llama)
    assert report["max_relative_error"] <= 1e-10
    assert report["moved"] > 1e-3
    assert report["tensors"] == len(small.state_dict())


def test_a_plan_is_applied_to_a_folder_without_loading_it(
    llama: Path, pruned: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shearfx.models.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    data_of("prune", llama, "--apply", Path(pruned["out"]) / "shearfx_plan.json", "-o", tmp_path / "small")
    first, second = (Path(folder) / "model.safetensors" for folder in (pruned["out"], tmp_path / "small"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("form", ["module", "fx"])
def test_a_factory_is_pruned_and_verified(factory: str, tmp_path: Path, form: str) -> None:
    spec, out = f"{factory}:mlp", tmp_path / "small"
    pruned = data_of("prune", spec, "--ratio", 0.3, "--form", form, "-o", out)
    assert pruned["loads_with"] == "shearfx.load"
    report = data_of("verify", out, "--original", spec)
    assert report["sound"]
    assert (report["module_error"] is None) == (form == "fx")


def test_text_output_says_what_was_cut_and_what_comes_next(factory: str, tmp_path: Path) -> None:
    spec, out = f"{factory}:mlp", tmp_path / "small"
    text = call("prune", spec, "--ratio", 0.3, "--saliency", "random", "-o", out).stdout
    assert "ffn 8 -> " in text
    assert f"next: shearfx verify {out} --original {spec}" in text
    text = call("verify", out, "--original", spec).stdout
    assert "original class: differs from the masked original by" in text
    assert "sound" in text


def test_a_plan_made_alone_and_applied_is_the_same_as_pruning(factory: str, tmp_path: Path) -> None:
    spec, options = f"{factory}:mlp", ("--ratio", 0.3, "--saliency", "random", "--seed", 3)
    plan = tmp_path / "plan.json"
    data_of("prune", spec, *options, "--plan-only", "-o", plan)
    assert shearfx.PruningPlan.from_json(plan.read_text()).options["seed"] == 3
    data_of("prune", spec, "--apply", plan, "-o", tmp_path / "applied")
    data_of("prune", spec, *options, "-o", tmp_path / "direct")
    first, second = (tmp_path / name / "model.safetensors" for name in ("applied", "direct"))
    assert first.read_bytes() == second.read_bytes()


def test_verify_notices_a_changed_weight(factory: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    spec, out = f"{factory}:mlp", tmp_path / "small"
    data_of("prune", spec, "--ratio", 0.3, "-o", out)
    tensors = load_file(out / "model.safetensors")
    tensors["2.weight"][0, 0] += 1
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    assert "2.weight is not what the plan makes" in refusal_of("verify", out, "--original", spec)


def test_eval_agrees_with_the_function(stories: Path, tmp_path: Path) -> None:
    from shearfx.evaluation import perplexity
    from shearfx.models import load_model

    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a little dog. " * 20)
    data = data_of("eval", stories, "--text", text, "--sequence-length", 64)
    loaded = load_model(str(stories))
    expected = perplexity(loaded.module, loaded.tokenizer, text.read_text(), sequence_length=64)
    (found,) = data["texts"]
    assert found["perplexity"] == pytest.approx(expected.value)
    assert (found["tokens"], found["sequence_length"]) == (expected.tokens, 64)


def test_eval_answers_tasks_and_times(stories: Path, tmp_path: Path) -> None:
    task = tmp_path / "cats.jsonl"
    task.write_text('{"query": "The cat sat on", "choices": [" the mat", " zzz qqq"], "gold": 0}\n' * 3)
    asked = ("eval", stories, "--tasks", tmp_path, "--limit", 2, "--answers", tmp_path / "answers", "--speed")
    data = data_of(*asked)
    (found,) = data["tasks"]
    assert (found["name"], found["items"], found["available"], found["acc"]) == ("cats", 2, 3, 1.0)
    assert data["speed"]["decode"] > 0
    assert data["cost"]["prefill_flops"] > data["cost"]["decode_flops"] > 0
    assert (tmp_path / "answers").read_text().count("\n") == 2  # whose they are, and one item: both ask the same
    assert "there is nothing to measure" in refusal_of("eval", stories)
    assert "keeps no answers" in refusal_of(*asked, "--harness")


@pytest.mark.parametrize("native", [True, False])
def test_eval_says_what_is_slow_here(
    native: bool, stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a little dog.")
    said = {dtype: call("eval", stories, "--text", text, "--dtype", dtype).stderr for dtype in ("float32", "bfloat16")}
    assert ("does not compute in bfloat16" in said["bfloat16"]) == (not native)
    assert "does not compute in" not in said["float32"]


def test_taylor_takes_a_text(stories: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a little dog. " * 20)
    options = ("--samples", 2, "--sequence-length", 32, "--text", text)
    plan = ("--kinds", "ffn", "--form", "fx", "--plan-only", "-o", tmp_path / "plan.json")
    data = data_of("prune", stories, "--ratio", 0.1, "--saliency", "taylor", *options, *plan)
    assert data["options"]["saliency"] == "taylor"
    assert len({cut["kept"] for cut in data["cuts"]}) > 1  # magnitude would leave all layers alike


@pytest.mark.parametrize("command", ["prune", "eval"])
def test_a_text_without_words_is_named_before_the_model_is_loaded(
    llama: Path, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shearfx.models.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    text, out = tmp_path / "text.txt", tmp_path / "out"
    asked = (command, llama, "--text", text, *(("--saliency", "wanda_sp", "-o", out) if command == "prune" else ()))
    for content, expected in (("", "the text is empty"), ("\n \t\n", "the text is nothing but blanks")):
        text.write_text(content)
        said = refusal_of(*asked)
        assert expected in said and f"where: {text}" in said
    assert not out.exists()


def test_a_text_that_is_too_short_to_score_on_is_named_before_the_model_is_traced(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shearfx.cli.prune.trace_with_progress", lambda *_: pytest.fail("the model was traced"))
    text = tmp_path / "text.txt"
    text.write_text("A dog.")
    said = refusal_of("prune", stories, "--saliency", "wanda_sp", "--text", text, "-o", tmp_path / "out")
    assert re.search(r"16 windows of 128 tokens \(2048 tokens in all\) .* the text has \d tokens", said)
    assert f"where: {text}" in said and "longer text" in said


def test_an_evaluation_of_texts_goes_on_with_what_it_kept(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, task, kept = tmp_path / "text.txt", tmp_path / "cats.jsonl", tmp_path / "kept.jsonl"
    text.write_text("Once upon a time there was a little dog. " * 20)
    task.write_text('{"query": "The cat sat on", "choices": [" the mat", " zzz qqq"], "gold": 0}\n')
    asked = ("eval", stories, "--text", text, "--sequence-length", 32, "--tasks", task)
    whole = data_of(*asked)
    assert data_of(*asked, "--answers", kept) == whole
    content = kept.read_bytes()
    lines = content.splitlines(keepends=True)
    windows = sum(b"losses" in line for line in lines)
    assert windows > 3 and len(lines) == windows + 2  # whose they are, and one item
    kept.write_bytes(b"".join(lines[:3]) + lines[3][:30])  # killed while it wrote
    assert data_of(*asked, "--answers", kept) == whole
    assert kept.read_bytes() == content
    monkeypatch.setattr(LlamaForCausalLM, "forward", lambda *_, **__: pytest.fail("something was computed again"))
    assert data_of(*asked, "--answers", kept) == whole


# -- results that do not say how to build their model -----------------------------------------------------


@pytest.mark.parametrize("form", ["module", "fx"])
def test_a_result_of_a_factory_is_opened_by_its_original(factory: str, tmp_path: Path, form: str) -> None:
    spec, once, twice = f"{factory}:scaled", tmp_path / "once", tmp_path / "twice"
    first = data_of("prune", spec, "--ratio", 0.3, "--form", form, "-o", once)
    found = data_of("analyze", once, "--original", spec)
    assert found["parameters"] == first["parameters_after"] < first["parameters_before"]
    assert [g["size"] for g in found["groups"]] == [cut["kept"] for cut in first["cuts"]]
    options = ("--ratio", 0.3, "--form", form, "-o", twice)
    second = data_of("prune", once, "--original", spec, *options)
    assert second["parameters_before"] == first["parameters_after"] > second["parameters_after"]
    # What was made from a result is opened by the result, and that by its own original.
    chain = ("--original", once, "--original", spec)
    assert data_of("analyze", twice, *chain)["parameters"] == second["parameters_after"]
    assert data_of("verify", twice, *chain)["moved"] > 1e-3
    text = call("prune", once, "--original", spec, *options, "--overwrite").stdout
    assert f"next: shearfx verify {twice} --original {once} --original {spec}" in text


def test_a_result_takes_the_dtype_asked_for_with_inputs_to_match(factory: str, tmp_path: Path) -> None:
    spec, out = f"{factory}:scaled", tmp_path / "small"
    data_of("prune", spec, "--ratio", 0.3, "--dtype", "float64", "-o", out)
    expected = data_of("analyze", out, "--original", spec)["parameters"]
    assert data_of("analyze", out, "--original", spec, "--dtype", "bfloat16")["parameters"] == expected


def test_eval_takes_a_result_of_a_factory(
    stories: Path, factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shearfx.evaluation import perplexity
    from shearfx.models import load_model

    monkeypatch.setattr(sys, "path", list(sys.path))
    full, tokenizer = load_model(f"{factory}:words"), load_model(str(stories), device="meta").tokenizer
    graph = shearfx.trace(full.module, **full.kwargs)
    plan = shearfx.plan(graph, 0.3, model=full.module)
    small = shearfx.construct(full.module, plan)
    out = shearfx.save(small, plan, tmp_path / "small", tokenizer=tokenizer)
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a little dog. " * 20)
    asked = ("eval", out, "--text", text, "--sequence-length", 64)
    data = data_of(*asked, "--original", f"{factory}:words")
    expected = perplexity(small, tokenizer, text.read_text(), sequence_length=64)
    assert data["texts"][0]["perplexity"] == pytest.approx(expected.value)
    assert data["parameters"] == sum(p.numel() for p in small.parameters())
    assert "--original MODEL" in refusal_of(*asked)


def test_a_graph_of_a_model_of_transformers_is_verified_and_opened(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    pruned = data_of("prune", llama, "--ratio", 0.2, "--form", "fx", "-o", out)
    report = data_of("verify", out, "--original", llama)
    assert report["moved"] > 1e-3
    assert report["module_error"] is None
    assert data_of("analyze", out, "--original", llama)["parameters"] == pruned["parameters_after"]
    shearfx.load(out)  # what it was made from is stated in the folder, though not how it is called
    assert "--original MODEL" in refusal_of("analyze", out)


def test_where_the_original_is_missing_or_out_of_place_the_option_is_named(
    llama: Path, factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, once, out = f"{factory}:scaled", tmp_path / "once", tmp_path / "out"
    data_of("prune", spec, "--ratio", 0.3, "-o", once)
    text = tmp_path / "text.txt"
    text.write_text("words")
    for arguments in (
        ("analyze", once),
        ("prune", once, "-o", out),
        ("eval", once, "--text", text),
        ("verify", once, "--original", once),
    ):
        said = refusal_of(*arguments)
        assert "--original MODEL" in said, said
        assert "does not say how to build the model" in said
    monkeypatch.setattr("shearfx.models.build_from_factory", lambda _: pytest.fail("the original was loaded"))
    assert "only a folder that shearfx wrote" in refusal_of("analyze", llama, "--original", spec)


@pytest.mark.parametrize("command", ["analyze", "prune", "verify", "eval"])
def test_the_original_is_asked_for_in_the_same_words(command: str) -> None:
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", call(command, "--help").stdout).split())
    assert "The model that a folder of shearfx was made from" in text
    assert "--original mypackage.nets:" in text


# -- bad input ---------------------------------------------------------------------------------------------


def test_refusals_say_what_and_what_to_do(llama: Path, factory: str, tmp_path: Path) -> None:
    out, text, mlp = tmp_path / "out", tmp_path / "text.txt", f"{factory}:mlp"
    text.write_bytes(b"\xff\xfe\xfa")
    (tmp_path / "plan.json").write_text("{]")
    cases: list[tuple[tuple[Any, ...], str]] = [
        (("prune", mlp, "--ratio", 1.5, "-o", out), "1.5 is not between 0 and 1"),
        (("prune", mlp, "--ratio", 0.99, "-o", out), "0.99"),
        (("prune", mlp, "--saliency", "vibes", "-o", out), "no saliency 'vibes'"),
        (("prune", mlp, "--saliency", "taylor", "-o", out), "no tokenizer"),
        (("prune", llama, "--apply", tmp_path / "plan.json", "-o", out), "no readable plan"),
        (("prune", llama, "--apply", tmp_path / "plan.json", "--ratio", 0.1, "-o", out), "--apply brings its own"),
        (("prune", llama, "--ratio", 0.2, "-o", llama), "the output folder exists"),
        (("prune", f"{factory}:broken", "--ratio", 0.2, "-o", out), "no such luck"),
        (("prune", f"{factory}:pinned", "--ratio", 0.2, "-o", out), "nothing"),
        (("analyze", f"{factory}:nothing"), "has no 'nothing'"),
        (("analyze", llama, "--print-after", "lunch"), "no pass 'lunch'"),
        (("verify", llama, "--original", llama), "there is no shearfx_plan.json"),
        (("eval", llama, "--text", text), "no UTF-8 text"),
        (("eval", llama, "--text", tmp_path / "none.txt"), "cannot be read"),
        (("eval", llama, "--text", tmp_path / "plan.json"), "no tokenizer"),
    ]
    for arguments, expected in cases:
        said = refusal_of(*arguments)
        assert expected in said, (arguments, said)
        assert "do:" in said, (arguments, said)
        assert not out.exists()


def test_an_error_is_json_too(llama: Path) -> None:
    result = call("analyze", llama, "--print-after", "lunch", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["kind"] == "ShearError"


def test_debug_shows_the_traceback(llama: Path) -> None:
    assert "Traceback" in call("analyze", llama, "--print-after", "lunch", "--debug").stderr


# -- pieces ------------------------------------------------------------------------------------------------


def test_every_step_of_pruning_begins_and_ends_once_in_a_log(factory: str, tmp_path: Path) -> None:
    spec, out = f"{factory}:mlp", tmp_path / "small"
    steps = [f"loading {spec}", "tracing Sequential", "planning by random", "cutting", f"saving to {out}"]
    said = call("prune", spec, "--ratio", 0.3, "--saliency", "random", "-o", out).stderr.splitlines()
    said = [re.sub(r": [\d.]+ s$", ": T s", line) for line in said if line != "a factory may print"]
    assert said == [line for step in steps for line in (f"{step} ...", f"{step}: T s")]


def test_errors_keep_their_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    from shearfx.cli.console import Talk

    Talk(as_json=False).error(ShearError(message("[bold]shape [2, 3][/bold]", todo="[x]")))
    assert capsys.readouterr().err == "error: [bold]shape [2, 3][/bold]\n  do:    [x]\n"


def test_layers_collapse_only_neighbours_that_are_alike() -> None:
    rows = {"h.0": "a", "h.1": "a", "g.2": "a", "h.3": "b", "h.5": "b"}
    assert summary.collapse(rows) == [("h.0-1", "a"), ("g.2", "a"), ("h.3", "b"), ("h.5", "b")]
