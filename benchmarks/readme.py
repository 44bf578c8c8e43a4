"""Bring the generated parts of the README up to date: the table of operators, and results of benchmarks.

    python -m benchmarks.readme

A part lies between ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``; NAME is ``operators``, ``methods`` (of
``lorashear_table``), or that of a file in ``results``, which appears without its title. A test holds it to this.
"""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.lorashear_report import short
from benchmarks.record import RESULTS
from shearfx.rules.listing import table

README = Path(__file__).parents[1] / "README.md"
MISSING = "*Not measured yet.*"


def part(name: str) -> str:
    """The text of one part; a mark for what was not measured."""
    if name == "operators":
        return table()
    if name == "methods":
        return short()
    file = RESULTS / f"{name}.md"
    if not file.is_file():
        return f"{MISSING} `python -m benchmarks.{name}` fills this in."
    return re.sub(r"\A# .*\n+", "", file.read_text(encoding="utf-8")).strip()


def updated(text: str) -> str:
    """A README with all its parts replaced by what they are now."""
    return re.sub(
        r"<!-- (\w+): begin -->.*?<!-- \1: end -->",
        lambda found: f"<!-- {found[1]}: begin -->\n{part(found[1])}\n<!-- {found[1]}: end -->",
        text,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
