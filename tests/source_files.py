"""Sources of text and instructions in every format, written for a test and read again."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from shearfx.data.documents import Source
from shearfx.data.records import Dialogue, Text

TEXTS = st.lists(st.text(st.characters(codec="utf-8"), max_size=30), min_size=1, max_size=8)
FRESH_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # examples overwrite one file
IRREGULAR = {"Cc", "Co", "Cs"}
SPELLING = "\u200c\u200d"  # joiners


def texts_of(source: Source) -> list[str]:
    return [document.text for document in source if isinstance(document, Text)]


def turns_of(source: Source) -> list[list[tuple[str, str]]]:
    return [
        [(turn.role, turn.content) for turn in document.messages]
        for document in source
        if isinstance(document, Dialogue)
    ]


def write(path: Path, records: list[Any]) -> Path:
    """Write records in the format that the file's name asks for."""
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path, row_group_size=3)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records, indent=1), encoding="utf-8")
    else:
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
        path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path
