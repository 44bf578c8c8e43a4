"""Answers to items of tasks, kept in a file of lines."""

from __future__ import annotations

from collections import UserDict
from typing import Any

from shearfx.zero_shot.answers import Answer
from shearfx.zero_shot.line_file import LineFile

Asked = tuple[str, str]
"""Name of a task and fingerprint of an item."""


class AnswerFile(UserDict[Asked, list[Answer]]):
    """Answers by item, in the order of its choices: those in a file, and those that are put in, which go there too.

    Args:
        file: where they are kept. None: in memory only.

    Raises:
        DataError: a line of the file is damaged.
    """

    def __init__(self, file: LineFile | None = None) -> None:
        super().__init__()
        self.data.update({} if file is None else file.found("answers", _entry))
        self._file = file

    def __setitem__(self, asked: Asked, answers: list[Answer]) -> None:
        super().__setitem__(asked, answers)
        if self._file is not None:
            task, item = asked
            found = [[answer.log_likelihood, answer.greedy, answer.merged] for answer in answers]
            self._file.add({"task": task, "item": item, "answers": found})


def _entry(line: dict[str, Any]) -> tuple[Asked, list[Answer]]:
    return (line["task"], line["item"]), [Answer(*answer) for answer in line["answers"]]
