"""What transformers renames and regroups when it loads a folder, done tensor by tensor.

Files often have other names than the model in memory (``wte.weight`` for ``transformer.wte.weight``), and sometimes
other tensors: each expert by itself, where the model holds all of a layer in one. transformers knows the rules for
each architecture; here they say, for each tensor of the model, which tensors of the files it is made of.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from shearfx.errors import CheckpointError, message
from shearfx.tensor_files import TensorFiles

__all__ = ["Stored", "stored_as_model"]


@dataclass(frozen=True)
class Stored:
    """One tensor of the model: its shape and dtype (on meta), the file of its first part, and how to read it."""

    tensor: torch.Tensor
    file: str
    read: Callable[[], torch.Tensor]


def stored_as_model(files: TensorFiles, model: PreTrainedModel) -> dict[str, Stored]:
    """For each name of the model's state that the files have: how it is stored.

    Args:
        files: opened.
        model: as transformers builds it for these files; on meta is enough.

    Raises:
        CheckpointError: the files hold a tensor that the model has no place for.
    """
    state = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    where = {name: file for file, names in files.files.items() for name in names}
    result: dict[str, Stored] = {}
    parts: dict[str, tuple[Any, list[tuple[str, str]]]] = {}
    for key in sorted(files.tensors, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, state)
        if name not in state and key in state:
            name, pattern = key, None
        if name not in state:
            _check_ignored(key, model, files)
        elif pattern is None:
            result[name] = Stored(files.tensors[key], where[key], _reader(files, key))
        else:
            parts.setdefault(name, (by_pattern[pattern], []))[1].append((pattern, key))
    for name, (converter, keys) in parts.items():
        result |= _converted(files, model, name, converter, keys, where[keys[0][1]])
    return result


def _reader(files: TensorFiles, key: str) -> Callable[[], torch.Tensor]:
    return lambda: files.read(key)


def _converted(
    files: TensorFiles, model: PreTrainedModel, name: str, converter: Any, keys: list[tuple[str, str]], file: str
) -> dict[str, Stored]:
    """The tensors that a converter makes of several; which those are shows on the meta device."""

    def convert(read: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
        own = copy.deepcopy(converter)
        for pattern, key in keys:
            own.add_tensor(name, key, pattern, read(key))
        made = own.convert(name, model=model, config=model.config)
        return {k: v[0] if isinstance(v, list) else v for k, v in made.items()}

    def reader(target: str) -> Callable[[], torch.Tensor]:
        return lambda: convert(files.read)[target].contiguous()

    return {
        target: Stored(tensor, file, reader(target)) for target, tensor in convert(files.tensors.__getitem__).items()
    }


def _check_ignored(key: str, model: PreTrainedModel, files: TensorFiles) -> None:
    """Old checkpoints hold buffers that models now compute; what transformers leaves out without a word may go."""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    computed = {name for name, _ in model.named_buffers()}
    if key in computed or any(re.search(pattern, key) for pattern in patterns):
        return
    todo = "use the checkpoint of the model that the plan was made for"
    what = f"{key} is in the files, but a {type(model).__name__} has no place for it"
    raise CheckpointError(message(what, where=str(files.folder), todo=todo))
