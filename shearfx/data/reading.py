"""Reading files of documents piece by piece: text, JSON lines, JSON, parquet; what is wrong is named with its line."""

from __future__ import annotations

import gzip
import json
import shlex
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from charset_normalizer import from_bytes

from shearfx.errors import DataError, message

__all__ = ["json_records", "lines", "parquet_records", "text_parts"]

PART = 1 << 18  # characters after which a long text goes on in a further part, at the next blank line
SAMPLE = 1 << 15  # bytes to guess an encoding from
# What text that is not UTF-8 usually is: Python's names, in the order they are tried, and iconv's.
ENCODINGS = {
    "cp1252": "CP1252",
    "cp1251": "CP1251",
    "koi8_r": "KOI8-R",
    "cp932": "CP932",
    "euc_jp": "EUC-JP",
    "gb18030": "GB18030",
    "big5": "BIG5",
    "cp949": "CP949",
    "utf_16_le": "UTF-16LE",
    "utf_16_be": "UTF-16BE",
}
ROWS = 256  # of a parquet file, in memory at a time

Located = tuple[str, Any]  # (where it was found, the record)


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line with its line break) of a UTF-8 file, gzip-compressed if it is named ``.gz``.

    Raises:
        DataError: the file cannot be read, is damaged, or is of another encoding (with line and byte).
    """
    position = 0
    try:
        with _opened(path) as file:
            for number, raw in enumerate(file, 1):
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise _not_utf8(path, number, position, error.start, raw + file.read(SAMPLE)) from error
                if line.count("\0") > len(line) // 4:  # UTF-16 without a mark reads as UTF-8 full of zeros
                    raise _not_utf8(path, number, position, raw.index(b"\0"), raw + file.read(SAMPLE))
                position += len(raw)
                yield number, line
    except (OSError, EOFError, zlib.error) as error:  # gzip has errors of all three kinds
        todo = "check its permissions, and fetch it again if it is damaged"
        raise DataError(message(f"the file cannot be read: {error}", where=str(path), todo=todo)) from error


def _opened(path: Path) -> IO[bytes] | gzip.GzipFile:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def text_parts(path: Path) -> Iterator[tuple[str, str, bool]]:
    """Yield (where, text, whether it goes on) of a text file: its whole text, or parts that end at blank lines.

    So a file of any size is read in little memory, and its first tokens can be had without reading the rest.

    Raises:
        DataError: as :func:`lines`.
    """
    part: list[str] = []
    size, begin = 0, 1
    for number, line in lines(path):
        # a text without blank lines is cut at a line
        if size >= PART and line.strip() and (not part[-1].strip() or size >= 2 * PART):
            yield f"{path}, line {begin}", "".join(part), True
            part, size, begin = [], 0, number
        part.append(line)
        size += len(line)
    if part:
        yield f"{path}, line {begin}", "".join(part), False


def json_records(path: Path) -> Iterator[Located]:
    """Yield (where, record) of a JSON file: an object a line, or one list of objects, or one object that holds it.

    JSON lines are read line by line; a list is read as a whole.

    Raises:
        DataError: malformed JSON, named by its line; or as :func:`lines`.
    """
    if ".jsonl" in path.suffixes or ".ndjson" in path.suffixes or _is_json_lines(path):
        for number, line in lines(path):
            if line.strip():
                yield f"{path}, line {number}", _parsed(line.rstrip(), path, number)
        return
    content = "".join(line for _, line in lines(path)).rstrip()
    if not content:
        return
    data = _parsed(content, path, 1)
    if isinstance(data, dict):
        lists = [value for value in data.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
        data = lists[0] if len(lists) == 1 and "messages" not in data and "conversations" not in data else [data]
    for number, record in enumerate(data if isinstance(data, list) else [data], 1):
        yield f"{path}, object {number}", record


def _is_json_lines(path: Path) -> bool:
    """Whether the first line is a whole object and others follow."""
    written = (line for _, line in lines(path) if line.strip())
    try:
        first = json.loads(next(written, "[]"))
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and next(written, None) is not None


def _parsed(text: str, path: Path, first_line: int) -> Any:
    """Parse JSON that begins on ``first_line`` of the file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        near = text[max(error.pos - 30, 0) : error.pos + 30].strip()
        where = f"{path}, line {line}, column {error.colno}, near {near!r}"
        show = f"{'zcat' if path.suffix == '.gz' else 'cat'} {shlex.quote(str(path))} | sed -n {line}p"
        todo = f"correct that line (`{show}` shows it), or leave it out"
        if path.suffix != ".json" and text.strip() in ("[", "{"):
            todo = "this looks like one JSON value over many lines: name the file .json"
        raise DataError(message(f"malformed JSON: {error.msg}", where=where, todo=todo)) from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits; nesting without end
        where = f"{path}, line {first_line}"
        raise DataError(message(f"malformed JSON: {error}", where=where, todo="leave it out")) from error


def parquet_records(path: Path, fields_used: Callable[[Sequence[str]], list[str] | None]) -> Iterator[Located]:
    """Yield (where, row as a dict) of a parquet file, some rows at a time and only the columns that are of use.

    ``fields_used`` gets all columns' names and returns those to read, or None for all.

    Raises:
        DataError: the file is no parquet file, or is damaged.
    """
    row = 0
    try:
        with pq.ParquetFile(path) as file:
            columns = fields_used(file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=ROWS, columns=columns):
                for record in batch.to_pylist():
                    row += 1
                    yield f"{path}, row {row}", record
    except UnicodeDecodeError as error:
        where, todo = f"{path}, among the {ROWS} rows after row {row}", "write the file again with its texts as UTF-8"
        raise DataError(message(f"a text in it is not UTF-8: {error.reason}", where=where, todo=todo)) from error
    except (pa.ArrowException, OSError, ValueError) as error:
        where = f"{path}, after row {row}" if row else str(path)
        brief = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        todo = "fetch or write the file again; if it is no parquet file, name it by what it is"
        raise DataError(message(f"the parquet file is damaged: {brief}", where=where, todo=todo)) from error


def _not_utf8(path: Path, line: int, begin: int, offset: int, sample: bytes) -> DataError:
    """Say where a file stops being UTF-8, what it looks like, and how to convert it."""
    looks = _encoding_of(sample)
    where = f"{path}, line {line}, byte {begin + offset} of the file (0x{sample[offset]:02X})"
    if looks is None:
        todo = "this looks binary: name a text file, or convert it to UTF-8"
    else:
        source, target = (shlex.quote(str(name)) for name in (path, path.with_name(f"{path.stem}.utf8{path.suffix}")))
        todo = f"it looks like {looks}: iconv -f {looks} -t UTF-8 {source} > {target}"
    return DataError(message("the file is not UTF-8", where=where, todo=todo))


def _encoding_of(sample: bytes) -> str | None:
    """Guess the encoding of bytes that are not UTF-8, by iconv's name; None if they look like no text.

    >>> [_encoding_of("Das hört sich gut an".encode(name)) for name in ("utf-16", "utf-16-be", "latin-1")]
    ['UTF-16', 'UTF-16BE', 'CP1252']
    """
    if sample.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    if 0 in sample:
        names = [name for name in ENCODINGS if name.startswith("utf")]
    elif sum(byte >= 0x80 for byte in sample) < len(sample) / 4:  # Latin letters, some of them with an accent
        names = ["cp1252"]
    else:
        names = [name for name in ENCODINGS if not name.startswith("utf")]
    guess = from_bytes(sample, cp_isolation=names).best()
    return None if guess is None else ENCODINGS.get(guess.encoding)
