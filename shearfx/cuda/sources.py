"""The CUDA sources that come with the package, and which kernel is compiled from which file."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "kernels"
"""Package data: a folder, as NVRTC and g++ both resolve ``#include`` there."""

KERNELS = {
    "statistics_product": ("product_rows", "product_columns"),
    "statistics_dense": ("dense_rows", "dense_columns"),
    "statistics_any": ("product_plain", "gram_chunks", "gram_sums", "line_sums"),
    "step_replace": ("replace_lines",),
    "step_any": ("decide", "clear_factors"),
    "update": ("count_steps", "adamw", "sgd"),
}
"""Name of a ``.cu`` file to the kernels in it."""


@dataclass(frozen=True)
class Module:
    """One file, compiled with some macros defined: numbers that its loops are unrolled for."""

    name: str
    defines: tuple[tuple[str, int], ...] = ()

    @property
    def text(self) -> str:
        """The source itself."""
        return (FOLDER / f"{self.name}.cu").read_text(encoding="utf-8")

    @property
    def kernels(self) -> tuple[str, ...]:
        """What it has to be launched by."""
        return KERNELS[self.name]


FIXED = (Module("statistics_any"), Module("step_any"), Module("update"))
"""What is compiled in one way only, whatever it is used on."""


@cache
def digest() -> str:
    """SHA-256 over all sources: what compiled code is told apart by.

    >>> len(digest())
    64
    """
    found = hashlib.sha256()
    for path in sorted(FOLDER.iterdir()):
        found.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()


@cache
def layout() -> dict[str, int]:
    """The sizes of ``layout.cuh``, by name.

    >>> layout()["THREADS"]
    256
    """
    text = (FOLDER / "layout.cuh").read_text(encoding="utf-8")
    return {name: int(value) for name, value in re.findall(r"^#define (\w+) (\d+)", text, re.MULTILINE)}
