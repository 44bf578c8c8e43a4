"""Files and folders that appear whole or not at all: written under a temporary name beside the place, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from shearfx.errors import CheckpointError, message

__all__ = ["PLAN_FILE", "check_free", "new_folder", "put_back", "replace_file", "replace_folder", "write_text"]

PLAN_FILE = "shearfx_plan.json"
"""What marks a folder as one that shearfx wrote."""

ASIDE = ".older"
"""How the name of a folder ends that is about to be replaced."""


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` that becomes ``path`` when the block ends without an error.

    The files are on the disk before the rename, so that a crash leaves either all of them or none; whatever goes
    wrong, an interrupt included, the temporary folder is removed.

    Args:
        path: must not exist, unless as an empty folder.
        overwrite: a folder that shearfx wrote earlier may be there; it is replaced at the end, and only then.

    Raises:
        CheckpointError: something is in the way, or it cannot be written (full disk, no permission).
    """
    target = Path(os.path.abspath(Path(path).expanduser()))
    check_free(target, overwrite)
    with replace_folder(target) as temporary:
        yield temporary


@contextlib.contextmanager
def replace_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The same, where whatever lies at ``path`` is shearfx's own and may be replaced."""
    target = Path(os.path.abspath(Path(path).expanduser()))
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        yield temporary
        temporary.chmod(0o777 & ~_umask())  # mkdtemp's folders are for their owner's eyes only
        _sync(temporary)
        _put(temporary, target)
    except OSError as error:
        raise _not_written(target, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def replace_file(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write one file, text as UTF-8, whole or not at all; a file that is there is replaced, and stays until then.

    Raises:
        CheckpointError: it cannot be written (full disk, no permission).
    """
    target = Path(os.path.abspath(Path(path).expanduser()))
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        _sync_one(temporary)
        temporary.replace(target)
    except OSError as error:
        raise _not_written(target, error) from error
    finally:
        with contextlib.suppress(OSError):  # what there is to say of the place was said
            temporary.unlink()


def put_back(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is there; one that was moved aside by a process that was killed before the new one had its place
    is put back first."""
    target = Path(os.path.abspath(Path(path).expanduser()))
    if not target.is_dir():
        aside = sorted(target.parent.glob(f".{target.name}.*{ASIDE}"), key=lambda folder: folder.stat().st_mtime)
        if aside:
            aside[-1].rename(target)
    return target.is_dir()


def write_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8 without translating line ends, the same on every system."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)


def check_free(path: str | os.PathLike[str], overwrite: bool) -> None:
    """Raise CheckpointError unless a folder can be made at ``path``; see :func:`new_folder`."""
    target = Path(os.path.abspath(Path(path).expanduser()))
    if not os.path.lexists(target):
        parent = next(above for above in target.parents if os.path.lexists(above))
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            why = "is no folder" if not parent.is_dir() else "cannot be written to"
            what = f"nothing was written: {parent} {why}"
            raise CheckpointError(message(what, where=str(target), todo="name another folder"))
        return
    if target.is_dir() and not target.is_symlink():
        if not any(target.iterdir()):
            return
        if overwrite and (target / PLAN_FILE).is_file():
            return
        if overwrite:
            what = f"the output folder exists and is none that shearfx wrote (it has no {PLAN_FILE})"
            todo = "name a new folder, or remove it yourself"
        else:
            what, todo = "the output folder exists", "name a new folder, or pass overwrite=True (--overwrite)"
    else:
        what, todo = "the output folder's name is taken by a file or link", "name a new folder"
    raise CheckpointError(message(f"nothing was written: {what}", where=str(target), todo=todo))


def _put(temporary: Path, target: Path) -> None:
    """Rename, an older folder first out of the way and, should that fail, back."""
    older = temporary.with_name(f"{temporary.name}{ASIDE}")
    replacing = target.is_dir() and any(target.iterdir())
    if replacing:
        target.rename(older)
    try:
        temporary.rename(target)
    except OSError:
        if replacing:
            older.rename(target)
        raise
    _sync_one(target.parent)
    if replacing:
        shutil.rmtree(older, ignore_errors=True)


def _sync(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            _sync_one(Path(root) / name)
        _sync_one(Path(root))


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    # The only way to read it is to set it.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _not_written(target: Path, error: OSError) -> CheckpointError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what, todo = "the disk is full; nothing was left behind", "free some space, or name a folder on another disk"
    else:
        reason = error.strerror or str(error)
        what, todo = f"it cannot be written ({reason}); nothing was left behind", "check the path and its permissions"
    return CheckpointError(message(what, where=str(target), todo=todo))
