"""Safetensors files, read and written tensor by tensor, so that a model larger than the memory passes through.

The writer gives the very bytes that ``safetensors.torch.save_file`` gives, but needs only one tensor at a time.
Format: https://github.com/huggingface/safetensors (8 bytes of header length, JSON header, the tensors' bytes).
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open

from shearfx.atomic import write_text
from shearfx.errors import CheckpointError, message

__all__ = ["TensorFiles", "describe", "write_file", "write_tensors"]

MAX_SHARD = "5GB"
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}

# In the order in which safetensors sorts tensors into a file, last first.
_CODES: dict[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.complex64: "C64",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}
_ORDER = {dtype: -i for i, dtype in enumerate(_CODES)}


def describe(tensor: torch.Tensor) -> torch.Tensor:
    """Shape and dtype of a tensor without its numbers: a tensor on the meta device."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def write_file(path: Path, tensors: Mapping[str, torch.Tensor], read: Callable[[str], torch.Tensor]) -> None:
    """Write one safetensors file.

    Args:
        tensors: shape and dtype of each tensor by name (see :func:`describe`).
        read: gives each tensor, on any device; asked for one after the other.

    Raises:
        CheckpointError: safetensors has no such dtype.
        OSError: as from any write.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _CODES:
            todo = "convert it to a dtype that safetensors knows"
            raise CheckpointError(message(f"{name} has dtype {tensor.dtype}, which cannot be saved", todo=todo))
    names = sorted(tensors, key=lambda name: (_ORDER[tensors[name].dtype], name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in names:
        tensor, start = tensors[name], at
        at += tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, at]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            tensor = read(name)
            assert tensor.shape == tensors[name].shape and tensor.dtype == tensors[name].dtype, name
            file.write(_bytes(tensor))


def _bytes(tensor: torch.Tensor) -> Any:
    """The tensor's bytes, little-endian, as something that a file takes."""
    flat = tensor.detach().resolve_conj().cpu().contiguous().reshape(-1)
    raw = flat.view(torch.uint8).numpy()
    if sys.byteorder == "big" and flat.element_size() > 1:
        raw = raw.reshape(-1, flat.element_size())[:, ::-1].copy().reshape(-1)
    return raw.data


def write_tensors(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    read: Callable[[str], torch.Tensor],
    *,
    stem: str = "model",
    files: Mapping[str, Iterable[str]] | None = None,
    max_shard: int | str = MAX_SHARD,
) -> None:
    """Write ``stem.safetensors``, or shards and their index where it would be larger than ``max_shard``.

    Args:
        tensors, read: as in :func:`write_file`.
        files: which names go into which file, to keep a division that there was; without it, tensors are divided
            as ``save_pretrained`` does.
    """
    if files is None:
        pattern = f"{stem}{{suffix}}.safetensors"
        split = split_torch_state_dict_into_shards(dict(tensors), filename_pattern=pattern, max_shard_size=max_shard)
        files = split.filename_to_tensors
    for file, names in files.items():
        write_file(folder / file, {name: tensors[name] for name in names}, read)
    if list(files) != [f"{stem}.safetensors"]:
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        count = sum(t.numel() for t in tensors.values())
        index = {
            "metadata": {"total_parameters": count, "total_size": size},
            "weight_map": dict(sorted((name, file) for file, names in files.items() for name in names)),
        }
        write_text(folder / f"{stem}.safetensors.index.json", json.dumps(index, indent=2, sort_keys=True) + "\n")


class TensorFiles(contextlib.AbstractContextManager["TensorFiles"]):
    """The tensors in a folder's safetensors files, each read when it is asked for.

    ``files`` says which names are in which file; ``tensors`` gives each one's shape and dtype (on the meta device).
    """

    def __init__(self, folder: Path, stem: str = "model") -> None:
        """Open ``stem.safetensors``, or the files of ``stem.safetensors.index.json``.

        Raises:
            CheckpointError: a file is missing, truncated, damaged, pickled, or outside the folder.
        """
        self.folder = folder
        self.files: dict[str, list[str]] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        self._where: dict[str, str] = {}
        self._open: dict[str, Any] = {}
        self._stack = contextlib.ExitStack()
        try:
            for file, expected in _listed(folder, stem).items():
                self._add(file, expected)
        except BaseException:
            self._stack.close()
            raise

    def _add(self, file: str, expected: set[str] | None) -> None:
        path = self.folder / file
        if not path.is_file():
            raise _missing(path)
        try:
            handle = self._open[file] = self._stack.enter_context(safe_open(path, framework="pt"))
            names = list(handle.keys())
            for name in names:
                part = handle.get_slice(name)
                dtype = _DTYPES.get(part.get_dtype())
                if dtype is None:
                    todo = "use a checkpoint in an ordinary dtype"
                    raise CheckpointError(message(f"{name} has dtype {part.get_dtype()}", where=str(path), todo=todo))
                self.tensors[name] = torch.empty(part.get_shape(), dtype=dtype, device="meta")
        except (SafetensorError, OSError, RuntimeError) as error:
            raise damaged("the safetensors file is truncated or damaged", path, error) from error
        if expected is not None and expected != set(names):
            other = sorted(expected ^ set(names))[0]
            raise damaged(f"the index and the file disagree about {other!r}", path)
        twice = [name for name in names if name in self._where]
        if twice:
            raise damaged(f"{twice[0]!r} is in two files, {self._where[twice[0]]} too", path)
        self.files[file] = names
        self._where.update(dict.fromkeys(names, file))

    def read(self, name: str) -> torch.Tensor:
        """One tensor, on the CPU."""
        try:
            tensor: torch.Tensor = self._open[self._where[name]].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise damaged(f"{name} cannot be read", self.folder / self._where[name], error) from error
        return tensor

    def __exit__(self, *error: object) -> None:
        self._stack.close()


def _listed(folder: Path, stem: str) -> dict[str, set[str] | None]:
    """The files that belong together, with the names that the index (if there is one) promises in each."""
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        return {f"{stem}.safetensors": None}
    weights = read_json(index).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise damaged("the index has no weight_map", index)
    files: dict[str, set[str] | None] = {}
    for name, file in weights.items():
        # A name with a path in it could point anywhere on the machine.
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise damaged(f"the index puts {name!r} into {file!r}, which is no safetensors file in the folder", index)
        names = files.setdefault(file, set())
        assert names is not None
        names.add(name)
    return dict(sorted(files.items()))


def _missing(path: Path) -> CheckpointError:
    pickled = sorted(f.name for f in path.parent.iterdir() if f.suffix in PICKLES) if path.parent.is_dir() else []
    if pickled:
        what = f"the weights are pickled ({pickled[0]}); a pickle can run any code, so it is not opened"
        todo = "where you trust its origin, load it with transformers and save it again as safetensors"
        return CheckpointError(message(what, where=str(path.parent), todo=todo))
    what, todo = f"{path.name} is missing", "copy or save the model again"
    return CheckpointError(message(what, where=str(path.parent), todo=todo))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: the file is missing, or holds something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            message(f"{path.name} is missing", where=str(path.parent), todo="copy or save the model again")
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise damaged("the file is not JSON", path, error) from error
    if not isinstance(data, dict):
        raise damaged("the file is not a JSON object", path)
    return data


def damaged(what: str, path: Path, error: BaseException | None = None) -> CheckpointError:
    """The error for a file that cannot be used as it is."""
    lines = str(error).strip().splitlines() if error is not None else []
    reason = f": {type(error).__name__}: {lines[0]}" if lines else ""
    return CheckpointError(message(f"{what}{reason}", where=str(path), todo="copy or save the model again"))
