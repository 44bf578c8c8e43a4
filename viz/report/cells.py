"""Sections of a report as data: tables of cells that know their number, and charts by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shearfx.viz.report.lenient import number

__all__ = ["Cell", "cell", "chart", "section", "table"]

Cell = dict[str, Any]
"""``t``, what is shown; ``v``, the number itself, for files of comma-separated values; ``s``, how it is meant."""

LONGEST = 400
"""Characters of a text in a table; a name of a layer has a hundred at most."""


def cell(shown: Any, value: float | None = None, sign: str = "") -> Cell:
    """One cell."""
    text = str(shown)
    found: Cell = {"t": text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."}
    if value is not None and number(value) is not None:
        found["v"] = value
    return found | ({"s": sign} if sign else {})


def table(
    name: str, title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], note: str = "", *, fold: bool = False
) -> dict[str, Any]:
    """A table; its name becomes that of the file it is saved as.

    Args:
        name: in the page and of files.
        title: above it.
        columns: their heads.
        rows: as long as the head, all of them.
        note: below it.
        fold: whether it is closed at first.
    """
    return {"kind": "table", "name": name, "title": title, "columns": list(columns), "rows": [list(r) for r in rows],
            "note": note, "fold": fold}  # fmt: skip


def chart(
    name: str, title: str, data: Any, note: str = "", *, draw: str = "", wide: bool = False, **more: Any
) -> dict[str, Any]:
    """A chart; ``draw`` (by default its name) is what the page's program draws of the data."""
    return {"kind": "chart", "name": name, "draw": draw or name, "title": title, "data": data, "note": note,
            "wide": wide, **more}  # fmt: skip


def section(name: str, title: str, intro: str, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A section with its tables and charts in order."""
    return {"name": name, "title": title, "intro": intro, "items": list(items)}
