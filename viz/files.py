"""Which suffix means which picture, and writing it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from shearfx.atomic import replace_file
from shearfx.errors import ShearError, message
from shearfx.viz import dot
from shearfx.viz.exports import explorer, graphml, node_link
from shearfx.viz.page import html
from shearfx.viz.scene import Scene

__all__ = ["SUFFIXES", "check", "check_place", "write"]

SUFFIXES: dict[str, Callable[[Scene], dict[str, bytes]]] = {
    ".svg": dot.svg,
    ".png": dot.png,
    ".pdf": dot.pdf,
    ".dot": dot.source,
    ".html": html,
    ".graphml": graphml,
    ".explorer.json": explorer,
    ".json": node_link,
}
"""What writes a file of a suffix. Each returns the bytes of all files it makes, by the suffixes of their names."""


def check(path: Path, overwrite: bool = False) -> str:
    """The suffix that says how to draw, as far as a path can be judged before there is anything to draw.

    Raises:
        ShearError: the suffix is none of ``SUFFIXES``, or the file is there already, or its folder is not.
    """
    suffix = next((s for s in SUFFIXES if path.name.endswith(s) and path.name != s), None)
    if suffix is None:
        known = ", ".join(SUFFIXES)
        raise ShearError(
            message(f"{path.name!r} says nothing of how to draw", where="-o", todo=f"end it with one of {known}")
        )
    check_place(path, overwrite)
    return suffix


def check_place(path: Path, overwrite: bool) -> None:
    """Raise ShearError where a file is there already, or its folder is not."""
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else "lies in a folder that does not exist"
        raise ShearError(message(f"{path} {what}", where="-o", todo="name a file in a folder that exists"))
    if os.path.lexists(path) and not overwrite:
        raise ShearError(message("the file exists", where=str(path), todo="name a new file, or pass --overwrite"))


def write(scene: Scene, path: Path, overwrite: bool = False) -> list[Path]:
    """Draw a scene into the file that a path names; returns what was written.

    Where the program ``dot`` is missing, its source is written instead, and the error says how to get the program.

    Raises:
        ShearError: see ``check``; or the files cannot be written, or graphviz cannot draw them.
    """
    suffix = check(path, overwrite)
    stem = path.name.removesuffix(suffix)
    if suffix in dot.NEED_PROGRAM and not dot.has_program():
        instead, content = path.with_name(f"{stem}.dot"), dot.source(scene)[".dot"]
        if not (instead.is_file() and instead.read_bytes() == content):  # asked for as well, and written already
            check_place(instead, overwrite)
            replace_file(instead, content)
        raise ShearError(dot.missing(instead, path))
    files = {path.with_name(f"{stem}{ending}"): content for ending, content in SUFFIXES[suffix](scene).items()}
    for place in files:
        check_place(place, overwrite)
    for place, content in files.items():
        replace_file(place, content)
    return list(files)
