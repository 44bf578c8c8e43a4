"""Recovery on a base in few bits: QLoRA."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaForCausalLM

import shearfx
from shearfx.config import ShearConfig
from shearfx.config_values import Quantize
from shearfx.errors import PlanError
from shearfx.low_rank import plain_weight
from shearfx.pipeline import quantized
from shearfx.pipeline.quantized import quantize, quantized_bytes
from shearfx.saliency import REGISTRY
from tests.tiny_runs import Runs, options, tiny_llama, write_model, write_text
from tests.tiny_tokenizers import byte_tokenizer

IDS = torch.arange(32).reshape(2, 16) * 7 % 264
FORMS: list[Quantize] = ["8bit", "4bit"]
SIZES = {"hidden_size": 64, "intermediate_size": 100}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("tiny")
    return Runs(write_model(folder / "model", **SIZES), write_text(folder / "text.txt"))


@pytest.fixture(autouse=True)
def bitsandbytes() -> Any:
    return pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")


def gradients(model: Any) -> torch.Tensor:
    """Of the factors B, after the model has looked at text in evaluation mode, as rounds of recovery do."""
    torch.manual_seed(0)
    wrapped: Any = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    with torch.no_grad():
        wrapped.eval()
        wrapped(input_ids=IDS)
    wrapped.train()
    wrapped(input_ids=IDS, labels=IDS).loss.backward()
    return torch.cat([p.grad.flatten() for n, p in wrapped.named_parameters() if "lora_B" in n])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_adapters_learn_on_packed_weights_what_they_learn_on_plain_ones(form: Quantize, dtype: torch.dtype) -> None:
    plain: Any = tiny_llama(**SIZES)
    packed: Any = tiny_llama(**SIZES)
    plain, packed = plain.to(dtype), quantize(packed.to(dtype), form)
    rounded = 0
    for path, module in packed.named_modules():
        if "Linear" in type(module).__name__ and type(module) is not nn.Linear:
            layer: Any = plain.get_submodule(path)
            before, layer.weight.data = layer.weight.data, plain_weight(module).to(dtype)
            rounded += 0 < (layer.weight - before).norm() < 0.15 * before.norm()
    assert rounded == 14
    assert torch.cosine_similarity(gradients(plain), gradients(packed), dim=0) > 0.99


@pytest.mark.parametrize("form", FORMS)
def test_a_run_heals_in_few_bits_and_leaves_plain_weights(
    form: Quantize, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[nn.Module] = []

    def seen(model: nn.Module, asked: Quantize) -> nn.Module:
        trained.append(quantize(model, asked))
        return model

    monkeypatch.setattr("shearfx.pipeline.held.quantize", seen)
    sheared = runs(tmp_path / "run", quantize=form, tokens=None, steps=30, distill=0.5, rank=4)
    kinds = {type(module).__name__ for module in trained[0].modules()}
    assert len(trained) == 1 and ("Linear4bit" if form == "4bit" else "Linear8bitLt") in kinds
    cut, recovered = sheared.record["cut"]["losses"], sheared.record["recover"]["losses"]
    assert sum(recovered.values()) < sum(cut.values())
    before, after = shearfx.load(tmp_path / "run" / "cut").state_dict(), sheared.model.state_dict()
    assert all(tensor.is_floating_point() for tensor in after.values())
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {name for name in after if "_proj" in name}
    for name in changed:
        apart = torch.linalg.svdvals(after[name].double() - before[name].double())
        assert apart[4] < 1e-5 * apart[0], name  # what a rank of 4 adds, and no rounding to few bits


def test_recovery_by_itself_heals_in_four_bits(runs: Runs, tmp_path: Path) -> None:
    from shearfx.pipeline import Silent
    from shearfx.pipeline.stages import recover_model

    runs(tmp_path / "run", tokens=0)
    config = ShearConfig.of_mapping(options(runs.text, quantize="4bit", tokens=None, steps=20))
    found = recover_model(str(tmp_path / "run" / "model"), str(runs.model), tmp_path / "out", config, Silent())
    assert sum(found["recover"]["losses"].values()) < sum(found["cut"]["losses"].values())


def test_a_model_without_a_layer_heals_in_four_bits(runs: Runs, tmp_path: Path) -> None:
    """Gromov et al.: drop layers, then QLoRA."""
    from shearfx.depth import write_shorter
    from shearfx.pipeline import Silent
    from shearfx.pipeline.stages import recover_model

    full: Any = LlamaForCausalLM.from_pretrained(runs.model)
    graph, shorter = shearfx.trace(full, IDS), tmp_path / "shorter"
    write_shorter(full, graph, ["model.layers.0"], shorter, kwargs={"input_ids": IDS}, tokenizer=byte_tokenizer())
    config = ShearConfig.of_mapping(options(runs.text, quantize="4bit", tokens=None, steps=20))
    found = recover_model(str(shorter), str(runs.model), tmp_path / "out", config, Silent())
    assert sum(found["recover"]["losses"].values()) < sum(found["cut"]["losses"].values())
    healed: Any = LlamaForCausalLM.from_pretrained(tmp_path / "out" / "model")
    assert healed.config.num_hidden_layers == full.config.num_hidden_layers - 1
    assert all(p.is_floating_point() for p in healed.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_bytes_are_those_that_a_packed_model_takes(form: Quantize) -> None:
    model = tiny_llama(hidden_size=512, intermediate_size=1408).bfloat16()
    foreseen = quantized_bytes(model, form)
    taken = 0
    for module in quantize(model, form).modules():
        for p in module.parameters(recurse=False):
            taken += p.numel() * p.element_size()
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            taken += sum(t.numel() * t.element_size() for t in (state.absmax, state.state2.absmax))
    assert abs(foreseen - taken) < 0.01 * taken


def test_output_and_shared_layers_stay() -> None:
    model = tiny_llama(tie_word_embeddings=False)
    second = model.model.layers[1].mlp
    second.up_proj.weight = second.gate_proj.weight
    names = {name for name, module in quantize(model, "8bit").named_modules() if type(module) is nn.Linear}
    assert names == {"lm_head", "model.layers.1.mlp.up_proj", "model.layers.1.mlp.gate_proj"}
    assert isinstance(model, LlamaForCausalLM)


def test_without_bitsandbytes_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", None)
    with pytest.raises(PlanError, match=r"needs bitsandbytes(.|\n)*pip install 'shearfx.qlora.'"):
        quantize(tiny_llama(), "4bit")
    assert quantized.BITS["4bit"] < 4.2
    with pytest.raises(PlanError, match="one of none, 8bit, 4bit"):
        ShearConfig.of_mapping({"quantize": "2bit"})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("saliency", ["magnitude", "taylor", "llm_pruner_element1", "llm_pruner_vector2"])
def test_packed_weights_are_not_taken_for_numbers(saliency: str, form: Quantize) -> None:
    model = tiny_llama(**SIZES)
    graph = shearfx.trace(model, input_ids=IDS, use_cache=False)
    packed = quantize(model.train(), form)
    with pytest.raises(PlanError, match=r"is kept as torch\.u?int8(.|\n)*fisher"):
        REGISTRY[saliency]().score(graph, packed, data=[{"input_ids": IDS, "labels": IDS}])
