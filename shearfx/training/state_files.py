"""The state of a run on disk: nested dicts, lists, numbers and tensors, without a pickle.

Tensors lie in one safetensors file, all else in one JSON file that says where each tensor belongs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from shearfx.atomic import replace_folder, write_text
from shearfx.errors import CheckpointError, message

TENSOR = "tensor:"
"""Marks the name of a tensor among the JSON's texts; other texts that begin so are escaped."""
TEXT = "text:"


def write_state(folder: Path, state: Any) -> None:
    """Write a state as a folder, whole or not at all; an older one there is replaced at the end.

    Keys of dicts may be texts or whole numbers; tuples come back as lists.

    Raises:
        CheckpointError: it holds something else, or cannot be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = _pack(state, tensors, "")
    with replace_folder(folder) as new:
        save_file(tensors, new / "tensors.safetensors")
        write_text(new / "state.json", json.dumps(tree) + "\n")


def read_state(folder: Path) -> Any:
    """Read what :func:`write_state` wrote.

    Raises:
        CheckpointError: it is not there, or damaged.
    """
    try:
        tree = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return _unpack(tree, load_file(folder / "tensors.safetensors"))
    except (OSError, ValueError, LookupError, TypeError, SafetensorError, RecursionError) as error:
        what = f"this is no readable state of a run: {type(error).__name__}: {error}"
        raise CheckpointError(message(what, where=str(folder), todo="start the run anew")) from error


def _pack(value: Any, tensors: dict[str, torch.Tensor], path: str) -> Any:
    if isinstance(value, torch.Tensor):
        name = f"{len(tensors)}{path}"
        # a view would drag along what it looks at, and two names for one memory are refused
        tensors[name] = value.detach().cpu().clone().contiguous()
        return TENSOR + name
    if isinstance(value, str):
        return TEXT + value if value.startswith((TENSOR, TEXT)) else value
    if isinstance(value, Mapping):
        numbers = all(isinstance(key, int) and not isinstance(key, bool) for key in value)
        if not numbers and not all(isinstance(key, str) for key in value):
            raise CheckpointError(message(f"a state has keys of mixed kinds at {path or 'its root'}"))
        packed = {str(key): _pack(item, tensors, f"{path}.{key}") for key, item in value.items()}
        return {"n" if numbers and value else "s": packed}
    if isinstance(value, (list, tuple)):
        return [_pack(item, tensors, f"{path}.{i}") for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return {"f": repr(value)}
    if value is None or isinstance(value, (bool, int, float)):
        return value
    raise CheckpointError(message(f"a state holds a {type(value).__name__} at {path or 'its root'}"))


def _unpack(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(tree, str):
        if tree.startswith(TENSOR):
            return tensors[tree.removeprefix(TENSOR)]
        return tree.removeprefix(TEXT)
    if isinstance(tree, list):
        return [_unpack(item, tensors) for item in tree]
    if isinstance(tree, dict):
        ((kind, inner),) = tree.items()
        if kind == "f":
            return float(inner)
        items = {key: _unpack(item, tensors) for key, item in inner.items()}
        return {int(key): item for key, item in items.items()} if kind == "n" else items
    return tree
