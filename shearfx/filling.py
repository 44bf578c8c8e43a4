"""Weights from safetensors files into a model of the right shapes: all of them, nothing else, ties kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from shearfx.architectures import assign, named_tensors
from shearfx.errors import CheckpointError, message
from shearfx.tensor_files import TensorFiles
from shearfx.tracing import tensor_names

__all__ = ["Source", "fill"]


@dataclass(frozen=True)
class Source:
    """Opened files and, for each name of the model's that they may hold, the name that it has in them."""

    files: TensorFiles
    names: Mapping[str, str]


def fill(model: nn.Module, sources: list[Source]) -> None:
    """Put every tensor of the files into the model, in the files' dtypes.

    Tensors that go by several names stay one, whichever of the names the files have.

    Raises:
        CheckpointError: a tensor is missing, left over, or of another shape or kind of number.
    """
    named = named_tensors(model)
    for source in sources:
        known = {file_name for name, file_name in source.names.items() if name in named}
        left = sorted(set(source.files.tensors) - known)
        if left:
            raise _misfit(f"{left[0]} is in the files, but not in the model", source.files)
    for group in dict.fromkeys(tensor_names(model).values()):
        found = [(s, s.names[n]) for s in sources for n in group if s.names.get(n) in s.files.tensors]
        old = named[group[0]]
        if not found:
            if old.is_meta:
                raise _misfit(f"{group[0]} is not in the files", sources[0].files)
            continue
        source, file_name = found[0]
        _check(file_name, source.files.tensors[file_name], old, source.files)
        tensor = source.files.read(file_name)
        value = nn.Parameter(tensor, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else tensor
        value.__dict__.update(old.__dict__)
        for name in group:
            assign(model, name, value)
    _check_whole(model)


def _check(name: str, stored: torch.Tensor, wanted: torch.Tensor, files: TensorFiles) -> None:
    if stored.shape != wanted.shape:
        raise _misfit(f"{name} has shape {tuple(stored.shape)}, the model needs {tuple(wanted.shape)}", files)
    alike = stored.is_floating_point() and wanted.is_floating_point()
    if not alike and stored.dtype != wanted.dtype:
        raise _misfit(f"{name} holds {stored.dtype}, the model needs {wanted.dtype}", files)


def _check_whole(model: nn.Module) -> None:
    """Tensors that are neither parameter nor buffer are in no file: on the meta device they would stay empty."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor) and value.is_meta:
                raise CheckpointError(
                    message(
                        f"{name!r} is a plain tensor attribute without numbers",
                        where=path or type(module).__name__,
                        todo="pass a model that is not on the meta device, or register it as a buffer",
                    )
                )


def _misfit(what: str, files: TensorFiles) -> CheckpointError:
    todo = "use the files and the plan of one model, as they were saved together"
    return CheckpointError(message(what, where=str(files.folder), todo=todo))
