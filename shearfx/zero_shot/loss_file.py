"""Losses of windows of texts, kept in a file of lines: beside answers, as both are of one model."""

from __future__ import annotations

from collections import UserDict
from dataclasses import asdict, fields
from typing import Any

from shearfx.evaluation import Windows
from shearfx.zero_shot.line_file import LineFile


class LossFile(UserDict[Windows, list[float]]):
    """Losses by windows, as ``perplexity(cache=...)`` takes them: those in a file, and those that are put in.

    Args:
        file: where they are kept.

    Raises:
        DataError: a line of the file is damaged.
    """

    def __init__(self, file: LineFile) -> None:
        super().__init__()
        self.data.update(file.found("losses", _entry))
        self._file = file

    def __setitem__(self, windows: Windows, losses: list[float]) -> None:
        super().__setitem__(windows, losses)
        self._file.add({**asdict(windows), "losses": losses})


def _entry(line: dict[str, Any]) -> tuple[Windows, list[float]]:
    windows = Windows(**{field.name: line[field.name] for field in fields(Windows)})
    return windows, [float(loss) for loss in line["losses"]]
