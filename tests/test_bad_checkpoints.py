"""Damaged folders, and folders and plans from strangers: one clear error each, nothing run, nothing left behind."""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from shearfx import tensor_files
from shearfx.analysis import trace
from shearfx.checkpoints import load, save
from shearfx.construction import construct
from shearfx.errors import CheckpointError, PlanError, ShearError
from shearfx.pruning_plan import PruningPlan, digest_of, of_cuts
from shearfx.verification import verify
from tests import zoo
from tests.test_checkpoints import Net, analysed, cut, own


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama whose layers differ (so that plan, original config and buffers are all needed)."""
    module, _, graph = analysed("llama")
    plan = cut(graph, ("ffn",), uneven=True)
    return save(construct(module, plan), plan, tmp_path_factory.mktemp("saved") / "small")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def refused(folder: Path, what: str, kind: type[ShearError] = CheckpointError, model: Any = None) -> None:
    with pytest.raises(kind, match=what) as caught:
        load(folder, model=model)
    assert "do:" in str(caught.value)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_copy_is_fine(folder: Path) -> None:
    load(folder)


@pytest.mark.parametrize("file", ["shearfx_plan.json", "model.safetensors", "original_config.json"])
def test_a_missing_file(folder: Path, file: str) -> None:
    (folder / file).unlink()
    refused(folder, "shearfx_plan.json|model.safetensors is missing|does not say how to build")


def test_no_folder(tmp_path: Path) -> None:
    refused(tmp_path / "none", "no such folder")


@pytest.mark.parametrize("file", ["model.safetensors", "buffers.safetensors"])
def test_a_truncated_file(folder: Path, file: str) -> None:
    whole = (folder / file).read_bytes()
    for size in (0, 5, 100, len(whole) - 1):
        (folder / file).write_bytes(whole[:size])
        refused(folder, "truncated or damaged")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00\xff", "[" * 100_000])
@pytest.mark.parametrize("file", ["shearfx_plan.json", "original_config.json"])
def test_damaged_json(folder: Path, file: str, text: str) -> None:
    (folder / file).write_text(text, encoding="latin-1")
    refused(folder, ".", PlanError if "plan" in file and "\xff" not in text else CheckpointError)


def test_pickles_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, "pickle can run any code")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda t: t.pop("model.norm.weight"), "model.norm.weight is not in the files"),
        (lambda t: t.update(extra=torch.ones(2)), "extra is in the files, but not in the model"),
        (lambda t: t.update({"model.norm.weight": torch.ones(47)}), "has shape"),
        (lambda t: t.update({"model.norm.weight": torch.ones(48, dtype=torch.int32)}), "torch.int32"),
        (lambda t: t.update({"model.norm.weight": torch.ones(48, dtype=torch.complex64)}), "torch.complex64"),
    ],
)
def test_tensors_that_do_not_fit(folder: Path, change: Any, what: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    refused(folder, what)


def test_a_plan_for_another_model(folder: Path) -> None:
    _, _, plan = own()
    (folder / "shearfx_plan.json").write_text(plan.to_json())
    refused(folder, "which the plan was made for", PlanError)


def test_a_model_that_the_plan_was_not_made_for(folder: Path) -> None:
    refused(folder, "the plan was made for", PlanError, model=zoo.get("llama_wide").build().module)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "stranger", "auto_map": {"AutoModelForCausalLM": "evil.Model"}},
        {"model_type": "stranger", "auto_map": {"AutoModelForCausalLM": "someone/evil--evil.Model"}},
        {"model_type": None},
        {"architectures": ["os.system"]},
        {"architectures": ["BertForMaskedLM"]},
        {"attn_implementation": "someone/kernel"},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"hidden_size": -1},
        {"hidden_size": 2**60},
        {"num_hidden_layers": "four"},
    ],
)
def test_configs_from_strangers(folder: Path, changes: dict[str, Any]) -> None:
    (folder / "evil.py").write_text("raise SystemExit('run')")
    edit(folder / "original_config.json", **changes)
    refused(folder, ".")


def test_names_from_files_are_never_imported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(folder / "original_config.json", auto_map={"AutoModelForCausalLM": "evil.Model"})
    (folder / "evil.py").write_text("raise SystemExit('run')")
    monkeypatch.syspath_prepend(folder)
    load(folder)  # a class of transformers: what the file says about other code is not read


@functools.cache
def cut_adapter() -> tuple[nn.Module, PruningPlan]:
    module, _, graph = analysed("gpt2_lora")
    plan = cut(graph, ("ffn",), uneven=True)
    return construct(module, plan), plan


@pytest.mark.parametrize(
    "change", [{"peft_type": "IA3"}, {"megatron_config": {"x": 1}}, {"r": -1}, {"target_modules": 3}]
)
def test_adapters_from_strangers(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = save(*cut_adapter(), tmp_path / "small")
    edit(folder / "adapter" / "adapter_config.json", **change)
    refused(folder, ".")


# -- plans ---------------------------------------------------------------------------------------------

PLAN = json.loads(own()[2].to_json())


def signed(data: dict[str, Any]) -> str:
    """As JSON with a digest that fits: a stranger can make one too."""
    return json.dumps({**data, "digest": digest_of(data)})


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.sampled_from(["", "0-99999999999", "-1", "#9", "(" * 5000, "#0*" * 5000 + "1", "__class__", "1" * 5000]),
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path, *(place for key, value in items for place in places(value, (*path, key)))]


def test_a_damaged_plan_says_so() -> None:
    with pytest.raises(PlanError, match="damaged or changed"):
        PruningPlan.from_json(json.dumps({**PLAN, "attributes": {}, "terms": {}}))


def test_terms_that_are_not_those_of_the_groups_are_refused() -> None:
    terms = {name: [None] * len(term) if name == "up.bias" else term for name, term in PLAN["terms"].items()}
    plan = PruningPlan.from_json(signed({**PLAN, "terms": terms}))
    with pytest.raises(PlanError, match=r"up\.bias"):
        verify(Net().eval(), plan, torch.randn(2, 4))


@settings(max_examples=30)
@given(st.sampled_from(places(PLAN)[1:]), VALUES)
@example(("call", "x", "shape"), None)
@example(("aliases", "up.bias", 0), None)
def test_a_plan_with_any_value_anywhere_is_a_plan_or_an_error(place: tuple[Any, ...], value: Any) -> None:
    data = json.loads(json.dumps(PLAN))
    holder = data
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    try:
        plan = PruningPlan.from_json(signed(data))
        construct(Net().eval(), plan)
    except ShearError:
        pass


@pytest.mark.parametrize(
    "changes",
    [
        {"cuts": [{**PLAN["cuts"][0], "size": 2**60, "kept": f"0-{2**59}"}]},
        {"cuts": [{**PLAN["cuts"][0], "size": -3}]},
        {"cuts": [{**PLAN["cuts"][0], "kept": "-1"}]},
        {"cuts": [{**PLAN["cuts"][0], "kept": "3,2"}]},
        {"asked": float("nan")},
        {"config": {"hidden_size": float("inf")}},
        {"attributes": {"up": {"__class__": "os.system"}}},
        {"terms": {"up.weight": ["#0" + "*1" * 100_000, None]}},
        {"format": 999},
    ],
)
def test_hostile_plans(changes: dict[str, Any]) -> None:
    with pytest.raises(PlanError):
        PruningPlan.from_json(signed({**PLAN, **changes}))


@pytest.mark.parametrize(
    "attribute", ["__class__", "forward", "__dict__", "training", "weight", "_parameters", "x.__class__"]
)
def test_a_plan_changes_numbers_only(attribute: str) -> None:
    full = Net()
    changes = {"options": {"form": "module"}, "attributes": {"up": {attribute: 3}}}
    plan = PruningPlan.from_json(signed({**PLAN, **changes}))
    with pytest.raises(PlanError):
        construct(full, plan)


# -- writing -------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, small, plan = own()

    def full(tensor: torch.Tensor) -> bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tensor_files, "_bytes", full)
    with pytest.raises(CheckpointError, match="the disk is full"):
        save(small, plan, tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_kept(tmp_path: Path) -> None:
    _, small, plan = own()
    folder = save(small, plan, tmp_path / "net")
    with pytest.raises(CheckpointError, match="exists"):
        save(small, plan, folder)
    save(small, plan, folder, overwrite=True)


def test_state_that_is_no_tensor(tmp_path: Path) -> None:
    class Stateful(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"steps": 3}

        def set_extra_state(self, state: dict[str, int]) -> None: ...

    model = nn.Sequential(Stateful(4, 6), nn.Linear(6, 4))
    graph = trace(model, torch.randn(2, 4))
    plan = of_cuts(graph, {graph.groups[0].name: range(4)})
    with pytest.raises(CheckpointError, match="no parameter or buffer"):
        save(construct(model, plan), plan, tmp_path / "net")
    assert list(tmp_path.iterdir()) == []
