"""What an evaluation finds is kept line by line: it goes on where it was cut off, and never mixes up two requests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shearfx.errors import CheckpointError, DataError
from shearfx.evaluation import Perplexity, perplexity
from shearfx.zero_shot import LineFile, LossFile, read_task, whose, zero_shot
from tests.tiny_runs import tiny_llama
from tests.tiny_tokenizers import byte_tokenizer

DOCUMENTS = ["the cat sat on the mat ", "a stone in it", "", "under a tree"]
TOKENIZER = byte_tokenizer(bos=True)


class Stopping(nn.Module):
    """Counts the calls, and dies after some."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.calls, self.most = model, 0, 10**9

    def forward(self, input_ids: torch.Tensor) -> Any:
        if self.calls == self.most:
            raise KeyboardInterrupt
        self.calls += 1
        return self.model(input_ids=input_ids, use_cache=False)


@pytest.fixture(scope="module")
def model() -> Stopping:
    return Stopping(tiny_llama(num_hidden_layers=1))


@pytest.fixture
def stopping(model: Stopping) -> Iterator[Stopping]:
    model.calls, model.most = 0, 10**9
    yield model


def measured(model: Stopping, path: Path | None, **more: Any) -> Perplexity:
    """As a process of its own would: the file is opened anew."""
    model.calls = 0
    text = more.pop("text", DOCUMENTS)
    cache = None if path is None else LossFile(LineFile(path, whose(model, TOKENIZER)))
    return perplexity(model, TOKENIZER, text, cache=cache, **({"sequence_length": 9} | more))


@given(
    batch=st.integers(1, 4),
    stride=st.sampled_from([None, 3]),
    most=st.integers(0, 9),
    cut=st.integers(0, 200),
)
@settings(max_examples=20)
def test_it_goes_on_wherever_it_was_killed(
    model: Stopping, tmp_path_factory: pytest.TempPathFactory, batch: int, stride: int | None, most: int, cut: int
) -> None:
    path, model.most = tmp_path_factory.mktemp("kept") / "kept.jsonl", 10**9
    whole = measured(model, None, batch_size=batch, stride=stride)
    calls, model.most = model.calls, most
    try:
        measured(model, path, batch_size=batch, stride=stride)
    except KeyboardInterrupt:
        assert calls > most
    model.most = 10**9
    content = path.read_bytes()
    header = content.index(b"\n") + 1
    left = content[: max(header, len(content) - cut)]  # anywhere in a line
    path.write_bytes(left)
    # exactly: the value as well
    assert measured(model, path, batch_size=batch, stride=stride) == whole
    assert model.calls == calls - (left.count(b"\n") - 1)
    assert measured(model, path, batch_size=batch, stride=stride) == whole
    assert model.calls == 0


def test_another_request_is_not_mixed_up(stopping: Stopping, tmp_path: Path) -> None:
    requests: list[dict[str, Any]] = [
        {}, {"sequence_length": 10}, {"stride": 3}, {"max_tokens": 30}, {"batch_size": 2},
        {"text": [*DOCUMENTS[:-1], "under a bush"]}, {"text": ["".join(DOCUMENTS)]}, {"text": DOCUMENTS[:-1]},
    ]  # fmt: skip
    alone = [measured(stopping, None, **request) for request in requests]
    assert len({one.value for one in alone}) >= len(requests) - 1  # of another batch size it may be the same
    kept = tmp_path / "kept.jsonl"
    for request, expected in zip(requests, alone, strict=True):
        assert measured(stopping, kept, **request) == expected
        assert stopping.calls > 0, request
    for request, expected in zip(requests, alone, strict=True):
        assert measured(stopping, kept, **request) == expected
        assert stopping.calls == 0, request


def test_losses_lie_beside_answers_of_the_same_model_alone(stopping: Stopping, tmp_path: Path) -> None:
    path, task = tmp_path / "kept.jsonl", tmp_path / "task.jsonl"
    task.write_text('{"text": "a cat sat"}\n')
    expected = measured(stopping, path)
    answered = zero_shot(stopping, TOKENIZER, [read_task(task)], cache=path)
    stopping.calls = 0
    file = LineFile(path, whose(stopping, TOKENIZER))
    assert perplexity(stopping, TOKENIZER, DOCUMENTS, sequence_length=9, cache=LossFile(file)) == expected
    assert zero_shot(stopping, TOKENIZER, [read_task(task)], cache=file) == answered
    assert stopping.calls == 0
    content = path.read_bytes()
    other = Stopping(tiny_llama(initializer_range=0.3))
    with pytest.raises(DataError, match=r"another model \(other model\)"):
        measured(other, path)
    with pytest.raises(DataError, match="other bos, tokenizer"):
        LineFile(path, {**whose(stopping, TOKENIZER), "bos": False, "tokenizer": "another"})
    assert path.read_bytes() == content


def test_what_is_kept_is_found_again_in_the_same_file_object(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "new" / "kept.jsonl", {"model": "a"})
    file.add({"n": 1, "found": 2})
    file.add({"n": 1, "found": 3})
    file.add({"other": 1})
    for again in (file, LineFile(file.path, {"model": "a"})):
        assert again.found("found", lambda line: (line["n"], line["found"])) == {1: 3}  # the last one counts


@pytest.mark.parametrize("content", [b"words", b"words\nmore", b"[1]\n", b"\xff\xfe\x00\n\x80", b'{"model": "a"'])
def test_files_of_something_else_stay_as_they_are(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"no file of answers, or a damaged one\n.*notes.txt, line 1"):
        LineFile(path, {"model": "a"})
    assert path.read_bytes() == content


def test_a_damaged_line_is_named(stopping: Stopping, tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    measured(stopping, path)
    lines = path.read_text().splitlines()
    for damaged in ('{"losses": [1]}', json.dumps(json.loads(lines[2]) | {"losses": ["x"]}), "{", "3"):
        path.write_text("\n".join([*lines[:2], damaged, *lines[3:]]) + "\n")
        with pytest.raises(DataError, match=r"damaged one\n.*kept.jsonl, line 3"):
            measured(stopping, path)


def test_an_empty_file_is_begun_and_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    path.touch()
    file = LineFile(path, {"model": "a"})
    assert path.read_text() == '{"model": "a"}\n'
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match="cannot be kept"):
        file.add({"n": 1})
    with pytest.raises(DataError, match="cannot be used"):
        LineFile(path, {"model": "a"})


def test_what_is_not_finite_is_not_kept(tmp_path: Path) -> None:
    from shearfx.errors import ShearError

    broken = tiny_llama()
    with torch.no_grad():
        broken.lm_head.weight.fill_(torch.nan)
    path = tmp_path / "kept.jsonl"
    with pytest.raises(ShearError, match="not finite"):
        measured(Stopping(broken), path)
    assert path.read_text().count("\n") == 1  # whose they are
