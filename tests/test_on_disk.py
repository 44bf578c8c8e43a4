"""A checkpoint cut on disk is the checkpoint of the model cut in memory, byte by byte."""

from __future__ import annotations

import copy
import filecmp
import weakref
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from shearfx.analysis import trace
from shearfx.attributes import settle
from shearfx.checkpoints import load, save
from shearfx.construction import construct
from shearfx.errors import CheckpointError, PlanError, ShearError
from shearfx.models import load_model
from shearfx.on_disk import apply_to_folder
from shearfx.tensor_files import TensorFiles
from tests.test_checkpoints import IDS, analysed, cut, own, same

pytestmark = pytest.mark.slow  # exports and probes many models: minutes, on a busy machine many


def equal(first: Path, second: Path, but: tuple[str, ...] = ()) -> bool:
    """Whether two folders hold the same files."""
    names = {str(p.relative_to(f)) for f in (first, second) for p in f.rglob("*") if p.is_file()} - set(but)
    _, differ, missing = filecmp.cmpfiles(first, second, names, shallow=False)
    return not differ and not missing


@pytest.mark.parametrize("uneven", [False, True])
def test_a_trained_model(stories: Path, tmp_path: Path, uneven: bool) -> None:
    loaded = load_model(str(stories))
    graph = trace(loaded.module, *loaded.args, **loaded.kwargs)
    plan = settle(loaded.module, graph, cut(graph, ("ffn", "heads"), drop=2, uneven=uneven))
    save(construct(loaded.module, plan), plan, tmp_path / "memory")
    apply_to_folder(stories, plan, tmp_path / "disk")
    assert equal(tmp_path / "memory", tmp_path / "disk", ("tokenizer.json", "tokenizer_config.json"))
    assert (tmp_path / "disk" / "tokenizer.json").read_bytes() == (stories / "tokenizer.json").read_bytes()
    assert (tmp_path / "disk" / "config.json").exists() is not uneven


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("name", ["llama_mha_tied", "gpt2", "mixtral", "gpt_neox", "vit"])
def test_names_and_tensors_as_stored(tmp_path: Path, name: str, stored: bool) -> None:
    """``stored``: as the architecture's files are on the hub (experts one by one, other names), or as in memory."""
    module, _, graph = analysed(name)
    plan = settle(module, graph, cut(graph, ("ffn",), uneven=True))
    module.save_pretrained(tmp_path / "full", save_original_format=stored)  # type: ignore[operator]
    save(construct(module, plan), plan, tmp_path / "memory")
    apply_to_folder(tmp_path / "full", plan, tmp_path / "disk")
    assert equal(tmp_path / "memory", tmp_path / "disk")


def test_shards_stay_divided(tmp_path: Path) -> None:
    module, _, graph = analysed("llama")
    plan = settle(module, graph, cut(graph, ("ffn",)))
    small = construct(module, plan)
    module.save_pretrained(tmp_path / "full", max_shard_size="30KB")  # type: ignore[operator]
    apply_to_folder(tmp_path / "full", plan, tmp_path / "disk")
    with TensorFiles(tmp_path / "full") as before, TensorFiles(tmp_path / "disk") as after:
        assert len(before.files) > 1
        assert {f: sorted(n) for f, n in before.files.items()} == {f: sorted(n) for f, n in after.files.items()}
    assert same(small, load(tmp_path / "disk"), input_ids=IDS, use_cache=False)
    assert same(small, AutoModelForCausalLM.from_pretrained(tmp_path / "disk"), input_ids=IDS, use_cache=False)


def test_one_tensor_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _, graph = analysed("llama")
    plan = cut(graph, ("ffn",), uneven=True)
    module.save_pretrained(tmp_path / "full")  # type: ignore[operator]
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0
    read = TensorFiles.read

    def counted(self: TensorFiles, name: str) -> torch.Tensor:
        nonlocal most
        tensor = read(self, name)
        alive.append(weakref.ref(tensor))
        most = max(most, sum(ref() is not None for ref in alive))
        return tensor

    monkeypatch.setattr(TensorFiles, "read", counted)
    apply_to_folder(tmp_path / "full", plan, tmp_path / "disk")
    assert len(alive) > 10
    assert most <= 2  # the one that was just written goes when the next is there


def test_a_class_of_the_users_own(tmp_path: Path) -> None:
    full, small, plan = own()
    (tmp_path / "full").mkdir()
    kept = {name: tensor for name, tensor in full.state_dict().items() if not name.startswith("again")}
    for prefix in ("", "module."):  # as DataParallel prefixes names
        save_file({prefix + n: t for n, t in kept.items()}, tmp_path / "full" / "model.safetensors")
        apply_to_folder(tmp_path / "full", plan, tmp_path / f"disk{prefix}")
    save(small, plan, tmp_path / "memory")
    files = [load_file(tmp_path / f / "model.safetensors") for f in ("memory", "disk", "diskmodule.")]
    assert files[0].keys() == files[1].keys() == {n.removeprefix("module.") for n in files[2]}
    assert (tmp_path / "memory" / "model.safetensors").read_bytes() == (
        tmp_path / "disk" / "model.safetensors"
    ).read_bytes()
    assert all(torch.equal(tensor, files[2][f"module.{name}"]) for name, tensor in files[0].items())
    assert same(small, load(tmp_path / "disk", model=full), x=torch.randn(3, 5))


@pytest.mark.parametrize("name", ["llama_lora", "gpt2_lora"])
def test_base_and_adapter(tmp_path: Path, name: str) -> None:
    """A plan for the wrapped model cuts both folders; one for the base cuts an adapter by itself."""
    module, _, graph = analysed(name)
    assert isinstance(module, PeftModel)
    plan = settle(module, graph, cut(graph, ("ffn",)))
    small = construct(module, plan)
    save(small, plan, tmp_path / "memory")
    base = copy.deepcopy(module).unload()
    base.save_pretrained(tmp_path / "full")
    module.save_pretrained(str(tmp_path / "full" / "adapter"))
    apply_to_folder(tmp_path / "full", plan, tmp_path / "disk")
    assert equal(tmp_path / "memory", tmp_path / "disk", ("adapter/adapter_config.json", "adapter/README.md"))
    assert same(small, load(tmp_path / "disk"), input_ids=IDS, use_cache=False)

    for_base = trace(base, input_ids=IDS)
    alone = settle(base, for_base, cut(for_base, ("ffn",)))
    for which, adapter_plan in (("wrapped", plan), ("base", alone)):
        apply_to_folder(tmp_path / "full" / "adapter", adapter_plan, tmp_path / which)
        assert (tmp_path / which / "adapter_model.safetensors").read_bytes() == (
            tmp_path / "memory" / "adapter" / "adapter_model.safetensors"
        ).read_bytes()
    cut_base = AutoModelForCausalLM.from_pretrained(tmp_path / "disk")
    assert same(
        small, PeftModel.from_pretrained(cut_base, str(tmp_path / "base")).eval(), input_ids=IDS, use_cache=False
    )


def test_a_plan_for_another_checkpoint(stories: Path, tmp_path: Path) -> None:
    _, _, graph = analysed("llama")
    plan = cut(graph, ("ffn",))
    with pytest.raises(PlanError, match="the plan was made for"):
        apply_to_folder(stories, plan, tmp_path / "new")
    _, _, other = own()
    (tmp_path / "full").mkdir()
    save_file({"x": torch.ones(2)}, tmp_path / "full" / "model.safetensors")
    with pytest.raises(PlanError, match="x is in the files, but not in the plan"):
        apply_to_folder(tmp_path / "full", other, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("missing", ["model.safetensors", "model.layers.0.mlp.up_proj.weight"])
def test_an_incomplete_checkpoint(tmp_path: Path, missing: str) -> None:
    module, _, graph = analysed("llama")
    plan = cut(graph, ("ffn",), uneven=True)
    module.save_pretrained(tmp_path / "full")  # type: ignore[operator]
    path = tmp_path / "full" / "model.safetensors"
    tensors = load_file(path)
    if tensors.pop(missing, None) is not None:
        save_file(tensors, path)
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=f"{missing} is"):
        apply_to_folder(tmp_path / "full", plan, tmp_path / "new")
    with pytest.raises(ShearError, match="no such folder"):
        apply_to_folder(tmp_path / "none", plan, tmp_path / "new")
    assert not (tmp_path / "new").exists()
