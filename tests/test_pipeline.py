"""LoRAShear from end to end on a small real model: what it makes, and that it can be cut off anywhere."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

import shearfx
from shearfx.cli import app
from shearfx.cli.shear import closed
from shearfx.config import ShearConfig
from shearfx.errors import CheckpointError, DataError, PlanError, TrainingError
from shearfx.knowledge import KnowledgeDistribution
from shearfx.knowledge.cache import Cache
from shearfx.models import load_model
from shearfx.pipeline import Shearing, Silent
from shearfx.pruning_plan import PruningPlan
from shearfx.run_directory import RunDirectory

Options = dict[str, Any]


@pytest.fixture(scope="session")
def options(shared: Path) -> Options:
    return {
        "pretrain": (str(shared / "data" / "text" / "tinystories_train.jsonl"),), "kinds": ("ffn",),
        "max_tokens": 40_000, "tokens": 24 * 512, "sequence_length": 128, "scoring_windows": 16, "fitting_windows": 16,
        "validation": 8, "dtype": "float32", "lr": 4e-3, "rounds": 2, "cuts": 2,
    }  # fmt: skip


@pytest.fixture(scope="session")
def sheared(stories: Path, options: Options, tmp_path_factory: pytest.TempPathFactory) -> shearfx.Sheared:
    return shearfx.shear(str(stories), out=tmp_path_factory.mktemp("run") / "run", **options)


def test_a_run_gives_a_smaller_model_that_is_nearly_as_good(sheared: shearfx.Sheared) -> None:
    dense, cut, recovered = (sheared.record[stage] for stage in ("dense", "cut", "recover"))
    assert cut["parameters"] == recovered["parameters"]
    assert 1 - recovered["parameters"] / dense["parameters"] == pytest.approx(0.2, abs=2e-3)
    (source,) = dense["losses"]
    assert dense["losses"][source] < recovered["losses"][source] < cut["losses"][source]
    assert closed(sheared.record)[source] > 0.2


def test_what_is_saved_is_what_was_returned(sheared: shearfx.Sheared) -> None:
    loaded = shearfx.load(sheared.path / "model")
    ids = torch.randint(0, 500, (2, 9))
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, sheared.model(input_ids=ids).logits)
    assert sum(p.numel() for p in sheared.model.parameters()) == sheared.record["recover"]["parameters"]
    plan = PruningPlan.from_json((sheared.path / "plan.json").read_text())
    assert plan.achieved == pytest.approx(0.2, abs=2e-3)


def test_the_folder_says_what_happened(sheared: shearfx.Sheared, options: Options) -> None:
    config = ShearConfig.read(sheared.path / "config.yaml")
    assert config == ShearConfig.of_mapping(options)
    lines = [json.loads(line) for line in (sheared.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "recover"] == list(range(1, 25))
    assert all(math.isfinite(line["loss"]) for line in lines if line["event"] == "recover")
    assert len([line for line in lines if line["event"] == "round"]) == 3
    assert json.loads((sheared.path / "environment.json").read_text())["torch"] == torch.__version__


def test_a_finished_run_resumes_to_the_same_and_another_is_refused(
    sheared: shearfx.Sheared, stories: Path, options: Options
) -> None:
    again = shearfx.shear(str(stories), out=sheared.path, resume=True, **options)
    assert again.record == sheared.record
    with pytest.raises(CheckpointError, match="a run is in this folder"):
        shearfx.shear(str(stories), out=sheared.path, **options)
    with pytest.raises(CheckpointError, match=r"asked for something else: ratio: 0\.2, not 0\.3"):
        shearfx.shear(str(stories), out=sheared.path, resume=True, **(options | {"ratio": 0.3}))


def test_a_run_that_is_killed_while_it_recovers_ends_in_the_same_model(
    sheared: shearfx.Sheared, stories: Path, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything up to the cut is there; recovery is stopped at step 9, and goes on from its last checkpoint."""
    often = options | {"checkpoint_seconds": 1e-6}
    run = tmp_path / "run"
    run.mkdir()
    shutil.copytree(sheared.path / "cut", run / "cut")
    shutil.copy(sheared.path / "plan.json", run)
    done = ("dense", "prune", "cut", "budget")
    (run / "stages.json").write_text(json.dumps({name: sheared.record[name] for name in done}))
    asked = f"# model: {json.dumps(str(stories))}\n{ShearConfig.of_mapping(often).to_yaml()}"
    (run / "config.yaml").write_text(asked)
    log = RunDirectory.log

    def killed(self: RunDirectory, event: str, **values: Any) -> None:
        if event == "recover" and values["step"] == 9:
            raise KeyboardInterrupt
        log(self, event, **values)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunDirectory, "log", killed)
        shearfx.shear(str(stories), out=run, resume=True, **often)
    resumed = shearfx.shear(str(stories), out=run, resume=True, **often)
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, sheared.model.state_dict()[name]), name


def test_mistakes_are_named_before_anything_is_trained(stories: Path, options: Options, tmp_path: Path) -> None:
    def run(**changes: Any) -> None:
        shearfx.shear(str(stories), out=tmp_path / "run", **(options | changes))

    with pytest.raises(TrainingError, match="nothing to score, train and judge by"):
        run(pretrain=())
    with pytest.raises(DataError, match="did you mean"):  # the folder of a run that never began can be used again
        run(pretrain=(options["pretrain"][0] + "x",))
    with pytest.raises(PlanError, match=r"at most .* can go"):
        run(ratio=0.85)
    with pytest.raises(PlanError, match="no option 'rate'"):
        run(rate=0.1)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="in use by something else"):
        shearfx.shear(str(stories), out=tmp_path / "taken", **options)


def test_a_tokenizer_of_another_model_is_refused(stories: Path, options: Options, tmp_path: Path) -> None:
    loaded = load_model(str(stories))
    small = torch.nn.Embedding(40, 64)
    loaded.module.set_input_embeddings(small)  # type: ignore[operator]
    config = ShearConfig.of_mapping(options)
    run = RunDirectory(tmp_path / "run", "m", config, resume=False)
    with pytest.raises(TrainingError, match=r"the tokenizer gives id .*, and the model has 40 embeddings"):
        Shearing(loaded, config, run, Silent()).run()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["progressive", "paper"])
def test_progressive_recipes_run_through(stories: Path, options: Options, tmp_path: Path, recipe: str) -> None:
    more: Options = {"prune_share": 0.5, "periods": 3}
    if recipe == "paper":
        more = {"recipe": "paper", "min_tokens": 0, "gamma": None}
    sheared = shearfx.shear(str(stories), out=tmp_path / "run", **(options | {"tokens": 60 * 512} | more))
    dense, cut, recovered = (sheared.record[stage] for stage in ("dense", "cut", "recover"))
    assert 1 - cut["parameters"] / dense["parameters"] == pytest.approx(0.2, abs=2e-3)
    (source,) = dense["losses"]
    assert recovered["losses"][source] < cut["losses"][source]
    # stopped right after pruning, the run still knows what the adapters learnt
    again = tmp_path / "again"
    shutil.copytree(sheared.path, again, ignore=shutil.ignore_patterns("cut", "model", "recover"))
    done = ("dense", "budget", "prune")
    (again / "stages.json").write_text(json.dumps({name: sheared.record[name] for name in done}))
    resumed = shearfx.shear(str(stories), out=again, resume=True, **(options | {"tokens": 60 * 512} | more))
    assert resumed.record["cut"] == cut
    assert resumed.record["recover"]["losses"] == recovered["losses"]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def flags(options: Options) -> list[str]:
    """The same options for the command line."""
    found = ["--pretrain", options["pretrain"][0]]
    for name, value in options.items():
        if name != "pretrain":
            found += ["--set", f"{name}={json.dumps(list(value) if isinstance(value, tuple) else value)}"]
    return found


def test_the_command_resumes_the_run_that_python_made(
    sheared: shearfx.Sheared, stories: Path, options: Options
) -> None:
    (sheared.path / "report.html").unlink()  # that which Python wrote
    done = invoke("shear", str(stories), "-o", str(sheared.path), "--resume", *flags(options))
    assert done.exit_code == 0, done.output
    assert "perplexity, tinystories_train" in done.output
    assert f"{sheared.record['dense']['parameters']:,}" in done.output
    assert f"report: {sheared.path / 'report.html'}" in done.output
    assert "perplexity, tinystories_train" in (sheared.path / "report.html").read_text()
    as_json = invoke("shear", str(stories), "-o", str(sheared.path), "--resume", "--json", *flags(options))
    assert json.loads(as_json.stdout)["recover"] == sheared.record["recover"]
    wrong = invoke("shear", str(stories), "-o", str(sheared.path), "--set", "lr")
    assert wrong.exit_code == 1 and "sets nothing" in wrong.output


def test_recovery_by_itself(
    sheared: shearfx.Sheared, stories: Path, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in its sixth step, and gone on with at half the batch: same steps, same tokens."""
    cut, out = str(sheared.path / "cut"), tmp_path / "out"
    few = options | {"tokens": 8 * 512, "checkpoint_seconds": 1e-6}
    log = RunDirectory.log

    def killed(self: RunDirectory, event: str, **values: Any) -> None:
        if event == "recover" and values["step"] == 6:
            raise KeyboardInterrupt
        log(self, event, **values)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "log", killed)
        stopped = invoke("recover", cut, "--original", str(stories), "-o", str(out), *flags(few))
        assert stopped.exit_code == 130
        assert "interrupted; the same command with --resume goes on with it" in stopped.stderr
    half = ["--set", "batch_size=2", "--set", "accumulate=2"]
    some = tmp_path / "some.yaml"
    some.write_text("checkpoint_seconds: 1.0e-6\n")
    half += ["--config", str(some)]  # what a file does not state stays as it was
    done = invoke("recover", cut, "--original", str(stories), "-o", str(out), "--json", "--resume", *half)
    assert done.exit_code == 0, done.output
    assert "goes on with batch_size: 2 (it was 4)" in done.stderr
    record = json.loads(done.stdout)
    assert record["cut"] == sheared.record["cut"] and record["budget"]["steps"] == 8
    (source,) = record["cut"]["losses"]
    assert record["recover"]["losses"][source] < record["cut"]["losses"][source]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "recover"] == list(range(1, 9))
    assert [line["batch_size"] for line in lines if line["event"] == "options"] == [[4, 2]]
    loaded = shearfx.load(out / "model")
    assert sum(p.numel() for p in loaded.parameters()) == record["recover"]["parameters"]
    assert "perplexity" in (out / "report.html").read_text()
    late = invoke("recover", cut, "--original", str(stories), "-o", str(out), "--resume", "--set", "lr=1e-5")
    assert late.exit_code == 1 and "is finished, by other options: lr" in late.output
    again = invoke("recover", cut, "--original", str(stories), "-o", str(out), "--json", "--resume")
    assert json.loads(again.stdout)["recover"] == record["recover"], "nothing is left to do"
    refused = invoke("recover", str(stories), "--original", str(stories), "-o", str(tmp_path / "x"), *flags(few))
    assert refused.exit_code == 1 and "shearfx did not cut this model" in refused.output


def _count_measurements(monkeypatch: pytest.MonkeyPatch, stop_at: int = 0) -> list[Any]:
    """What a knowledge analysis measures from now on; Ctrl-C in the place of one of them."""
    found: list[Any] = []
    add = Cache.add

    def counted(self: Cache, key: Any, sums: Any) -> None:
        if len(found) + 1 == stop_at:
            raise KeyboardInterrupt
        found.append(key)
        add(self, key, sums)

    monkeypatch.setattr(Cache, "add", counted)
    return found


def test_knowledge_by_itself(stories: Path, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"pretrain": options["pretrain"], "max_tokens": 20_000, "sequence_length": 64, "dtype": "float32"}
    out = tmp_path / "knowledge.json"
    asked = ("knowledge", str(stories), "-o", str(out), "--gamma", "0.2", *flags(few | {"kinds": ("ffn",)}))
    # stopped after its third measurement, it goes on with the fourth
    with monkeypatch.context() as patch:
        measured = _count_measurements(patch, stop_at=4)
        assert invoke(*asked).exit_code == 130 and not out.exists()
    assert len(measured) == 3
    again = _count_measurements(monkeypatch)
    done = invoke(*asked)
    assert done.exit_code == 0, done.output
    assert done.output.count("unprunable") == 1
    assert again and not set(measured) & set(again)
    assert list(tmp_path.iterdir()) == [out]
    found = KnowledgeDistribution.load(out)
    assert len(found.rows) == 5 and len(found.unprunable(0.2)) == 1
    # pruning by itself reads it, and so does a run
    plan = tmp_path / "plan.json"
    prune = ("prune", str(stories), "-o", str(plan), "--plan-only", "--kinds", "ffn", "--form", "fx")
    assert invoke(*prune, "--knowledge", str(out)).exit_code == 0
    (whole,) = found.unprunable()
    assert whole not in {cut.name for cut in PruningPlan.from_json(plan.read_text()).cuts}
    kinds = prune.index("--kinds")
    more = (*prune[:kinds], "--kinds", "heads", "--ratio", "0.1", *prune[kinds + 2 :])
    unknown = invoke(*more[:3], str(tmp_path / "z"), *more[4:], "--knowledge", str(out))
    assert unknown.exit_code == 1 and "says nothing of" in unknown.output
    lone = invoke(*prune[:3], str(tmp_path / "y"), *prune[4:], "--gamma", "0.2")
    assert lone.exit_code == 1 and "pass --knowledge FILE" in lone.output
