"""C4 in two parts: what is trained on, and what is judged by."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

JUDGED_FROM = 1600
"""Rows of the C4 file from here on are judged by, never trained on."""


def c4_parts(data: Path, folder: Path) -> tuple[Path, Path]:
    """The two parts as files in a folder."""
    table = pq.read_table(data / "data" / "text" / "c4_validation_2k.parquet")
    train, judge = folder / "c4_train.parquet", folder / "c4_judge.parquet"
    pq.write_table(table.slice(0, JUDGED_FROM), train)
    pq.write_table(table.slice(JUDGED_FROM), judge)
    return train, judge
