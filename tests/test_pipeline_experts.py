"""Runs on mixtures of experts, by the defaults: scored, cut, fitted and recovered where no layer is a module's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

import shearfx
from shearfx.config import ShearConfig
from shearfx.pipeline.adapting import adapting
from shearfx.pipeline.kinds import kinds_in
from shearfx.training.state_files import read_state
from tests import zoo
from tests.tiny_runs import Telling, faded_logits, options, write_text
from tests.tiny_tokenizers import byte_tokenizer


def tiny_mixtral() -> MixtralForCausalLM:
    torch.manual_seed(3)
    config = MixtralConfig(
        vocab_size=264, hidden_size=32, intermediate_size=72, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2, num_local_experts=4,
        num_experts_per_tok=2,
    )  # fmt: skip
    model: MixtralForCausalLM = MixtralForCausalLM(config).eval()
    return model


def asked(folder: Path, **more: Any) -> dict[str, Any]:
    return options(write_text(folder / "text.txt"), kinds=("ffn", "heads"), ratio=0.2, **more)


def shear(model: Any, folder: Path, **more: Any) -> Any:
    return shearfx.shear(model, out=folder / "run", tokenizer=byte_tokenizer(), **asked(folder, **more))


def test_experts_are_cut_fitted_and_recovered(tmp_path: Path) -> None:
    model = tiny_mixtral()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sheared = shear(model, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {cut.kind for cut in sheared.plan.cuts} >= {"ffn"}
    plain = shearfx.construct(model, sheared.plan)
    now, cut = sheared.model.state_dict(), plain.state_dict()
    for name in ("mlp.experts.down_proj", "mlp.experts.gate_up_proj", "mlp.gate.weight"):  # fitted, and learnt
        assert not torch.equal(now[f"model.layers.0.{name}"], cut[f"model.layers.0.{name}"])
    assert sheared.record["recover"]["losses"]["text"] < sheared.record["cut"]["losses"]["text"]
    again = shearfx.load(sheared.path / "model")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, sheared.model(ids).logits)


@pytest.mark.parametrize(
    "more",
    [
        {"prune_share": 0.5, "distill": 0.5},
        *(pytest.param(one, marks=pytest.mark.slow) for one in (
            {"prune_share": 0.5, "targets": ("q_proj", "v_proj"), "compensation": "none"},  # experts learn nothing
            {"prune_share": 0.5, "saliency": "loraprune", "compensation": "none"},
            {"recipe": "paper", "compensation": "none", "distill": 0.0},
            {"prune_share": 0.5, "carrier": "weights", "merge": "period", "compensation": "none"},
            {"prune_share": 0.5, "merge": "never", "compensation": "none"},
        )),
    ],
    ids=lambda more: ", ".join(f"{k} {v}" for k, v in more.items()),
)  # fmt: skip
def test_experts_that_fade_are_what_is_cut(tmp_path: Path, more: dict[str, Any]) -> None:
    ids = torch.arange(48).reshape(3, 16) % 200
    with faded_logits(ids) as faded:
        sheared = shear(tiny_mixtral(), tmp_path, tokens=20 * 64, periods=2, **more)
    assert {cut.kind for cut in sheared.plan.cuts} == {"ffn", "heads"}
    assert len(faded) == 1
    cut = shearfx.load(tmp_path / "run" / "cut")
    if more.get("merge") == "never":
        learnt: Any = read_state(tmp_path / "run" / "state" / "adapter")
        with adapting(ShearConfig.of_mapping(asked(tmp_path, **more)), cut, learnt) as one, torch.no_grad():
            found = one(input_ids=ids).logits
        assert isinstance(sheared.model, PeftModel)
        fresh = PeftModel.from_pretrained(shearfx.load(tmp_path / "run" / "model"), str(tmp_path / "run" / "adapter"))
        with torch.no_grad():
            assert torch.equal(fresh(input_ids=ids).logits, sheared.model(input_ids=ids).logits)
    else:
        with torch.no_grad():
            found = cut(input_ids=ids).logits
    torch.testing.assert_close(found, faded[0], rtol=1e-4, atol=1e-4)  # float32


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "gpt_oss", "phimoe", "deepseek_v2",
                                  "deepseek_v2_lite", "deepseek_v3"])  # fmt: skip
def test_every_mixture_of_the_zoo_is_sheared_by_the_defaults(name: str, tmp_path: Path) -> None:
    config: Any = zoo.get(name).build().module.config
    config.vocab_size = 264
    torch.manual_seed(0)
    sheared = shear(AutoModelForCausalLM.from_config(config).eval(), tmp_path)
    assert 0.15 < sheared.plan.achieved < 0.25
    assert shearfx.load(sheared.path / "model") is not None


def test_kinds_that_a_model_lacks_are_said_and_left_out_by_default() -> None:
    model = zoo.get("mamba").build()
    graph = shearfx.trace(model.module, *model.args, **model.kwargs)
    assert "heads" not in {group.kind for group in graph.groups}
    teller = Telling()
    assert kinds_in(graph, ShearConfig(pretrain=("a.txt",)), teller) == ("ffn",)
    assert "no groups of kind heads" in teller.told[0]
    asked = ("heads", "value_dim")
    assert kinds_in(graph, ShearConfig(pretrain=("a.txt",), kinds=asked), teller) == asked, "which is then refused"
