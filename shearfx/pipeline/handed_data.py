"""Data that is passed to a run as such: written into its folder, so that the run can be gone on with from there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shearfx.errors import DataError, message
from shearfx.run_directory import RunDirectory

KINDS = ("pretrain", "instruct")


def named(data: Any, out: Path) -> tuple[dict[str, tuple[str, ...]], dict[str, list[Any]]]:
    """Data as the fields ``pretrain`` and ``instruct`` name it.

    Args:
        data: a source or several (texts to learn from), by path or hub name; records in memory (mappings with the
            fields that :func:`shearfx.data.open_source` knows, such as a ``datasets.Dataset`` gives); or either of them
            under ``"pretrain"`` and ``"instruct"``.
        out: the run's folder.

    Returns:
        Names by kind, and by name of a file in ``out`` the records that it is to hold.

    Raises:
        DataError: it is something else.
    """
    if data is None:
        return {}, {}
    by_kind = data if isinstance(data, Mapping) else {"pretrain": data}
    strange = next((key for key in by_kind if key not in KINDS), None)
    if strange is not None:
        what, todo = f"there is no kind {strange!r} of data", "pass data={'pretrain': ..., 'instruct': ...}"
        raise DataError(message(what, where="shear(...)", todo=todo))
    names: dict[str, tuple[str, ...]] = {}
    records: dict[str, list[Any]] = {}
    for kind, given in by_kind.items():
        if isinstance(given, (str, Path)):
            names[kind] = (str(given),)
            continue
        items = list(given) if isinstance(given, Iterable) else [given]
        if all(isinstance(item, (str, Path)) for item in items):
            names[kind] = tuple(map(str, items))
        elif all(isinstance(item, Mapping) for item in items):
            file = f"{kind}.jsonl"
            names[kind], records[file] = (str(out / file),), items
        else:
            what = f"data of kind {kind} holds {type(items[0]).__name__}"
            todo = "pass names of files or data sets, or records such as {'text': ...}"
            raise DataError(message(what, where="shear(...)", todo=todo))
    return names, records


def write_records(run: RunDirectory, records: Mapping[str, Iterable[Any]]) -> None:
    """Write records into a run's folder as JSON lines, where they are not written yet.

    Raises:
        DataError: one cannot be written as JSON.
    """
    for file, items in records.items():
        if (run.path / file).is_file():
            continue
        try:
            lines = [json.dumps(dict(item)) for item in items]
        except (TypeError, ValueError) as error:
            what = f"a record cannot be written as JSON: {error}"
            raise DataError(message(what, where="data=", todo="pass texts, numbers, lists and dicts")) from error
        run.write(file, "".join(f"{line}\n" for line in lines))
