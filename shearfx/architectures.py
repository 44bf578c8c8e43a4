"""Models without weights: a Hugging Face class built from its config, and copies that cost no memory.

Nothing that a file says is imported: architectures are looked up among the classes that transformers registers.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from torch import nn
from transformers import PreTrainedConfig
from transformers.initialization import no_init_weights

from shearfx.errors import CheckpointError, message
from shearfx.overlay import is_overlay
from shearfx.pretrained import check_config, model_class
from shearfx.tensor_files import damaged, read_json
from shearfx.tracing import tensor_names

__all__ = [
    "assign",
    "choose",
    "config_of",
    "empty_model",
    "implementations_of",
    "named_tensors",
    "plain_copy",
    "read_config",
    "with_storage",
    "without_storage",
]


IMPLEMENTATIONS = {
    "_attn_implementation": ("eager", "sdpa", "flex_attention"),
    "_experts_implementation": ("eager", "batched_mm", "grouped_mm"),
}
"""Where a config keeps which code runs an operator, and what it may be set to: a name with a slash would fetch code."""


class OriginalNeededError(CheckpointError):
    """A folder does not say how to build its model: whoever has the full-size model has to bring it."""


def read_config(path: Path) -> tuple[PreTrainedConfig, Any]:
    """The configuration in a JSON file, and the model class that it names.

    Raises:
        OriginalNeededError: it is of no architecture in transformers, or wants code that is not in transformers.
        CheckpointError: it is damaged.
    """
    check_config(path)
    data = read_json(path)
    kind = data.get("model_type")
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        what = f"transformers has no architecture {kind!r}" + (", and the config brings its own" * ("auto_map" in data))
        todo = "give the full-size model yourself: shearfx.load(path, model=...)"
        raise OriginalNeededError(message(f"{what}; code from a checkpoint is never run", where=str(path), todo=todo))
    data.pop("auto_map", None)
    try:
        config = transformers.CONFIG_MAPPING[kind].from_dict(data)
    except Exception as error:  # configs check their fields with errors of all kinds
        raise damaged("the file does not describe a model", path, error) from error
    return config, model_class(config, path)


def config_of(model: nn.Module) -> PreTrainedConfig | None:
    """The configuration of a Hugging Face model, as it was before a cut changed some of its modules' view of it."""
    config = vars(model).get("config")
    if is_overlay(config):
        config = object.__getattribute__(config, "_target")
    return config if isinstance(config, PreTrainedConfig) else None


def empty_model(cls: Any, config: PreTrainedConfig, like: nn.Module | None = None) -> nn.Module:
    """The model that a config describes: parameters on the meta device, buffers real.

    Args:
        cls: its class.
        config: not changed.
        like: choose the implementations of operators (attention, experts) that this model has.

    Raises:
        Exception: whatever the class raises on a config that it does not like.
    """
    config = copy.deepcopy(config)
    choose(config, implementations_of(config if like is None else config_of(like)))
    with _silent(), no_init_weights(), init_empty_weights(include_buffers=False):
        model = cls._from_config(config, dtype=config.dtype or torch.float32)
    model.tie_weights()
    assert isinstance(model, nn.Module)
    return model.eval()


def implementations_of(config: PreTrainedConfig | None) -> dict[str, str]:
    """Which implementations of operators a model is set to use; its files do not say."""
    chosen = {name: getattr(config, name, None) for name in IMPLEMENTATIONS}
    return {name: value for name, value in chosen.items() if isinstance(value, str)}


def choose(config: PreTrainedConfig, implementations: Mapping[str, Any]) -> None:
    """Set which implementations of operators a model of this config uses; only those that torch itself brings."""
    for name, allowed in IMPLEMENTATIONS.items():
        if implementations.get(name) in allowed and hasattr(config, name):
            setattr(config, name, implementations[name])


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def assign(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Put a tensor in the place of the parameter or buffer of a name; a parameter's ``requires_grad`` stays."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    old = module._parameters.get(leaf)
    if old is None:
        module._buffers[leaf] = tensor
    elif isinstance(tensor, nn.Parameter):
        module._parameters[leaf] = tensor
    else:
        new = nn.Parameter(tensor, requires_grad=old.requires_grad and tensor.is_floating_point())
        new.__dict__.update(old.__dict__)
        module._parameters[leaf] = new


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer by each of its names."""
    return dict((*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)))


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter and buffer under every name."""
    return {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy that shares all tensors with the model, so that its attributes can be changed at no cost."""
    memo = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)


def with_storage(model: nn.Module) -> nn.Module:
    """A copy in which tensors on the meta device are real ones on the CPU, with no numbers in them.

    Such memory is not touched, so the system does not provide it. Ties stay; other tensors are shared.
    """

    def real(name: str, tensor: torch.Tensor) -> torch.Tensor | None:
        return torch.empty(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else None

    return _converted(model, real)


def without_storage(model: nn.Module) -> nn.Module:
    """A copy with the parameters and persistent buffers on the meta device; ties stay, other tensors are shared."""
    saved = set(model.state_dict(keep_vars=True))
    return _converted(model, lambda name, tensor: tensor.detach().to("meta") if name in saved else None)


def _converted(model: nn.Module, change: Callable[[str, torch.Tensor], torch.Tensor | None]) -> nn.Module:
    copied = plain_copy(model)
    named = named_tensors(copied)
    for group in dict.fromkeys(tensor_names(copied).values()):
        old = named[group[0]]
        new = next((new for name in group if (new := change(name, old)) is not None), None)
        if new is not None:
            if isinstance(old, nn.Parameter):
                new = nn.Parameter(new, requires_grad=old.requires_grad)
            for name in group:
                assign(copied, name, new)
    return copied
