"""What a run starts from and what it leaves: adapters on the input, beside the output; quantised weights."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from torch import nn

import shearfx
from shearfx.config import ShearConfig
from shearfx.errors import CheckpointError, DataError, PlanError, ShearError, TrainingError
from shearfx.pipeline import Silent
from shearfx.pipeline.given import given
from shearfx.pipeline.stages import recover_model
from shearfx.pipeline.study import Study
from tests.tiny_runs import Runs, Telling, options, tiny_llama, write_model, write_text
from tests.tiny_tokenizers import byte_tokenizer


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("tiny")
    return Runs(write_model(folder / "model"), write_text(folder / "text.txt"))


def adapted(seed: int = 0, **settings: Any) -> Any:
    """A model with an adapter that does something."""
    torch.manual_seed(seed)
    wrapped = get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules=["q_proj", "down_proj"], **settings))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    return wrapped.eval()


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(40)[None]).logits
    return found


# -- the data ----------------------------------------------------------------------------------------------


def test_data_in_memory_is_written_into_the_run_which_goes_on_from_there(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt").read_text()
    asked = options(tmp_path / "none", tokens=0, cuts=1, sequence_length=256)
    del asked["pretrain"]
    data = {"pretrain": [{"text": part} for part in text.split("\n\n")], "instruct": str(tmp_path / "i.jsonl")}
    (tmp_path / "i.jsonl").write_text(20 * '{"prompt": "one two three", "completion": "four five six"}\n')
    out, model = tmp_path / "run", tiny_llama(max_position_embeddings=256)
    sheared = shearfx.shear(model, data, out=out, tokenizer=byte_tokenizer(), **asked)
    assert set(sheared.record["dense"]["losses"]) == {"pretrain", "i"}
    named = ShearConfig.read(out / "config.yaml")
    assert named.pretrain == (str(out / "pretrain.jsonl"),) and named.instruct == (data["instruct"],)
    again = shearfx.shear(model, data, out=out, tokenizer=byte_tokenizer(), resume=True, **asked)
    assert again.record == sheared.record
    for wrong, match in (
        ({"text": "a.txt"}, "no kind 'text' of data"),
        ([3], "holds int"),
        ([{"text": {1}}], "cannot be written as JSON"),
    ):
        with pytest.raises(DataError, match=match):
            shearfx.shear(model, wrong, out=tmp_path / "wrong", tokenizer=byte_tokenizer(), **asked)
    for more in ({"pretrain": "b.txt"}, {"config": ShearConfig()}):
        with pytest.raises(PlanError, match=r"does(.|\n)*pass it once"):
            shearfx.shear(model, "a.txt", out=tmp_path / "twice", **more)
    with pytest.raises(PlanError, match="config= states all options, and ratio beside it"):
        shearfx.shear(model, config=ShearConfig(), out=tmp_path / "both", ratio=0.5)


def test_sources_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """A text and instructions are both called train; their losses are two."""
    text = write_text(tmp_path / "train.txt")
    (tmp_path / "train.jsonl").write_text(20 * '{"prompt": "one two three", "completion": "four five six"}\n')
    asked: dict[str, Any] = {"pretrain": (str(text),), "instruct": (str(tmp_path / "train.jsonl"),)}
    asked |= {"tokens": 0, "sequence_length": 256}
    runs = Runs(write_model(tmp_path / "model", max_position_embeddings=256), text)
    record = runs(tmp_path / "run", **asked).record
    assert set(record["dense"]["losses"]) == set(record["recover"]["losses"]) == {"train.txt", "train.jsonl"}


def test_windows_to_score_by_hold_no_padding(tmp_path: Path) -> None:
    (tmp_path / "i.jsonl").write_text(40 * '{"prompt": "one two three", "completion": "four"}\n')
    asked = options(tmp_path, pretrain=(), instruct=(str(tmp_path / "i.jsonl"),), sequence_length=256, tokens=0)
    tokenizer = byte_tokenizer()
    study = Study(tiny_llama(max_position_embeddings=256), tokenizer, ShearConfig.of_mapping(asked), Silent())
    study.read()
    (examples,) = study.train["instruct"]
    assert bool((examples.labels[:, -1] == -100).any()), "windows end in padding"
    batches = study.batches(5, seed=0)
    assert [tuple(batch.shape) for batch in batches] == [(2, 256), (2, 256), (1, 256)]
    ends = {int(labels.ne(-100).nonzero()[-1]) + 1 for labels in examples.labels}
    joined = {tuple(ids[:end].tolist()) for ids, end in zip(examples.ids, map(last, examples.labels), strict=True)}
    stream = torch.cat([batch.flatten() for batch in batches]).tolist()
    assert ends and all(any(stream[at : at + len(one)] == list(one) for at in range(len(stream))) for one in joined)


def last(labels: torch.Tensor) -> int:
    """How many tokens come before the padding."""
    return int(labels.ne(-100).nonzero()[-1]) + 1


def test_recovery_refuses_a_model_that_was_not_cut_from_the_other(runs: Runs, tmp_path: Path) -> None:
    run = runs(tmp_path / "run", tokens=0).path
    config = ShearConfig.of_mapping(options(runs.text))
    for wrong in (run / "cut", write_model(tmp_path / "wider", intermediate_size=96)):
        with pytest.raises(TrainingError, match=r"is not what .* was cut from"):
            recover_model(str(run / "cut"), str(wrong), tmp_path / "out", config, Silent())


# -- the input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}], ids=str)
def test_adapters_on_the_input_are_merged_and_the_callers_model_stays(settings: dict[str, Any]) -> None:
    mine, teller = adapted(**settings), Telling()
    before = copy.deepcopy(mine.state_dict())
    loaded, reopen = given(mine, byte_tokenizer(), teller)
    assert teller.told == ["merged into the base first: adapter default"]
    assert type(loaded.module) is type(tiny_llama())
    assert torch.allclose(logits(loaded.module), logits(mine), atol=1e-5)  # float32: another order of sums
    assert reopen is not None and torch.equal(logits(reopen()), logits(loaded.module))
    assert mine.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in mine.state_dict().items())


def test_a_run_prunes_what_base_and_adapter_compute_together(runs: Runs, tmp_path: Path) -> None:
    mine = adapted(3)
    sheared = runs(tmp_path / "run", mine)
    plain = runs(tmp_path / "plain", copy.deepcopy(mine).merge_and_unload())
    assert sheared.record["dense"] == plain.record["dense"]
    for name, value in sheared.model.state_dict().items():
        assert torch.equal(value, plain.model.state_dict()[name]), name


def test_adapters_that_cannot_be_merged_are_refused() -> None:
    with pytest.raises(CheckpointError, match="IA3"):
        given(
            get_peft_model(tiny_llama(), IA3Config(target_modules=["q_proj"], feedforward_modules=[])), None, Silent()
        )
    wrapped = adapted()
    with pytest.raises(TrainingError, match=r"layers of the model carry adapters, .*q_proj first"):
        given(wrapped.get_base_model(), None, Silent())
    broken = adapted()
    layer = broken.get_base_model().model.layers[1].self_attn.q_proj
    layer.lora_B["default"].weight = nn.Parameter(torch.randn(36, 4))  # of another base
    with pytest.raises(CheckpointError, match=r"cannot be merged into its base(.|\n)*the base that it was trained on"):
        given(broken, None, Silent())


def quantised() -> nn.Module:
    model = tiny_llama()
    packed = torch.zeros(72 * 16, 1, dtype=torch.uint8)  # as bitsandbytes packs two to a byte
    model.model.layers[0].mlp.up_proj.weight = nn.Parameter(packed, requires_grad=False)
    return model


def marked() -> nn.Module:
    model = tiny_llama()
    model.config.quantization_config = SimpleNamespace(quant_method="gptq")
    return model


@pytest.mark.parametrize(("make", "how"), [(quantised, r"up_proj\.weight holds uint8"), (marked, "gptq")])
def test_quantised_weights_are_refused_before_any_work(make: Any, how: str, runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=rf"the weights are quantised \(.*{how}.*\)(.|\n)*model\.dequantize\(\)"):
        runs(tmp_path / "run", make())
    assert not (tmp_path / "run").exists()


def test_layers_that_the_model_does_not_have_get_no_adapters(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"no adapters fit a LlamaForCausalLM: .*c_attn(.|\n)*where: targets: c_attn"):
        runs(tmp_path / "run", targets=("c_attn",))
    assert not (tmp_path / "run" / "stages.json").exists()  # before anything was judged


def test_a_folder_with_an_adapter_is_refused_or_merged(runs: Runs, tmp_path: Path) -> None:
    shutil.copytree(runs.model, tmp_path / "model")
    adapted().save_pretrained(tmp_path / "adapter")
    adapted().save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"holds an adapter, and no model; its base is(.|\n)*merge it first"):
        given(str(tmp_path / "adapter"), None, Silent())
    with pytest.raises(CheckpointError, match="holds an adapter beside the model"):
        given(str(tmp_path / "model"), None, Silent())


def test_mistakes_of_a_run_are_named_before_it_begins(runs: Runs, tmp_path: Path) -> None:
    def refused(error: type[Exception], said: str, **more: Any) -> None:
        with pytest.raises(error, match=said):
            runs(tmp_path / "run", **more)

    refused(TrainingError, r"windows of 128 tokens, and the model has 64 positions", sequence_length=128, tokens=1024)
    refused(ShearError, r"no device 'gpu0'", device="gpu0")
    refused(PlanError, r"tokens: 63 are less than one step takes, 64 \(2 x 1 x 32", tokens=63)
    refused(PlanError, r"at most [\d,]+ parameters can go(.|\n)*ask for at most 0\.\d+", ratio=0.9)
    refused(PlanError, r"node groups left whole", gamma=0.6, ratio=0.3)
    dead = tiny_llama()
    for layer in dead.model.layers:
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    refused(PlanError, "score alike", model=dead)
    assert not (tmp_path / "run" / "plan.json").exists()


# -- the output --------------------------------------------------------------------------------------------

FRESH = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
torch.set_num_threads(int(sys.argv[3]))
base = AutoModelForCausalLM.from_pretrained(sys.argv[1] + "/model")
with torch.no_grad():
    plain = base(input_ids=torch.arange(40)[None]).logits
    both = PeftModel.from_pretrained(base, sys.argv[1] + "/adapter").eval()(input_ids=torch.arange(40)[None]).logits
from safetensors.torch import save_file
save_file({"plain": plain, "both": both}, sys.argv[2])
assert not any(name.split(".")[0] == "shearfx" for name in sys.modules)
"""


@pytest.mark.parametrize("prune_share", [0.0, 0.5])
def test_an_adapter_that_is_kept_loads_without_shearfx(runs: Runs, tmp_path: Path, prune_share: float) -> None:
    from safetensors.torch import load_file

    more: dict[str, Any] = {"merge": "never", "scope": "uniform", "prune_share": prune_share, "tokens": 12 * 64,
                            "periods": 2, "compensation": not prune_share}  # fmt: skip
    run, found = tmp_path / "run", tmp_path / "found.safetensors"
    sheared = runs(run, **more)
    assert isinstance(sheared.model, PeftModel)
    threads = str(torch.get_num_threads())
    command = [sys.executable, "-c", FRESH, str(run), str(found), threads]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    fresh = load_file(found)
    assert torch.equal(fresh["both"], logits(sheared.model))
    with sheared.model.disable_adapter():
        assert torch.equal(fresh["plain"], logits(sheared.model))
    assert not torch.equal(fresh["plain"], fresh["both"])
    if prune_share:  # weights of the full model and nothing else
        full = tiny_llama().state_dict()
        kept = sheared.plan.kept
        for name, value in sheared.model.get_base_model().state_dict().items():
            bare = name.replace(".base_layer", "")
            if "lora_" not in name:
                expected = full[bare]
                for dim, index in kept.get(bare, {}).items():
                    expected = expected.index_select(dim, index)
                assert torch.equal(value, expected), name
    assert sheared.record["recover"]["parameters"] == sheared.record["cut"]["parameters"]
    again = runs(run, resume=True, **more)
    assert torch.equal(logits(again.model), logits(sheared.model))
    # stopped before recovery, the run still knows what LHSPG's adapters learnt
    stopped = tmp_path / "stopped"
    shutil.copytree(run, stopped, ignore=shutil.ignore_patterns("model", "adapter_*", "recover"))
    shutil.copytree(run / "state", stopped / "state", ignore=shutil.ignore_patterns("recover"), dirs_exist_ok=True)
    records = json.loads((stopped / "stages.json").read_text())
    del records["recover"]
    (stopped / "stages.json").write_text(json.dumps(records))
    resumed = runs(stopped, resume=True, **more)
    assert torch.equal(logits(resumed.model), logits(sheared.model))


def test_recovery_improves_on_what_the_adapters_of_pruning_learnt(runs: Runs, tmp_path: Path) -> None:
    """The cut is judged with the adapter that recovery starts from."""
    sheared = runs(tmp_path / "run", merge="never", prune_share=0.5, periods=2, tokens=12 * 64)
    merged = runs(tmp_path / "merged", merge="end", prune_share=0.5, periods=2, tokens=12 * 64)
    (source,) = sheared.record["cut"]["losses"]
    assert sheared.record["cut"]["losses"][source] == pytest.approx(merged.record["cut"]["losses"][source], abs=1e-4)
