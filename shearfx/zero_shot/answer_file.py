"""Answers kept as they are found, so that an evaluation that is cut off goes on."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from shearfx.architectures import config_of
from shearfx.atomic import replace_file
from shearfx.errors import DataError, message
from shearfx.inference import bos_of, dtype_name, tokenizer_name
from shearfx.zero_shot.answers import Answer

NOWHERE = ("_name_or_path", "transformers_version")
"""What a configuration says of where it comes from."""


class AnswerFile:
    """Answers by task and item, in memory and in a file of JSON lines if there is one.

    Args:
        path: the file; made where it is missing. None: in memory only.
        model, tokenizer: whose answers they are.

    Raises:
        DataError: the file cannot be read, or holds the answers of another model.
        CheckpointError: it cannot be written.
    """

    def __init__(self, path: Path | None, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        self.path = path
        self._found: dict[tuple[str, str], list[Answer]] = {}
        if path is None:
            return
        whose = {"model": weights_digest(model), "dtype": dtype_name(model), "tokenizer": tokenizer_name(tokenizer),
                 "bos": bool(bos_of(tokenizer))}  # fmt: skip
        try:
            if path.exists():
                self._read(path, whose)
            else:
                replace_file(path, json.dumps(whose) + "\n")
        except OSError as error:
            what = f"the file of answers cannot be used: {error.strerror}"
            raise DataError(message(what, where=str(path), todo="name another file")) from error

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._found

    def of(self, task: str, item: str) -> list[Answer]:
        """The answers to one item, in the order of its choices."""
        return self._found[task, item]

    def add(self, task: str, item: str, answers: Sequence[Answer]) -> None:
        """Keep the answers to one item."""
        self._found[task, item] = list(answers)
        if self.path is not None:
            line = {"task": task, "item": item, "answers": [[a.log_likelihood, a.greedy, a.merged] for a in answers]}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _read(self, path: Path, whose: dict[str, object]) -> None:
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        if text and not text.endswith("\n"):  # killed while it was written
            lines.pop()
            replace_file(path, "".join(line + "\n" for line in lines))
        try:
            header, *rest = [json.loads(line) for line in lines] or [None]
            found = {(one["task"], one["item"]): [Answer(*answer) for answer in one["answers"]] for one in rest}
        except (ValueError, KeyError, TypeError) as error:
            what, todo = "this is no file of answers, or a damaged one", "remove it, or name another"
            raise DataError(message(what, where=str(path), todo=todo)) from error
        if header != whose:
            said = header if isinstance(header, dict) else {}
            other = ", ".join(sorted(name for name in whose if said.get(name) != whose[name]))
            what, todo = (
                f"the answers in it are those of another model (other {other})",
                "remove it, or name another file",
            )
            raise DataError(message(what, where=str(path), todo=todo))
        self._found = found


def weights_digest(model: nn.Module) -> str:
    """Tells models apart by all their numbers, and by the configuration that they are computed by."""
    digest = hashlib.sha256()
    for name, tensor in sorted(
        itertools.chain(model.named_parameters(), model.named_buffers()), key=lambda one: one[0]
    ):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().reshape(-1).cpu().contiguous().view(torch.uint8).numpy().data)
    config = config_of(model)
    settings = {} if config is None else {k: v for k, v in config.to_dict().items() if k not in NOWHERE}
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]
