"""Machine code that was compiled before, in the user's cache folder: whole or not at all, and checked when read."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from shearfx.atomic import replace_folder
from shearfx.errors import CheckpointError

CODE, CHECK = "kernels.cubin", "sha256"


def folder() -> Path:
    """Where it is kept: ``$XDG_CACHE_HOME/shearfx/cubins``, by default under ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shearfx" / "cubins"


def read(key: tuple[str, ...]) -> bytes | None:
    """What was kept under a key; None where there is nothing, or it was damaged."""
    try:
        place = _place(key)
        code, check = (place / CODE).read_bytes(), (place / CHECK).read_text(encoding="ascii")
    except (OSError, RuntimeError, UnicodeDecodeError):
        return None
    return code if hashlib.sha256(code).hexdigest() == check else None


def write(key: tuple[str, ...], code: bytes) -> None:
    """Keep it. A folder that cannot be written to costs the time of compiling again, nothing else."""
    try:
        with replace_folder(_place(key)) as place:
            (place / CODE).write_bytes(code)
            (place / CHECK).write_text(hashlib.sha256(code).hexdigest(), encoding="ascii")
    except (CheckpointError, OSError, RuntimeError):  # RuntimeError: there is no home folder
        return


def _place(key: tuple[str, ...]) -> Path:
    return folder() / hashlib.sha256("\0".join(key).encode()).hexdigest()
