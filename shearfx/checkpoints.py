"""``shearfx.save`` and ``shearfx.load``: a small model as safetensors and the plan, nothing that could run code.

A folder holds ``model.safetensors`` (or shards and their index) and ``shearfx_plan.json``. Of a Hugging Face model it
also holds ``config.json`` where a configuration states the cut (then ``from_pretrained`` alone loads it), and
``original_config.json`` where none does (then it must fail, rather than load something else). ``buffers.safetensors``
holds what a module computes for itself and a file would normally not have; ``adapter`` the adapters, in PEFT's layout.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from transformers import GenerationConfig, PreTrainedConfig

from shearfx import adapters
from shearfx.analysis import trace
from shearfx.architectures import (
    OriginalNeededError,
    assign,
    choose,
    config_of,
    empty_model,
    implementations_of,
    named_tensors,
    read_config,
    with_storage,
    without_storage,
)
from shearfx.atomic import PLAN_FILE, new_folder, write_text
from shearfx.bias_compensation import add_biases, added_biases, options_with
from shearfx.construction import construct, example_call
from shearfx.errors import CheckpointError, PlanError, message
from shearfx.filling import Source, fill
from shearfx.model_card import model_card
from shearfx.plain_config import PlainConfig, original_config_of, plain_config
from shearfx.pruning_plan import PruningPlan
from shearfx.tensor_files import TensorFiles, damaged, describe, write_tensors
from shearfx.tracing import tensor_names

__all__ = ["load", "read_plan", "save"]

CONFIG, ORIGINAL = "config.json", "original_config.json"
BUFFERS = "buffers"


# -- saving --------------------------------------------------------------------------------------------


@dataclass
class Contents:
    """What goes into a folder: tensors by the names they have in the files."""

    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    buffers: dict[str, torch.Tensor] = field(default_factory=dict)
    """Buffers that are not part of the state: stored for a form that cannot compute them anew."""
    adapters: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)


def save(
    small: nn.Module,
    plan: PruningPlan,
    path: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    original_config: PreTrainedConfig | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a small model to a folder: whole, or not at all.

    Args:
        small: what ``construct(model, plan)`` gave, in either form; a PEFT-wrapped one is saved as base and adapters.
        plan: the plan it was made with; stored beside the weights, with the configuration's fields that state the cut.
        path: the folder; must not exist, or be empty.
        tokenizer: saved into the folder too.
        original_config: the configuration of the full-size model, where the small one does not have it (the fx form).
        overwrite: replace a folder that shearfx wrote.

    Returns:
        The folder. With ``config.json`` in it, transformers loads it without shearfx; else ``shearfx.load`` does, and
        its ``README.md`` says why.

    Raises:
        PlanError: the small model is not what the plan gives.
        CheckpointError: it cannot be written, or holds what safetensors cannot; nothing is left behind.
    """
    if not isinstance(plan, PruningPlan):
        what = f"save takes the small model and its plan, not {type(plan).__name__}"
        raise PlanError(message(what, todo="shearfx.save(small, plan, path)"))
    contents = contents_of(small, plan)
    form = "fx" if isinstance(small, fx.GraphModule) else "module"
    plain = PlainConfig(None, reason="it is a graph of operators, not the original class")
    if form == "module":
        plain = plain_config(small, plan, original_config)
    options = options_with(plan.options, added_biases(small, plan)) | {"form": form}
    plan = dataclasses.replace(plan, config=dict(plain.fields), options=options)
    if form == "fx" and original_config is not None:  # another implementation makes another graph
        plan.options["implementations"] = implementations_of(original_config)
    base = adapters.unwrapped(small)
    # A graph's class is known by name only; that of a wrapped model is PEFT's, which no configuration describes.
    original = original_config if plan.model.startswith("transformers.") else None
    if form == "module" and config_of(base) is not None:
        original = original_config_of(small, plan, original_config)
    config = plain.config or original
    with new_folder(path, overwrite=overwrite) as folder:
        if config is not None:
            name = plan.model.rpartition(".")[2] if form == "fx" else type(base).__name__
            dtype = next((p.dtype for p in small.parameters() if p.is_floating_point()), None)
            write_config(folder, config, name, dtype, plain=plain.config is not None)
        write_contents(folder, contents, plain=plain.config is not None)
        for name, where in adapters.adapter_folders(contents.adapters).items():
            settings = copy.copy(adapters.configs_of(small)[name])
            settings.base_model_name_or_path = str(Path(path).expanduser().absolute())
            write_text(folder / where / adapters.ADAPTER_CONFIG, adapters.adapter_json(settings))
        if config is not None and isinstance(getattr(base, "generation_config", None), GenerationConfig):
            base.generation_config.save_pretrained(folder)  # type: ignore[union-attr, operator]
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        finish(folder, plan, plain, adapted=bool(contents.adapters))
    return Path(path)


def contents_of(small: nn.Module, plan: PruningPlan, *, hollow: bool = False) -> Contents:
    """The tensors of a small model, each once, by the names they get in the files.

    Args:
        small, plan: as in :func:`save`.
        hollow: tensors on the meta device are welcome; their numbers come from elsewhere.

    Raises:
        PlanError: they are not what the plan leaves.
        CheckpointError: the model's state is more than tensors, or is on the meta device.
    """
    wanted = plan.shapes_after()
    wanted |= {f"{path}.bias": wanted[f"{path}.weight"][:1] for path in added_biases(small, plan)}
    tensors, state = named_tensors(small), small.state_dict(keep_vars=True)
    configs = adapters.configs_of(small)
    for name in state:
        if name not in tensors:
            todo = "make it a buffer, or save that part yourself"
            raise CheckpointError(message(f"{name} is state that is no parameter or buffer", todo=todo))
    _check_small(tensors, wanted, partial=isinstance(small, fx.GraphModule))
    contents = Contents(adapters={name: {} for name in configs})
    for group in dict.fromkeys(tensor_names(small).values()):
        tensor = tensors[group[0]].detach()
        if tensor.is_meta and not hollow:
            todo = "construct the small model from a model with weights"
            raise CheckpointError(message(f"{group[0]} is on the meta device: it has no numbers", todo=todo))
        saved = [name for name in group if name in state]
        if not saved:
            contents.buffers[_base_name(group[0], configs)] = tensor
            continue
        own = {adapter: short for adapter in configs if (short := adapters.adapter_name(saved[0], adapter)) is not None}
        for adapter, short in own.items():
            contents.adapters[adapter][short] = tensor
        if not own:
            contents.weights[_base_name(saved[0], configs)] = tensor
    return contents


def _base_name(name: str, configs: Mapping[str, Any]) -> str:
    return (adapters.base_name(name) if configs else None) or name


def _check_small(tensors: dict[str, torch.Tensor], wanted: dict[str, tuple[int, ...]], partial: bool) -> None:
    todo = "save what construct(model, plan) gave, with that very plan"
    for name, shape in wanted.items():
        if name in tensors and tuple(tensors[name].shape) != shape:
            what = f"{name} has shape {tuple(tensors[name].shape)}; the plan leaves {shape}"
            raise PlanError(message(what, todo=todo))
        if name not in tensors and not partial:
            raise PlanError(message(f"the small model has no {name}", todo=todo))
    for name in tensors:
        if name not in wanted and not partial:
            raise PlanError(message(f"the small model has a tensor {name}, of which the plan knows nothing", todo=todo))


def write_config(
    folder: Path, config: PreTrainedConfig, architecture: str, dtype: torch.dtype | None, *, plain: bool
) -> None:
    """Write a configuration: as ``config.json`` if it describes the small model."""
    config = copy.deepcopy(config)
    config.architectures = [architecture]
    if dtype is not None:
        config.dtype = str(dtype).removeprefix("torch.")
    write_text(folder / (CONFIG if plain else ORIGINAL), config.to_json_string())


def write_contents(folder: Path, contents: Contents, *, plain: bool) -> None:
    """Write the tensors."""
    parts = [("model", folder, contents.weights)]
    if contents.buffers and not plain:
        parts.append((BUFFERS, folder, contents.buffers))
    for name, where in adapters.adapter_folders(contents.adapters).items():
        (folder / where).mkdir(parents=True, exist_ok=True)
        parts.append(("adapter_model", folder / where, contents.adapters[name]))
    for stem, where_to, tensors in parts:
        write_tensors(where_to, {n: describe(t) for n, t in tensors.items()}, tensors.__getitem__, stem=stem)


def finish(folder: Path, plan: PruningPlan, plain: PlainConfig, *, adapted: bool) -> None:
    """Write the plan and the model card."""
    write_text(folder / PLAN_FILE, plan.to_json())
    card = model_card(plan, plain=plain.config is not None, reason=plain.reason, adapters=adapted)
    write_text(folder / "README.md", card)


# -- loading -------------------------------------------------------------------------------------------


def _made(factory: Callable[[], Any]) -> Any:
    try:
        return factory()
    except Exception as error:  # the user's own code
        what = f"the factory failed: {type(error).__name__}: {error}"
        raise CheckpointError(message(what, where="load(path, model=...)", todo="call it by itself")) from error


def load(
    path: str | os.PathLike[str],
    model: nn.Module | Callable[[], nn.Module] | None = None,
    *,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Read a small model that ``save`` wrote. Nothing in the folder is executed or imported.

    Args:
        path: the folder.
        model: for classes that are not in transformers: a full-size model as it was before the cut, or a function
            that builds one; on the meta device it costs nothing. Left as it was.
        device: where the weights go.

    Returns:
        The small model in eval mode, in the form it was saved in; with its adapters, if it had any.

    Raises:
        CheckpointError: something is missing, damaged or unsafe, or the files do not belong together; without
            ``model``, also that the folder does not say how to build it.
        PlanError: the plan is damaged, or ``model`` is not what it was made for.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise CheckpointError(message("there is no such folder", where=str(folder), todo="check the path"))
    plan = read_plan(folder)
    if model is not None:
        full = model if isinstance(model, nn.Module) else _made(model)
        if not isinstance(full, nn.Module):
            raise CheckpointError(message("the factory returned no module", where="load(path, model=...)"))
        small = cut_hollow(_tied(without_storage(full), plan), plan)
    elif (folder / CONFIG).is_file():
        small = _built(folder, folder / CONFIG)
    elif (folder / ORIGINAL).is_file():
        if _adapters_in(folder) and not adapters.is_wrapped(plan):
            what = "the adapter in the folder was not cut with the model in it: the plan knows of none"
            todo = "move it elsewhere, then PeftModel.from_pretrained(shearfx.load(folder), adapter)"
            raise CheckpointError(message(what, where=str(folder / "adapter"), todo=todo))
        small = cut_hollow(_built(folder, folder / ORIGINAL, plan), plan)
    else:
        todo = f"give the full-size model: shearfx.load(path, model=...), a {plan.model}"
        what = "the folder does not say how to build the model"
        raise OriginalNeededError(message(what, where=str(folder), todo=todo))
    with _sources(folder, add_biases(small, plan)) as sources:
        fill(small, sources)
    _generation(folder, small)
    return small.to(device).eval()


def read_plan(folder: Path) -> PruningPlan:
    """The plan in a folder.

    Raises:
        CheckpointError: there is none.
        PlanError: it is damaged.
    """
    path = folder / PLAN_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        todo = "name a folder that shearfx.save wrote"
        raise CheckpointError(message(f"there is no {PLAN_FILE}", where=str(folder), todo=todo)) from None
    except (OSError, ValueError) as error:
        raise damaged("the plan cannot be read", path, error) from error
    return PruningPlan.from_json(text)


def _built(folder: Path, path: Path, plan: PruningPlan | None = None) -> nn.Module:
    """The model that a configuration describes, with adapters if the folder has any; parameters have no numbers."""
    config, cls = read_config(path)
    wanted = plan.options.get("implementations") if plan is not None else None
    choose(config, wanted if isinstance(wanted, dict) else {})
    try:
        model = empty_model(cls, config)
    except Exception as error:  # classes check their configs with errors of all kinds
        raise damaged(f"no {cls.__name__} can be built from the configuration", path, error) from error
    found = _adapters_in(folder)
    if found:
        configs = {name: adapters.read_adapter(folder / where) for name, where in found.items()}
        try:
            model = adapters.wrap(model, configs)
        except Exception as error:  # PEFT's own errors
            raise damaged("the adapter does not fit the model", folder / "adapter", error) from error
    return without_storage(model)


def _adapters_in(folder: Path) -> dict[str, str]:
    parent = folder / "adapter"
    names = [] if not (parent / adapters.ADAPTER_CONFIG).is_file() else ["default"]
    names += sorted(p.parent.name for p in parent.glob(f"*/{adapters.ADAPTER_CONFIG}"))
    return adapters.adapter_folders(names)


def _tied(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """A model on meta with its ties as in the plan: moving a model to the meta device unties its tensors."""
    named = named_tensors(model)
    for first, *others in plan.aliases.values():
        for name in others:
            if first in named and name in named and named[first].is_meta and named[name].is_meta:
                assign(model, name, named[first])
    return model


def cut_hollow(full: nn.Module, plan: PruningPlan) -> nn.Module:
    """The small model without weights, in the form that the plan says."""
    if plan.options.get("form", "module") != "fx":
        return construct(full, plan)
    plan.check_fits({name: tuple(t.shape) for name, t in named_tensors(full).items()}, type(full).__name__)
    # Traced with (empty) tensors on the CPU: what a trace on meta makes of new tensors would stay on meta.
    whole = with_storage(full)
    return construct(full, plan, form="fx", graph=trace(whole, **example_call(whole, plan)))


@contextlib.contextmanager
def _sources(folder: Path, small: nn.Module) -> Iterator[list[Source]]:
    """The files of a folder, with the names that the small model's tensors have in them."""
    names = list(named_tensors(small))
    wrapped = adapters.configs_of(small)
    with contextlib.ExitStack() as stack:
        weights = {n: _base_name(n, wrapped) for n in names if not wrapped or adapters.base_name(n) is not None}
        sources = [Source(stack.enter_context(TensorFiles(folder)), weights)]
        if (folder / f"{BUFFERS}.safetensors").is_file() or (folder / f"{BUFFERS}.safetensors.index.json").is_file():
            sources.append(Source(stack.enter_context(TensorFiles(folder, BUFFERS)), weights))
        for adapter, where in adapters.adapter_folders(wrapped).items():
            own = {n: short for n in names if (short := adapters.adapter_name(n, adapter)) is not None}
            sources.append(Source(stack.enter_context(TensorFiles(folder / where, "adapter_model")), own))
        yield sources


def _generation(folder: Path, small: nn.Module) -> None:
    base = adapters.unwrapped(small)
    if (folder / "generation_config.json").is_file() and hasattr(base, "generation_config"):
        try:
            base.generation_config = GenerationConfig.from_pretrained(folder)  # type: ignore[assignment]
        except Exception as error:  # transformers checks its fields with errors of all kinds
            raise damaged("the file does not describe generation", folder / "generation_config.json", error) from error
