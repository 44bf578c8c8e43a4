"""What was measured so far, a line a measurement, so that an analysis that was stopped goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from shearfx.errors import CheckpointError, message
from shearfx.knowledge.judging import Sums

FORMAT = "shearfx knowledge cache 1"
SAMPLE = 1024
"""Numbers of each parameter that are looked at to tell whether the model is the same."""

Key = tuple[int, str, float]
"""Batch, name of the node group (empty for the full model), ratio (0 for the full model)."""


class Cache:
    """JSON lines: the first says what was asked for, each further one is a measurement of one batch.

    What is on disk when a process is killed is used by the next; a last line that is cut off is dropped.

    Args:
        path: the file, made when first written to; None keeps everything in memory only.
        request: what was asked for, with a fingerprint of model and data.

    Raises:
        CheckpointError: the file holds another request's measurements, is damaged elsewhere than at its end, or
            cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str] | None, request: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.request = dict(request)
        self.shut: dict[str, Any] | None = None
        """The structures that were chosen when it began, for saliencies that need not be computed again."""
        self.sums: dict[Key, Sums] = {}
        self._begun = False
        if self.path is not None and self.path.exists():
            self._read(self.path)

    def begin(self, shut: Mapping[str, Any]) -> None:
        """State the choice of structures, in a new file."""
        if self._begun:
            return
        self.shut = dict(shut)
        self._write({"format": FORMAT, "request": self.request, "shut": self.shut}, "w")
        self._begun = True

    def add(self, key: Key, sums: Sums) -> None:
        """Keep a measurement. It is in the operating system's hands when this returns."""
        self.sums[key] = sums
        values = {name: _plain(value) for name, value in dataclasses.asdict(sums).items()}
        self._write({"batch": key[0], "name": key[1], "ratio": key[2], **values}, "a")

    def _write(self, line: Mapping[str, Any], mode: str) -> None:
        if self.path is None:
            return
        try:
            with self.path.open(mode, encoding="utf-8", newline="\n") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            todo = "free some space, or name another file"
            raise CheckpointError(message(f"it cannot be written: {error}", where=str(self.path), todo=todo)) from error

    def _read(self, path: Path) -> None:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise CheckpointError(message(f"it cannot be read: {error}", where=str(path))) from error
        whole, _, rest = content.rpartition(b"\n")
        lines = whole.split(b"\n") if whole else []
        if not lines:
            return  # not even the first line was finished
        header = _parsed(lines[0])
        if header is None or header.get("format") != FORMAT:
            todo = "name another file"
            raise CheckpointError(message("this is no cache of a knowledge analysis", where=str(path), todo=todo))
        if header["request"] != json.loads(json.dumps(self.request)):
            asked = header["request"]
            differs = ", ".join(k for k in self.request if asked.get(k) != json.loads(json.dumps(self.request[k])))
            raise CheckpointError(
                message(
                    f"it holds the measurements of another request, which differs in: {differs}",
                    where=str(path),
                    todo="remove it to start anew, or name another file",
                )
            )
        self.shut = header["shut"]
        for number, line in enumerate(lines[1:], 2):
            data = _parsed(line)
            try:
                assert data is not None
                values = {f.name: _number(data[f.name]) for f in dataclasses.fields(Sums)}
                self.sums[int(data["batch"]), str(data["name"]), float(data["ratio"])] = Sums(**values)
            except (AssertionError, KeyError, TypeError, ValueError) as error:
                if number == len(lines) and not rest:
                    whole = b"\n".join(lines[:-1])
                    break
                what = f"line {number} is damaged"
                todo = "remove the file to start anew"
                raise CheckpointError(message(what, where=str(path), todo=todo)) from error
        if len(whole) + 1 < len(content):
            os.truncate(path, len(whole) + 1)
        self._begun = True


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        data = json.loads(line)
    except ValueError:
        return None
    return data if isinstance(data, dict) else None


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else "inf"


def _number(value: Any) -> float:
    return math.inf if value == "inf" else float(value)


# -- fingerprints --------------------------------------------------------------------------------------


def of_model(model: nn.Module) -> str:
    """Digest of names, shapes, dtypes and a sample of the numbers of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        if not isinstance(tensor, torch.Tensor):
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        if not tensor.is_meta:
            flat = tensor.detach().reshape(-1)
            digest.update(_bytes(flat[:: max(1, flat.numel() // SAMPLE)]))
    return digest.hexdigest()


def of_data(data: Iterable[Any]) -> str:
    """Digest of batches: all numbers of all tensors."""
    digest = hashlib.sha256()
    for batch in data:
        leaves, spec = pytree.tree_flatten(batch)
        digest.update(str(spec).encode())
        for leaf in leaves:
            if isinstance(leaf, torch.Tensor):
                digest.update(f"{tuple(leaf.shape)} {leaf.dtype};".encode())
                digest.update(_bytes(leaf.detach().reshape(-1)))
            else:
                digest.update(repr(leaf).encode())
    return digest.hexdigest()


def of_choice(shut: Mapping[str, Any]) -> str:
    """Digest of what is shut."""
    return hashlib.sha256(json.dumps(shut, sort_keys=True).encode()).hexdigest()


def _bytes(flat: torch.Tensor) -> bytes:
    return bytes(flat.cpu().contiguous().view(torch.uint8).numpy())
