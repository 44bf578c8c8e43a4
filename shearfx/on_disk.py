"""Applying a plan to a checkpoint on disk, tensor by tensor: the same files as by way of a model in memory."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from shearfx import adapters
from shearfx.adapter_cuts import adapter_cuts
from shearfx.architectures import choose, empty_model, read_config, without_storage
from shearfx.atomic import PLAN_FILE, new_folder, write_text
from shearfx.bias_compensation import options_with
from shearfx.checkpoints import BUFFERS, CONFIG, Contents, contents_of, cut_hollow, finish, write_config
from shearfx.errors import CheckpointError, PlanError, message
from shearfx.plain_config import PlainConfig, plain_config
from shearfx.pruning_plan import PruningPlan
from shearfx.slicing import cut_named
from shearfx.stored_names import Stored, stored_as_model
from shearfx.tensor_files import TensorFiles, damaged, describe, read_json, write_tensors
from shearfx.tracing import tensor_names

__all__ = ["apply_to_folder"]

_COPIED = {".json", ".txt", ".model", ".jinja"}
_OWN = {CONFIG, PLAN_FILE, "original_config.json", "model.safetensors.index.json"}


def apply_to_folder(
    source: str | os.PathLike[str], plan: PruningPlan, target: str | os.PathLike[str], *, overwrite: bool = False
) -> Path:
    """Cut a checkpoint without loading it: one tensor in memory at a time (all experts of a layer, where they are one).

    Args:
        source: the full-size model's folder: of Hugging Face (its ``adapter``, if there is one, is cut too), of
            another class (``model.safetensors`` or shards), or a LoRA adapter's. A plan made for the base cuts its
            adapters as well.
        plan: made for that model.
        target: the new folder; shards stay divided as they were.
        overwrite: replace a folder that shearfx wrote.

    Returns:
        The new folder: the files that ``save(construct(model, plan), plan, target)`` writes, and the tokenizer's.

    Raises:
        PlanError: the plan does not fit.
        CheckpointError: the source is damaged, pickled or incomplete, or the target cannot be written.
    """
    old = Path(source).expanduser()
    if not old.is_dir():
        raise CheckpointError(message("there is no such folder", where=str(old), todo="check the path"))
    if (old / adapters.ADAPTER_CONFIG).is_file() and not (old / CONFIG).is_file():
        with new_folder(target, overwrite=overwrite) as new:
            _cut_adapter(old, plan, new, Path(target))
            write_text(new / PLAN_FILE, plan.to_json())
        return Path(target)
    if plan.layers:
        what, todo = "the plan lets whole layers go, and files are cut tensor by tensor", "construct and save the model"
        raise PlanError(message(what, where=str(old), todo=todo))
    base = plan
    if adapters.is_wrapped(plan):
        if plan.options.get("form") == "fx":
            todo = 'construct and save the model in memory, or make the plan with form="module"'
            raise PlanError(message("a graph of a model with adapters has no base that could be cut alone", todo=todo))
        base = adapters.for_base(plan)
    with TensorFiles(old) as files:
        if (old / CONFIG).is_file():
            job = _with_config(old, files, base)
        else:
            job = _without_config(files, base)
        plan = dataclasses.replace(
            plan, config=dict(job.plain.fields), options=options_with(plan.options, []) | {"form": job.form}
        )
        with new_folder(target, overwrite=overwrite) as new:
            job.write(new, files)
            with_adapter = (old / "adapter" / adapters.ADAPTER_CONFIG).is_file()
            if with_adapter:
                (new / "adapter").mkdir()
                _cut_adapter(old / "adapter", plan, new / "adapter", Path(target))
            _copy_rest(old, new)
            finish(new, plan, job.plain, adapted=with_adapter)
    return Path(target)


@dataclasses.dataclass
class _Job:
    """What is to be written, and where each tensor comes from."""

    contents: Contents
    plain: PlainConfig
    read: Mapping[str, Callable[[], torch.Tensor]]
    file_of: Mapping[str, str]
    form: str = "module"
    config: Any = None
    architecture: str = ""

    def write(self, new: Path, files: TensorFiles) -> None:
        plain = self.plain.config is not None
        if self.config is not None:
            tensors = self.contents.weights.values()
            dtype = next((t.dtype for t in tensors if t.is_floating_point()), None)
            write_config(new, self.plain.config or self.config, self.architecture, dtype, plain=plain)
        division: dict[str, list[str]] | None = None
        if list(files.files) != ["model.safetensors"]:
            division = {}
            for name in self.contents.weights:
                division.setdefault(self.file_of.get(name, max(files.files)), []).append(name)
            division = dict(sorted(division.items()))
        write_tensors(new, self.contents.weights, lambda name: self.read[name](), files=division)
        buffers = self.contents.buffers
        if buffers and not plain:
            write_tensors(new, {n: describe(t) for n, t in buffers.items()}, buffers.__getitem__, stem=BUFFERS)


def _with_config(old: Path, files: TensorFiles, plan: PruningPlan) -> _Job:
    """A Hugging Face folder: its class says how tensors are named, and whether a configuration states the cut."""
    config, cls = read_config(old / CONFIG)
    wanted = plan.options.get("implementations")
    choose(config, wanted if isinstance(wanted, dict) else {})
    try:
        full = empty_model(cls, config)
    except Exception as error:  # classes check their configs with errors of all kinds
        raise damaged(f"no {cls.__name__} can be built from the configuration", old / CONFIG, error) from error
    assert isinstance(full, PreTrainedModel)
    stored = stored_as_model(files, full)
    hollow = without_storage(full)
    small = cut_hollow(hollow, plan)
    form = plan.options.get("form", "module")
    plain = PlainConfig(None, reason="it is a graph of operators, not the original class")
    if form != "fx":
        plain = plain_config(small, plan, config)
    contents = contents_of(small, plan, hollow=True)
    groups = {name: group for group in tensor_names(full).values() for name in group}
    job = _Job(Contents({}, contents.buffers), plain, {}, {}, str(form), config, cls.__name__)
    read: dict[str, Callable[[], torch.Tensor]] = {}
    file_of: dict[str, str] = {}
    after = plan.shapes_after()
    for name, tensor in contents.weights.items():
        if not tensor.is_meta:  # what the fx form adds
            job.contents.weights[name] = describe(tensor)
            read[name] = _given(tensor)
            continue
        found = next((stored[alias] for alias in groups.get(name, (name,)) if alias in stored), None)
        if found is None:
            raise _missing(name, files)
        _checked(name, found, plan, files)
        job.contents.weights[name] = torch.empty(after[name], dtype=found.tensor.dtype, device="meta")
        read[name] = _cutting(name, found.read, plan)
        file_of[name] = found.file
    return dataclasses.replace(job, read=read, file_of=file_of)


def _without_config(files: TensorFiles, plan: PruningPlan) -> _Job:
    """Only tensors: their names are the plan's, or the plan's after (or without) one common prefix."""
    first = {name: names[0] for names in plan.aliases.values() for name in names}
    names = _renamed(files, plan)
    job = _Job(Contents(), PlainConfig(None, reason="the folder has no configuration"), {}, {})
    read: dict[str, Callable[[], torch.Tensor]] = {}
    file_of: dict[str, str] = {}
    after, done = plan.shapes_after(), set()
    for key, name in names.items():
        if (one := first.get(name, name)) in done:
            continue  # tied tensors that the source stored twice
        done.add(one)
        file = next(file for file, held in files.files.items() if key in held)
        stored = Stored(files.tensors[key], file, _reading(files, key))
        _checked(name, stored, plan, files)
        job.contents.weights[key] = torch.empty(after[name], dtype=stored.tensor.dtype, device="meta")
        read[key] = _cutting(name, stored.read, plan)
        file_of[key] = file
    # What is missing shows on loading: a plan does not say which buffers files have and which a model computes.
    return dataclasses.replace(job, read=read, file_of=file_of)


def _renamed(files: TensorFiles, plan: PruningPlan) -> dict[str, str]:
    prefixes = {""} | {".".join(name.split(".")[:i]) + "." for name in plan.shapes for i in (1, 2)}
    prefixes |= {".".join(key.split(".")[:i]) + "." for key in files.tensors for i in (1, 2)}
    for prefix in sorted(prefixes, key=lambda p: (len(p), p)):
        for adds in (True, False):
            names = {key: prefix + key if adds else key.removeprefix(prefix) for key in files.tensors}
            if all(name in plan.shapes for name in names.values()) and len(set(names.values())) == len(names):
                return names
    unknown = next(key for key in files.tensors if key not in plan.shapes)
    raise _misfit(f"{unknown} is in the files, but not in the plan", files)


def _cutting(name: str, read: Callable[[], torch.Tensor], plan: PruningPlan) -> Callable[[], torch.Tensor]:
    return lambda: cut_named(name, read(), plan)


def _reading(files: TensorFiles, key: str) -> Callable[[], torch.Tensor]:
    return lambda: files.read(key)


def _given(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: tensor


def _checked(name: str, stored: Stored, plan: PruningPlan, files: TensorFiles) -> None:
    shape = tuple(stored.tensor.shape)
    if shape != plan.shapes[name]:
        raise _misfit(f"{name} has shape {shape}; the plan was made for {plan.shapes[name]}", files)


def _misfit(what: str, files: TensorFiles) -> PlanError:
    todo = "apply the plan to the checkpoint of the model it was made for"
    return PlanError(message(what, where=str(files.folder), todo=todo))


def _missing(name: str, files: TensorFiles) -> CheckpointError:
    return CheckpointError(
        message(f"{name} is not in the files", where=str(files.folder), todo="copy or save the model again")
    )


def _cut_adapter(old: Path, plan: PruningPlan, new: Path, base: Path) -> None:
    config = adapters.read_adapter(old)
    with TensorFiles(old, "adapter_model") as files:
        shapes = {key: tuple(tensor.shape) for key, tensor in files.tensors.items()}
        cuts = adapter_cuts(plan, shapes, config)
        after = {
            key: torch.empty(cuts[key].shape(shapes[key]), dtype=tensor.dtype, device="meta")
            for key, tensor in files.tensors.items()
        }
        write_tensors(new, after, lambda key: cuts[key](files.read(key)), stem="adapter_model")
    settings = read_json(old / adapters.ADAPTER_CONFIG) | {"base_model_name_or_path": str(base.expanduser().absolute())}
    write_text(new / adapters.ADAPTER_CONFIG, json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _copy_rest(old: Path, new: Path) -> None:
    """Tokenizer, generation settings and the like: data that the cut does not change, and no code."""
    for path in sorted(old.iterdir()):
        known = path.name in _OWN or (new / path.name).exists()
        if path.is_file() and path.suffix in _COPIED and not known:
            shutil.copyfile(path, new / path.name)
