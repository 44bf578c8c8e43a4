"""Saving and loading: what comes back computes bit by bit what went in, with as little help as the form needs."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from torch.utils import _pytree as pytree
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from shearfx import checkpoints
from shearfx.analysis import trace
from shearfx.architectures import shapes
from shearfx.attributes import settle
from shearfx.checkpoints import load, save
from shearfx.construction import construct
from shearfx.errors import CheckpointError, PlanError
from shearfx.graph import Graph
from shearfx.models import load_model
from shearfx.pruning_plan import PruningPlan, of_cuts
from shearfx.tensor_files import TensorFiles, write_tensors
from tests import zoo

pytestmark = pytest.mark.slow  # exports and probes many models: minutes, on a busy machine many

IDS = torch.tensor([[1, 5, 9, 2, 7], [3, 3, 8, 4, 6]])


def cut(graph: Graph, kinds: Iterable[str], drop: int = 1, uneven: bool = False) -> PruningPlan:
    """Drop as many structures of every group of these kinds; of the first group one more if ``uneven``."""
    kept: dict[str, range] = {}
    for group in graph.groups:
        if group.kind in kinds and group.certificate in ("exact", "compensated") and group.size > drop + 1:
            kept[group.name] = range(group.size - drop - (uneven and not kept))
    assert kept
    return of_cuts(graph, kept)


def analysed(name: str) -> tuple[nn.Module, dict[str, Any], Graph]:
    built = zoo.get(name).build()
    return built.module, built.kwargs, trace(built.module, *built.args, **built.kwargs)


def small_of(name: str, kinds: Iterable[str], **how: Any) -> tuple[nn.Module, PruningPlan]:
    module, _, graph = analysed(name)
    plan = settle(module, graph, cut(graph, kinds, **how))
    return construct(module, plan), plan


def outputs(model: nn.Module, **call: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        return [t for t in pytree.tree_leaves(model(**call)) if isinstance(t, torch.Tensor)]


def same(first: nn.Module, second: nn.Module, **call: Any) -> bool:
    pairs = list(zip(outputs(first, **call), outputs(second, **call), strict=True))
    return bool(pairs) and all(torch.equal(a, b) for a, b in pairs)


# -- Hugging Face folders ------------------------------------------------------------------------------

FRESH = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
with torch.no_grad():
    ids = torch.tensor(eval(sys.argv[2]))
    mask = torch.ones_like(ids); mask[0, 0] = 0
    torch.set_num_threads(1)
    logits = [model(ids).logits, model(ids[:, :3], attention_mask=mask[:, :3]).logits]
assert not any(name.split(".")[0] == "shearfx" for name in sys.modules)
print([[float(x.double().sum()).hex(), float(x.double().abs().max()).hex()] for x in logits])
"""


def fresh_process(folder: Path) -> str:
    """Digests of the logits that transformers alone, in a process of its own, computes from a folder."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", FRESH, str(folder), str(IDS.tolist())]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip().splitlines()[-1]


def digests(model: nn.Module) -> str:
    mask = torch.ones_like(IDS)
    mask[0, 0] = 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        logits = [outputs(model, input_ids=IDS)[0], outputs(model, input_ids=IDS[:, :3], attention_mask=mask[:, :3])[0]]
    finally:
        torch.set_num_threads(threads)
    return str([[float(x.double().sum()).hex(), float(x.double().abs().max()).hex()] for x in logits])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_trained_model_cut_uniformly_needs_no_shearfx(stories: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    loaded = load_model(str(stories), dtype=dtype)
    graph = trace(loaded.module, *loaded.args, **loaded.kwargs)
    plan = settle(loaded.module, graph, cut(graph, ("ffn", "heads"), drop=2))
    small = construct(loaded.module, plan)
    folder = save(small, plan, tmp_path / "small", tokenizer=loaded.tokenizer)
    config = json.loads((folder / "config.json").read_text())
    written = json.loads((folder / "shearfx_plan.json").read_text())["config"]
    assert {field: config[field] for field in written} == written
    assert set(written) == {"intermediate_size", "num_attention_heads", "num_key_value_heads"}
    assert fresh_process(folder) == digests(small)
    back = load(folder)
    assert same(small, back, input_ids=IDS)
    assert {p.dtype for p in back.parameters()} == {dtype}
    text = "Once upon a time"
    assert AutoTokenizer.from_pretrained(folder)(text) == loaded.tokenizer(text)  # type: ignore[misc]
    ids = loaded.tokenizer(text, return_tensors="pt").input_ids  # type: ignore[misc]
    generated = [m.generate(ids, max_new_tokens=8, do_sample=False) for m in (small, back)]  # type: ignore[operator]
    assert torch.equal(*generated)
    card = (folder / "README.md").read_text()
    assert "| ffn |" in card and "from_pretrained" in card


@pytest.mark.parametrize(
    ("name", "kinds", "drop", "fields"),
    [
        ("gpt2", ("ffn",), 3, {"n_inner"}),
        ("llama", ("hidden",), 12, {"hidden_size", "rms_norm_eps"}),
        ("mixtral", ("ffn", "heads"), 1, {"intermediate_size", "num_attention_heads", "num_key_value_heads"}),
        ("llama_square", ("ffn",), 4, {"intermediate_size"}),
    ],
)
def test_fields_of_the_config_are_found(
    tmp_path: Path, name: str, kinds: tuple[str, ...], drop: int, fields: set[str]
) -> None:
    small, plan = small_of(name, kinds, drop=drop)
    folder = save(small, plan, tmp_path / "small")
    assert set(json.loads((folder / "shearfx_plan.json").read_text())["config"]) == fields
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    if hasattr(plain.config, "_experts_implementation"):
        plain.set_experts_implementation("batched_mm")
    assert same(small, plain, input_ids=IDS, use_cache=False)
    assert shapes(plain) == plan.shapes_after()


@pytest.mark.parametrize(
    ("name", "kinds", "how"),
    [
        ("llama", ("ffn",), {"uneven": True}),  # layers differ
        ("gpt2", ("heads",), {}),  # the config has no head dim beside hidden size and heads
        ("qwen3", ("hidden",), {"drop": 12}),  # the query norm keeps the epsilon that the others lose
    ],
)
def test_what_no_config_states_loads_with_shearfx_and_never_silently_without(
    tmp_path: Path, name: str, kinds: tuple[str, ...], how: dict[str, Any]
) -> None:
    small, plan = small_of(name, kinds, **how)
    folder = save(small, plan, tmp_path / "small")
    assert not (folder / "config.json").exists()
    with pytest.raises((OSError, ValueError)):
        AutoModelForCausalLM.from_pretrained(folder)
    back = load(folder)
    assert type(back) is type(small)
    assert same(small, back, input_ids=IDS, use_cache=False)
    assert "transformers alone cannot load it" in (folder / "README.md").read_text()


def test_ties_stay_tied(tmp_path: Path) -> None:
    small, plan = small_of("llama_mha_tied", ("ffn",), uneven=True)
    folder = save(small, plan, tmp_path / "small")
    back = load(folder)
    assert back.get_input_embeddings().weight is back.get_output_embeddings().weight  # type: ignore[operator]
    with TensorFiles(folder) as files:
        assert len(files.tensors) == len(dict(small.named_parameters()))
    assert same(small, back, input_ids=IDS, use_cache=False)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_the_fx_form_is_rebuilt_by_tracing(tmp_path: Path, name: str) -> None:
    module, kwargs, graph = analysed(name)
    assert isinstance(module, PreTrainedModel)
    plan = cut(graph, ("ffn", "value_dim", "head_dim"))
    small = construct(module, plan, form="fx", graph=graph)
    folder = save(small, plan, tmp_path / "small", original_config=module.config)
    back = load(folder)
    assert isinstance(back, torch.fx.GraphModule)
    call: dict[str, Any] = {name: value for name, value in kwargs.items() if name in graph.traced.inputs}
    assert same(small, back, **call)
    hollow: Any = copy.deepcopy(module)
    again = load(folder, model=lambda: hollow.to("meta"))
    assert same(small, again, **call)


# -- adapters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("name", ["llama_lora", "gpt2_lora"])
def test_base_and_adapter_are_both_cut_and_loadable(tmp_path: Path, name: str, uneven: bool) -> None:
    small, plan = small_of(name, ("ffn",), uneven=uneven)
    folder = save(small, plan, tmp_path / "small")
    back = load(folder)
    assert isinstance(back, PeftModel)
    assert same(small, back, input_ids=IDS, use_cache=False)
    trained = {name for name, p in small.named_parameters() if p.requires_grad}
    assert {name for name, p in back.named_parameters() if p.requires_grad} == trained
    assert (folder / "config.json").exists() is not uneven
    if not uneven:
        base = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        peft = PeftModel.from_pretrained(base, str(folder / "adapter"))
        assert same(small, peft.eval(), input_ids=IDS, use_cache=False)


# -- classes of the user's own -------------------------------------------------------------------------


class Net(nn.Module):
    """A tied pair of layers, a table that is no part of the state, and a plain buffer."""

    table: torch.Tensor
    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.up, self.middle, self.down = nn.Linear(5, 12), nn.Linear(12, 12, bias=False), nn.Linear(12, 5)
        self.again = self.up
        self.register_buffer("table", torch.randn(12), persistent=False)
        self.register_buffer("seen", torch.tensor(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(torch.relu(self.up(x)) * self.table)
        result: torch.Tensor = self.down(torch.relu(self.middle(torch.relu(self.again(x)))))
        return result


def own() -> tuple[Net, nn.Module, PruningPlan]:
    torch.manual_seed(0)
    full = Net().eval()
    graph = trace(full, torch.randn(2, 5))
    kept = {group.name: [0, 2, 3, 7, 8] for group in graph.groups if group.size == 12}
    plan = of_cuts(graph, kept)
    return full, construct(full, plan), plan


def test_a_class_of_the_users_own(tmp_path: Path) -> None:
    full, small, plan = own()
    folder = save(small, plan, tmp_path / "net")
    x = torch.randn(3, 5)
    for model in (full, copy.deepcopy(full).to("meta"), lambda: copy.deepcopy(full)):
        before = {n: t.clone() for n, t in full.named_parameters()}
        back = load(folder, model=model)
        assert isinstance(back, Net) and back.again is back.up
        assert same(small, back, x=x)
        assert all(torch.equal(t, before[n]) for n, t in full.named_parameters())
    with pytest.raises(CheckpointError, match="does not say how to build"):
        load(folder)
    with pytest.raises(PlanError, match="the plan was made for"):
        load(folder, model=nn.Linear(5, 12))


def test_large_models_are_sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full, small, plan = own()
    write = write_tensors
    monkeypatch.setattr(checkpoints, "write_tensors", lambda *a, **k: write(*a, **k, max_shard=300))
    folder = save(small, plan, tmp_path / "net")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert same(small, load(folder, model=full), x=torch.randn(3, 5))


def test_only_what_the_plan_gives_is_saved(tmp_path: Path) -> None:
    full, small, plan = own()
    with pytest.raises(PlanError, match="the plan leaves"):
        save(full, plan, tmp_path / "net")
    with pytest.raises(CheckpointError, match="meta"):
        save(copy.deepcopy(small).to("meta"), plan, tmp_path / "net")
    small.register_buffer("extra", torch.zeros(1))
    with pytest.raises(PlanError, match="extra"):
        save(small, plan, tmp_path / "net")
    assert list(tmp_path.iterdir()) == []
