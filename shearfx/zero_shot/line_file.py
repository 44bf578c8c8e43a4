"""What is found, kept line by line as it is found, so that an evaluation that is cut off goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from shearfx.atomic import replace_file
from shearfx.errors import CheckpointError, DataError, message

Key = TypeVar("Key")
Value = TypeVar("Value")


class LineFile:
    """A file of JSON lines: the first one says whose the others are, and each of these holds something found.

    A last line that was cut in two, as by a kill, is taken off when the file is opened again.

    Args:
        path: the file; made where it is missing.
        whose: see :func:`shearfx.zero_shot.whose.whose`.

    Raises:
        DataError: the file cannot be read, is no such file, or holds what was found of another model; it is left as
            it is.
        CheckpointError: it cannot be written.
    """

    def __init__(self, path: Path, whose: Mapping[str, object]) -> None:
        self.path = path
        self._records: list[dict[str, Any]] = []
        try:
            content = path.read_bytes() if path.exists() else b""
        except OSError as error:
            what = f"the file of answers cannot be used: {error.strerror}"
            raise DataError(message(what, where=str(path), todo="name another file")) from error
        if content:
            self._read(content, whose)
        else:
            replace_file(path, json.dumps(whose) + "\n")

    def add(self, record: Mapping[str, object]) -> None:
        """Write a line.

        Raises:
            CheckpointError: it cannot be written.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            what, todo = f"what was found cannot be kept: {error.strerror}", "make room, or name another file"
            raise CheckpointError(message(what, where=str(self.path), todo=todo)) from error
        self._records.append(dict(record))

    def found(self, field: str, as_entry: Callable[[dict[str, Any]], tuple[Key, Value]]) -> dict[Key, Value]:
        """What the lines that have a field say; the last one counts.

        Args:
            field: its name.
            as_entry: makes key and value of a line.

        Raises:
            DataError: a line has that field, and others are missing or no such thing.
        """
        entries: dict[Key, Value] = {}
        for number, record in enumerate(self._records, 2):
            if field in record:
                try:
                    key, value = as_entry(record)
                    entries[key] = value
                except (KeyError, TypeError, ValueError) as error:
                    raise self._damaged(number) from error
        return entries

    def _read(self, content: bytes, whose: Mapping[str, object]) -> None:
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines() or [b""], 1):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise self._damaged(number) from error
            if not isinstance(record, dict):
                raise self._damaged(number)
            if number == 1 and record != whose:
                other = ", ".join(sorted(name for name in whose if record.get(name) != whose[name]))
                what = f"the answers in it are those of another model (other {other})"
                raise DataError(message(what, where=str(self.path), todo="remove it, or name another file"))
            if number > 1:
                self._records.append(record)
        if len(whole) < len(content):  # only now that it is known to be ours
            replace_file(self.path, whole)

    def _damaged(self, line: int) -> DataError:
        what, todo = "this is no file of answers, or a damaged one", "remove it, or name another"
        return DataError(message(what, where=f"{self.path}, line {line}", todo=todo))
