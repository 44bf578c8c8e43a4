"""A folder appears whole or not at all, and what was there is never harmed."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from shearfx.atomic import PLAN_FILE, new_folder, put_back, replace_file, replace_folder, write_text
from shearfx.errors import CheckpointError, ShearError


def test_it_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "a" / "new"
    with new_folder(target) as folder:
        write_text(folder / "x", "ü\n")
        assert not target.exists()
    assert (target / "x").read_bytes() == "ü\n".encode()
    assert [p.name for p in target.parent.iterdir()] == ["new"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o777 & ~mask


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError(), ShearError("no")])
def test_nothing_is_left_of_a_failure(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), new_folder(tmp_path / "new") as folder:
        write_text(folder / "x", "half")
        raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "what"), [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "cannot be written")])
def test_a_full_disk_says_so(tmp_path: Path, number: int, what: str) -> None:
    with pytest.raises(CheckpointError, match=what) as caught, new_folder(tmp_path / "new") as folder:
        write_text(folder / "x", "half")
        raise OSError(number, os.strerror(number))
    assert str(tmp_path / "new") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_when_files_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="the disk is full"), new_folder(tmp_path / "new") as folder:
        write_text(folder / "x", "half")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_whole_or_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a" / "plan.json"
    replace_file(target, "ü\n")
    assert target.read_bytes() == "ü\n".encode()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="the disk is full") as caught:
        patch.setattr(os, "fsync", full)
        replace_file(target, b"other")
    assert str(target) in str(caught.value)
    assert {p.name: p.read_bytes() for p in target.parent.iterdir()} == {"plan.json": "ü\n".encode()}
    replace_file(target, b"other")
    assert target.read_bytes() == b"other"


def test_what_exists_is_kept(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(theirs)
    for name, overwrite in (("theirs", False), ("theirs", True), ("file", True), ("link", True)):
        with (
            pytest.raises(CheckpointError, match="nothing was written"),
            new_folder(tmp_path / name, overwrite=overwrite),
        ):
            pytest.fail("it began to write")
    assert (theirs / "thesis.tex").read_text() == "years of work"


def test_an_empty_folder_may_be_there(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    with new_folder(tmp_path / "new") as folder:
        write_text(folder / "x", "x")
    assert (tmp_path / "new" / "x").exists()


def test_overwriting_replaces_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "new"
    for text in ("one", "two"):
        with new_folder(target, overwrite=True) as folder:
            write_text(folder / PLAN_FILE, text)
            write_text(folder / text, "")
            assert text == "one" or (target / "one").exists()
    assert sorted(p.name for p in target.iterdir()) == sorted([PLAN_FILE, "two"])
    with pytest.raises(ValueError, match="late"), new_folder(target, overwrite=True):
        raise ValueError("late")
    assert (target / PLAN_FILE).read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


def test_a_failed_rename_brings_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "new"
    with new_folder(target) as folder:
        write_text(folder / PLAN_FILE, "old")
    rename = Path.rename

    def failing(self: Path, to: Path) -> Path:
        if to == target and not self.name.endswith(".older"):
            raise OSError(errno.EIO, "broken")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(CheckpointError, match="broken"), new_folder(target, overwrite=True) as folder:
        write_text(folder / PLAN_FILE, "new")
    assert (target / PLAN_FILE).read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


def test_a_kill_between_the_renames_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "state"
    assert not put_back(place)
    with replace_folder(place) as folder:
        write_text(folder / "a.txt", "first")
    rename, renames = Path.rename, []

    def killed(self: Path, target: Path) -> Path:
        renames.append(target)
        if len(renames) == 2:
            raise SystemExit  # nothing that is caught on the way: as if it had been killed
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(SystemExit), replace_folder(place) as folder:
        write_text(folder / "a.txt", "second")
    monkeypatch.undo()
    assert not place.exists()
    assert put_back(place)
    assert (place / "a.txt").read_text() == "first"
    assert put_back(place)
    assert [one.name for one in tmp_path.iterdir()] == ["state"]
