"""Tasks as files: one item a JSON line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shearfx.data.reading import lines
from shearfx.errors import DataError, message

FORMS = '{"query", "choices", "gold"}, {"contexts", "continuation", "gold"} or {"text"}'


@dataclass(frozen=True)
class Item:
    """One question: pairs of a context and a continuation, of which one is right."""

    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    """One for each context; the blank that parts the two stands in front of it."""
    gold: int | None
    """Which pair is right; None where the only continuation is to be guessed word for word."""
    where: str = field(default="", compare=False)
    """File and line, for errors; empty where it comes from no file."""

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Each context with its continuation."""
        return list(zip(self.contexts, self.continuations, strict=True))

    @property
    def fingerprint(self) -> str:
        """Short digest of what is asked."""
        text = json.dumps([self.contexts, self.continuations, self.gold])
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Task:
    """Items of one kind."""

    name: str
    items: tuple[Item, ...]
    available: int
    """Items of the file, of which the first ones may have been taken."""

    @property
    def guessed(self) -> bool:
        """Whether continuations are to be guessed word for word, rather than chosen."""
        return self.items[0].gold is None

    @property
    def chance(self) -> float:
        """Expected accuracy of choosing blindly."""
        return 0.0 if self.guessed else sum(1 / len(item.contexts) for item in self.items) / len(self.items)

    def take(self, limit: int | None) -> Task:
        """The first items."""
        return self if limit is None else replace(self, items=self.items[:limit])


def read_tasks(paths: Sequence[Path], limit: int | None = None) -> list[Task]:
    """Read task files, and all ``*.jsonl`` of folders.

    Args:
        paths: files and folders.
        limit: items of each task that are taken, from the first one on.

    Raises:
        DataError: see :func:`read_task`; a folder without files, or two tasks of one name.
    """
    files: list[Path] = []
    for path in paths:
        found = sorted([*path.glob("*.jsonl"), *path.glob("*.jsonl.gz")]) if path.is_dir() else [path]
        if not found:
            raise DataError(message("the folder has no *.jsonl", where=str(path), todo="name a task's file"))
        files += found
    tasks: dict[str, Task] = {}
    for file in files:
        task = read_task(file, limit)
        if task.name in tasks:
            raise DataError(
                message(f"two tasks are called {task.name}", where=str(file), todo="rename one of the files")
            )
        tasks[task.name] = task
    return list(tasks.values())


def read_task(path: Path, limit: int | None = None) -> Task:
    """Read a task; its name is the file's.

    Three forms of items, one a line: ``{"query": text, "choices": [text, ...], "gold": number}``,
    ``{"contexts": [text, ...], "continuation": text, "gold": number}``, and ``{"text": text}``, the last word of which
    is to be guessed (LAMBADA).

    Args:
        path: a file of JSON lines, UTF-8.
        limit: items that are taken, from the first one on.

    Raises:
        DataError: the file cannot be read, an item is malformed (with its line), or there is none.
    """
    if limit is not None and limit < 1:
        raise DataError(message(f"{limit} items a task are none", todo="take at least one"))
    if not path.is_file():
        raise DataError(
            message("there is no such file", where=str(path), todo="name a task's file, or a folder of them")
        )
    items = [_item(line, f"{path}, line {number}") for number, line in lines(path) if line.strip()]
    if not items:
        raise DataError(message("the task has no items", where=str(path), todo=f"a line is {FORMS}"))
    if len({item.gold is None for item in items}) > 1:
        what = "some items are to be chosen, others guessed"
        raise DataError(message(what, where=str(path), todo="make two files of it"))
    contexts, choices = (any(len(set(of(item))) > 1 for item in items) for of in (_contexts, _continuations))
    if contexts and choices:
        what = "some items choose what goes before a text, others what comes after one"
        raise DataError(message(what, where=str(path), todo="make two files of it"))
    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    return Task(name, tuple(items), len(items)).take(limit)


def _contexts(item: Item) -> tuple[str, ...]:
    return item.contexts


def _continuations(item: Item) -> tuple[str, ...]:
    return item.continuations


def _item(line: str, where: str) -> Item:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(message(f"this is no JSON: {error}", where=where, todo=f"a line is {FORMS}")) from error
    fields = set(record) if isinstance(record, dict) else set()
    if fields >= {"query", "choices", "gold"}:
        choices = _texts(record["choices"], "choices", where)
        contexts = (_text(record["query"], "query", where),) * len(choices)
    elif fields >= {"contexts", "continuation", "gold"}:
        contexts = _texts(record["contexts"], "contexts", where)
        choices = (_text(record["continuation"], "continuation", where),) * len(contexts)
    elif "text" in fields:
        words = _text(record["text"], "text", where).rstrip().rsplit(None, 1)
        if len(words) < 2:
            raise DataError(message("the text has less than two words", where=where, todo="leave it out"))
        return Item((words[0],), (" " + words[1],), None, where)
    else:
        raise DataError(message("this is no item of a task", where=where, todo=f"a line is {FORMS}"))
    gold = record["gold"]
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(contexts):
        what = f"gold is {gold!r}, and there are {len(contexts)} choices"
        raise DataError(message(what, where=where, todo="it is a number from 0"))
    return Item(contexts, choices, gold, where)


def _texts(value: Any, field: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) < 2:
        raise DataError(message(f"{field} is no list of two or more", where=where, todo="list what to choose from"))
    return tuple(_text(one, field, where) for one in value)


def _text(value: Any, field: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(message(f"{field} has something else than text in it", where=where, todo="make it a string"))
    if not value.strip():
        raise DataError(message(f"{field} has an empty text in it", where=where, todo="fill it in, or leave it out"))
    return value
