"""Named sources of documents to learn from: a file, a folder of files, or a data set of the hub."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from shearfx.data.reading import json_records, parquet_records, text_parts
from shearfx.data.records import Document, Kind, Text, document_of, fields_used
from shearfx.errors import DataError, message

__all__ = ["Source", "from_records", "open_source"]

TEXTS = (".txt", ".text", ".md")
JSONS = (".json", ".jsonl", ".ndjson")
PARQUETS = (".parquet", ".pq")
COMPRESSED = tuple(f"{suffix}.gz" for suffix in (*TEXTS, *JSONS))
READABLE = (*TEXTS, *JSONS, *PARQUETS, *COMPRESSED)
PASSED_OVER = (".md", ".md.gz")  # in a folder, where they tell about the data
UNSAFE = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".py", ".npy", ".joblib")
HUB = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(:[^:/]*(:[^:/]+)?)?")


@dataclass(frozen=True)
class Source:
    """Documents under one name, read anew from their files whenever they are iterated.

    Iterating raises :class:`~shearfx.errors.DataError` where a file is malformed, and at the end if there was no
    document at all.
    """

    name: str
    kind: Kind
    where: str  # what it was opened from
    read: Callable[[], Iterable[Document]]

    def __iter__(self) -> Iterator[Document]:
        document = None
        for document in self.read():
            yield document
        if document is None:
            what = f"the source {self.name!r} is empty: there is no document in it"
            raise DataError(message(what, where=self.where, todo="name another file, or leave the source out"))


def open_source(
    spec: str | Path | Sequence[str | Path],
    *,
    kind: Kind,
    name: str | None = None,
    columns: str | Sequence[str] | None = None,
    max_documents: int | None = None,
) -> Source:
    """Open a source of pretraining text (``kind="pretrain"``) or of instructions (``"instruct"``).

    ``spec`` is a path, or a data set of the hub, or several that make one source:

    * ``.txt``, ``.md``: one document a file, paragraphs between blank lines (only for pretraining).
    * ``.jsonl``, ``.ndjson``: one document a line.  ``.json``: the same, or one list of objects.
    * ``.parquet``: one document a row; only the columns that are needed are read.
    * Text and JSON files may be compressed (``.jsonl.gz``).
    * A folder: all such files in it and below, in the order of their paths; ``.md`` files are passed over.
    * Hub: ``"name"``, ``"name:config"``, ``"name:config:split"`` (or ``"name::split"``), split ``train`` by default,
      streamed, so that no more is fetched than is used.  Code that comes with a data set is never run.

    A path that exists goes before the hub.  Fields are found by name: ``text`` or ``content`` for pretraining; for
    instructions Alpaca's instruction/input/output, instruction/context/response, prompt/completion or response,
    question/answer, or messages (role and content, or ShareGPT's from and value).  ``columns`` names them instead: the
    text (several are joined by blank lines); messages; prompt and response; or instruction, input and response. So do
    names behind the source, ``"notes.parquet#body"`` or ``"data.jsonl#prompt,response"``.

    The source's name is ``name``, or the file's, folder's or data set's own.  ``max_documents`` keeps the first ones.
    The first document is read at once, so that what is wrong with the whole source shows up here.

    Source: LoRAShear, section 5.

    Raises:
        DataError: there is nothing by that name, it is of a kind that is not read, it is empty, malformed, of another
            encoding, or its fields are of no use.
    """
    if kind not in ("pretrain", "instruct"):
        todo = "use 'pretrain' for text and 'instruct' for prompts and responses"
        raise DataError(message(f"there is no kind {kind!r}", where="open_source(kind=...)", todo=todo))
    used = [columns] if isinstance(columns, str) else None if columns is None else list(columns)
    if used is not None and not 1 <= len(used) <= (3 if kind == "instruct" else len(used)):
        todo = "name 1 to 3: messages; prompt and response; or instruction, input and response"
        raise DataError(message(f"{len(used)} columns", where="open_source(columns=...)", todo=todo))
    if max_documents is not None and max_documents < 1:
        todo = "ask for at least one, or for all with None"
        raise DataError(message(f"max_documents is {max_documents}", where="open_source", todo=todo))
    specs = [spec] if isinstance(spec, (str, Path)) else list(spec)
    if not specs:
        todo = "name a file, a folder or a data set of the hub"
        raise DataError(message("no source is named", where="open_source([])", todo=todo))
    named = [_fields_named(one) for one in specs]
    readers = [reader for one, fields in named for reader in _readers(one, kind, fields if used is None else used)]

    def read() -> Iterator[Document]:
        documents = itertools.chain.from_iterable(reader() for reader in readers)
        return _first(documents, max_documents)

    source = Source(name or _name(named[0][0]), kind, ", ".join(map(str, specs)), read)
    next(iter(source))
    return source


def from_records(
    records: Iterable[Any], *, kind: Kind, name: str, columns: str | Sequence[str] | None = None
) -> Source:
    """Make a source of what is in memory: texts, or mappings with the fields that :func:`open_source` knows.

    ``records`` must be iterable more than once, as a list or a ``datasets.Dataset`` is.

    >>> [document.text for document in from_records(["One.", {"text": "Two."}], kind="pretrain", name="mine")]
    ['One.', 'Two.']
    """
    used = [columns] if isinstance(columns, str) else None if columns is None else list(columns)

    def read() -> Iterator[Document]:
        for number, record in enumerate(records, 1):
            where = f"{name}, document {number}"
            plain = isinstance(record, str) and kind == "pretrain"
            yield Text(record, where) if plain else document_of(record, kind, used, where)

    return Source(name, kind, name, read)


def _first(documents: Iterator[Document], count: int | None) -> Iterator[Document]:
    """Yield the first documents; parts of one text count once."""
    done = 0
    for document in documents:
        yield document
        done += not (isinstance(document, Text) and document.continues)
        if done == count:
            return


def _fields_named(spec: str | Path) -> tuple[str | Path, list[str] | None]:
    """A source and the fields that stand behind it: ``notes.parquet#body``, ``data.jsonl#prompt,response``."""
    if isinstance(spec, Path) or "#" not in spec or Path(spec).expanduser().exists():
        return spec, None
    place, _, fields = spec.rpartition("#")
    return place, [field.strip() for field in fields.split(",")]


def _name(spec: str | Path) -> str:
    path = Path(spec).expanduser()
    if not path.exists():
        return str(spec)
    name = path.resolve().name
    suffix = next((suffix for suffix in (*COMPRESSED, *READABLE) if name.lower().endswith(suffix)), "")
    return (name.removesuffix(name[len(name) - len(suffix) :]) if suffix and path.is_file() else name) or str(path)


Reader = Callable[[], Iterator[Document]]


def _readers(spec: str | Path, kind: Kind, columns: list[str] | None) -> list[Reader]:
    path = Path(spec).expanduser()
    if path.is_file():
        return [_reader(path, kind, columns)]
    if path.is_dir():
        return [_reader(file, kind, columns) for file in _files(path)]
    if isinstance(spec, Path) or path.suffix.lower() in (*READABLE, *UNSAFE, ".gz") or not HUB.fullmatch(spec):
        raise _missing(path)
    return [partial(_hub, spec, kind, columns)]


def _reader(path: Path, kind: Kind, columns: list[str] | None) -> Reader:
    """Choose how to read a file by its name."""
    name = path.name.lower()
    if name.endswith(UNSAFE):
        todo = "convert it to .jsonl or .parquet where you trust its origin"
        what = "the file may hold code that runs when it is opened, so it is not opened"
        raise DataError(message(what, where=str(path), todo=todo))
    if not name.endswith(READABLE):
        what = f"files named {path.suffix or 'without a suffix'} are not read"
        raise DataError(message(what, where=str(path), todo=f"convert it to one of {', '.join(READABLE)}"))
    if not name.removesuffix(".gz").endswith(TEXTS):
        return partial(_records, path, kind, columns)
    if kind == "instruct":
        what = "a plain text has no prompts and responses"
        todo = "use .json, .jsonl or .parquet, or open it as kind='pretrain'"
        raise DataError(message(what, where=str(path), todo=todo))
    return lambda: (Text(text, where, more) for where, text, more in text_parts(path) if more or text.strip())


def _records(path: Path, kind: Kind, columns: list[str] | None) -> Iterator[Document]:
    if path.name.lower().endswith(PARQUETS):
        found = parquet_records(path, lambda names: fields_used(names, kind, columns))
    else:
        found = json_records(path)
    return (document_of(record, kind, columns, where) for where, record in found)


def _files(folder: Path) -> list[Path]:
    """List the files in a folder and below that can be read, hidden ones left out, in order."""
    every = sorted(path for path in folder.rglob("*") if path.is_file())
    shown = [path for path in every if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    files = [path for path in shown if path.name.lower().endswith(READABLE)]
    files = [path for path in files if not path.name.lower().endswith(PASSED_OVER)]
    saved = any(path.suffix == ".arrow" for path in shown)
    if not files or saved:
        suffixes = ", ".join(sorted({path.suffix for path in shown if path.suffix})) or "no files"
        todo = f"name a folder with {', '.join(READABLE)} files"
        if saved:
            todo = "write it as parquet: datasets.load_from_disk(folder).to_parquet('data.parquet')"
        what = f"the folder holds no files that are read, but {suffixes}"
        raise DataError(message(what, where=str(folder), todo=todo))
    return files


def _missing(path: Path) -> DataError:
    folder = path.parent
    names = sorted(other.name for other in folder.iterdir()) if folder.is_dir() else []
    listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "nothing"
    todo = f"the folder holds {listed}" if folder.is_dir() else f"there is no folder {folder} either: check the path"
    where = str(folder.absolute())
    return DataError(message(f"there is no file or folder {path}", where=where, todo=_near(path) or todo))


def _near(path: Path) -> str:
    """Name what is there under a similar name, if anything."""
    names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, sorted(names), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(str(path.parent / name) for name in near)}?" if near else ""


def _hub(spec: str, kind: Kind, columns: list[str] | None) -> Iterator[Document]:
    """Stream a data set of the hub.

    Raises:
        DataError: it cannot be had, or reading it breaks off.
    """
    import datasets  # takes seconds, and only the hub needs it

    repository, config, split = [*spec.split(":"), "", ""][:3]
    row = 0
    try:
        stream = datasets.load_dataset(repository, config or None, split=split or "train", streaming=True)
        for row, record in enumerate(stream, 1):
            yield document_of(record, kind, columns, f"{spec}, row {row}")
    except DataError:
        raise
    except Exception as error:  # names, configs, splits, licences, networks, scripts: the hub raises many kinds
        brief = (str(error).splitlines() or [""])[0][:300]
        where = f"looked for a path first: there is no {Path(spec).expanduser().absolute()}; then asked the hub: "
        what = f"reading the data set {spec!r} broke off after row {row}" if row else f"there is no source {spec!r}"
        where += f"{type(error).__name__}: {brief}"
        spelling = "check the spelling of the path; for the hub, the network, the data set's name, config and split"
        todo = ("" if row else _near(Path(spec).expanduser())) or spelling
        raise DataError(message(what, where=where, todo=todo)) from error
