"""Our safetensors are those of safetensors itself, byte by byte; nothing damaged or foreign is read."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from shearfx.errors import CheckpointError
from shearfx.tensor_files import _CODES, TensorFiles, describe, write_file, write_tensors

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=8)
SHAPES = st.lists(st.integers(0, 4), max_size=3)
TENSORS = st.dictionaries(NAMES.filter(lambda n: n != "__metadata__"), st.tuples(st.sampled_from(list(_CODES)), SHAPES))


def made(what: dict[str, tuple[torch.dtype, list[int]]]) -> dict[str, torch.Tensor]:
    return {name: torch.arange(7).repeat(10)[: torch.Size(shape).numel()].reshape(shape).to(dtype)
            for name, (dtype, shape) in what.items()}  # fmt: skip


@given(TENSORS)
def test_files_are_those_of_safetensors(what: dict[str, tuple[torch.dtype, list[int]]]) -> None:
    tensors = made(what)
    with TemporaryDirectory() as folder:
        theirs, ours = Path(folder, "theirs"), Path(folder, "ours")
        save_file(tensors, theirs, metadata={"format": "pt"})
        write_file(ours, {n: describe(t) for n, t in tensors.items()}, tensors.__getitem__)
        assert ours.read_bytes() == theirs.read_bytes()


@given(TENSORS.filter(bool), st.integers(1, 100))
def test_shards_hold_everything_once(what: dict[str, tuple[torch.dtype, list[int]]], largest: int) -> None:
    tensors = made(what)
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_tensors(folder, {n: describe(t) for n, t in tensors.items()}, tensors.__getitem__, max_shard=largest)
        with TensorFiles(folder) as files:
            assert files.tensors.keys() == tensors.keys()
            for key, tensor in tensors.items():
                read = files.read(key)
                assert read.dtype == tensor.dtype == files.tensors[key].dtype
                assert torch.equal(read.view(torch.uint8) if read.numel() and read.dim() else read, tensor.view(
                    torch.uint8) if tensor.numel() and tensor.dim() else tensor)  # fmt: skip


def folder_of(path: Path) -> Path:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}
    write_tensors(path, {n: describe(t) for n, t in tensors.items()}, tensors.__getitem__, max_shard=20)
    assert len(load_file(path / "model-00001-of-00002.safetensors")) == 1
    return path


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "model.bin", "..", 3, None])
def test_an_index_points_nowhere_else(tmp_path: Path, file: object) -> None:
    folder = folder_of(tmp_path)
    index = folder / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"]["a"] = file
    index.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="no safetensors file in the folder"):
        TensorFiles(folder)


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"weight_map": []}', "{" * 100_000, "\x00"])
def test_a_damaged_index(tmp_path: Path, text: str) -> None:
    folder = folder_of(tmp_path)
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="index"):
        TensorFiles(folder)


def test_index_and_files_must_agree(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    index = folder / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"]["c"] = data["weight_map"]["a"]
    index.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="disagree about 'c'"):
        TensorFiles(folder)


@given(st.integers(0, 1000))
def test_truncated_files(size: int) -> None:
    with TemporaryDirectory() as name:
        path = Path(name, "model.safetensors")
        save_file({"a": torch.arange(100.0)}, path)
        whole = path.read_bytes()
        path.write_bytes(whole[: min(size, len(whole) - 1)])
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            TensorFiles(Path(name))


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(CheckpointError, match="pickle can run any code"):
        TensorFiles(tmp_path)


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "blobs" / "0123")
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blobs/0123")
    with TensorFiles(tmp_path / "snapshot") as files:
        assert files.read("a").tolist() == [1, 1]
