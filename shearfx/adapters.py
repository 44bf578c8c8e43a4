"""PEFT's low-rank adapters: which tensor of a wrapped model lies where in the two folders it is saved as.

In the wrapped model a base's weight is ``base_model.model.q_proj.base_layer.weight`` and an adapter's
``base_model.model.q_proj.lora_A.default.weight``. On disk the base's folder says ``q_proj.weight``, as without an
adapter, and the adapter's ``base_model.model.q_proj.lora_A.weight``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from shearfx.errors import CheckpointError, message
from shearfx.pruning_plan import PruningPlan
from shearfx.tensor_files import damaged, read_json

__all__ = ["ADAPTER_CONFIG", "adapter_folders", "adapter_name", "base_name", "configs_of", "read_adapter", "unwrapped"]

ADAPTER_CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
_RUNS_CODE = ("megatron_config", "auto_mapping", "corda_config", "eva_config", "arrow_config", "loftq_config")
"""Fields under which an adapter's config could name code or need data to start from; of no use to a finished one."""


def _owned(part: str) -> bool:
    return part.startswith("lora_") or part == "modules_to_save"


def base_name(name: str) -> str | None:
    """The name that a tensor of a wrapped model has in the base's own folder; None for an adapter's.

    >>> base_name("base_model.model.h.0.q_proj.base_layer.weight")
    'h.0.q_proj.weight'
    >>> base_name("base_model.model.h.0.q_proj.lora_A.default.weight")
    """
    parts = name.removeprefix(PREFIX).split(".")
    if any(_owned(part) for part in parts):
        return None
    return ".".join(part for part in parts if part not in ("base_layer", "original_module"))


def adapter_name(name: str, adapter: str) -> str | None:
    """The name that a tensor of a wrapped model has in an adapter's folder; None for tensors of others.

    >>> adapter_name("base_model.model.h.0.q_proj.lora_A.default.weight", "default")
    'base_model.model.h.0.q_proj.lora_A.weight'
    """
    parts = name.split(".")
    for i, part in enumerate(parts[:-1]):
        if _owned(part):
            if parts[i + 1] != adapter:
                return None
            kept = [] if part == "modules_to_save" else [part]
            rest = [] if part == "lora_magnitude_vector" else parts[i + 2 :]
            return ".".join([*parts[:i], *kept, *rest])
    return None


def for_base(plan: PruningPlan) -> PruningPlan:
    """The part of a plan for a wrapped model that concerns its base, by the base's own names."""
    names = {name: base for name in plan.shapes if (base := base_name(name)) is not None}

    def own(path: str) -> str:
        return path.removeprefix(PREFIX).replace(".base_layer", "")

    return dataclasses.replace(
        plan,
        shapes={base: plan.shapes[name] for name, base in names.items()},
        aliases={names[first]: tuple(names[n] for n in all_) for first, all_ in plan.aliases.items() if first in names},
        terms={names[name]: terms for name, terms in plan.terms.items() if name in names},
        compensations=tuple(
            dataclasses.replace(how, weight=names[how.weight], module=own(how.module)) for how in plan.compensations
        ),
        attributes={own(path): changes for path, changes in plan.attributes.items()},
    )


def is_wrapped(plan: PruningPlan) -> bool:
    """Whether a plan was made for a model with adapters on it."""
    return bool(plan.shapes) and all(name.startswith(PREFIX) for name in plan.shapes)


def configs_of(model: nn.Module) -> dict[str, Any]:
    """The configurations of the adapters on a wrapped model by name; empty for any other model.

    Raises:
        CheckpointError: an adapter is of a kind that is not saved.
    """
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, dict) or not hasattr(model, "get_base_model"):
        return {}
    for name, config in configs.items():
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        if kind != "LORA":
            todo = "merge it into the base first: model.merge_and_unload()"
            raise CheckpointError(message(f"adapter {name!r} is of kind {kind}; only LoRA is saved", todo=todo))
    return dict(configs)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model under the adapters."""
    return model.get_base_model() if configs_of(model) else model  # type: ignore[operator]


def adapter_folders(names: Iterable[str]) -> dict[str, str]:
    """Where each adapter lies, as PEFT lays them out: ``default`` in ``adapter``, others in folders of their names.

    Raises:
        CheckpointError: a name is no name of a folder.
    """
    folders = {}
    for name in names:
        if not name or name in (".", "..") or Path(name).name != name:
            todo = "give the adapter a name without slashes"
            raise CheckpointError(message(f"the adapter's name {name!r} cannot name a folder", todo=todo))
        folders[name] = "adapter" if name == "default" else f"adapter/{name}"
    return folders


def read_adapter(folder: Path) -> Any:
    """The ``LoraConfig`` of an adapter's folder.

    Raises:
        CheckpointError: it is missing, damaged, of another kind, or names code to run.
    """
    from peft import LoraConfig

    path = folder / ADAPTER_CONFIG
    data = read_json(path)
    if data.get("peft_type") != "LORA":
        todo = "use a LoRA adapter"
        raise CheckpointError(message(f"the adapter is of kind {data.get('peft_type')!r}", where=str(path), todo=todo))
    for field in _RUNS_CODE:
        if data.get(field):
            todo = f"remove {field!r} from the file"
            raise CheckpointError(message(f"the adapter's config asks for {field!r}", where=str(path), todo=todo))
    known = {f.name for f in dataclasses.fields(LoraConfig) if f.init} - set(_RUNS_CODE)
    # Weights come from the file, so none are made up; frozen or not is for whoever loads it to say.
    fields = {k: v for k, v in data.items() if k in known} | {"init_lora_weights": False, "inference_mode": False}
    try:
        return LoraConfig(**fields)
    except Exception as error:  # PEFT checks fields with errors of all kinds
        raise damaged("the file does not describe an adapter", path, error) from error


def adapter_json(config: Any) -> str:
    """An adapter's configuration as the text of its file."""
    data = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
    data["inference_mode"] = True
    return json.dumps(data, indent=2, sort_keys=True, default=str) + "\n"


def wrap(model: nn.Module, configs: dict[str, Any]) -> nn.Module:
    """Put adapters on a model; their weights have no meaning yet."""
    from peft import PeftMixedModel, PeftModel, get_peft_model

    wrapped: PeftModel | PeftMixedModel | None = None
    for name, config in configs.items():
        if wrapped is None:
            wrapped = get_peft_model(model, config, adapter_name=name, autocast_adapter_dtype=False)
        else:
            wrapped.add_adapter(name, config)
    assert wrapped is not None
    return wrapped
