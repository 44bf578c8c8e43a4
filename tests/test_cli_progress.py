"""What a long step says meanwhile: how far it is, how long it will take, what is seen."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from shearfx.cli import console
from shearfx.errors import ShearError


def said_by(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Lines on stderr since the last look, with whatever stands for a time left open; a log has no other ends."""
    text = capsys.readouterr().err
    assert "\r" not in text
    assert "\x1b" not in text
    return [re.sub(r"[\d.]+ s$", "T s", line) for line in text.splitlines()]


def test_a_log_says_when_a_step_begins_and_when_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    talk = console.Talk(as_json=False)
    with talk.step("counting") as progress:
        assert said_by(capsys) == ["counting ..."]  # at once, not with the end
        progress(1, 2)
        progress(2, 2)
        assert said_by(capsys) == []
    assert said_by(capsys) == ["counting: T s"]


@pytest.mark.parametrize("known", [False, True], ids=["of unknown length", "counted"])
def test_a_long_step_goes_on_saying_so_in_a_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    monkeypatch.setattr(console, "HEARTBEAT", 0.05)
    monkeypatch.setattr(console, "RAREST", 0.1)
    with console.Talk(as_json=False).step("counting") as progress:
        if known:
            progress(1, 2)
        time.sleep(1.0)  # one call that comes back late, as tracing is
    first, *beats, last = said_by(capsys)
    assert (first, last) == ("counting ...", "counting: T s")
    assert 2 <= len(beats) <= 11
    assert set(beats) == {"counting: 1 of 2 after T s" if known else "counting: still going after T s"}
    time.sleep(0.2)
    assert said_by(capsys) == []


def test_a_step_that_fails_ends_with_the_error_and_nothing_after_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "HEARTBEAT", 0.05)
    with pytest.raises(ShearError), console.Talk(as_json=False).step("counting"):
        raise ShearError("no")
    time.sleep(0.2)
    assert said_by(capsys) == ["counting ..."]


def test_colours_forced_upon_a_log_bring_no_moving_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with console.Talk(as_json=False).step("counting"):
        pass
    assert said_by(capsys) == ["counting ...", "counting: T s"]


def test_a_long_step_says_in_a_log_how_long_it_will_take_and_what_is_seen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "HEARTBEAT", 0.05)
    monkeypatch.setattr(console, "RAREST", 0.1)
    with console.Talk(as_json=False).step("pruning") as progress:
        progress(5, 8, "period 1 of 2, loss 3")  # of a run that was resumed: speed counts from here
        time.sleep(0.3)
        progress(6, 8, "period 2 of 2, loss 2")
        time.sleep(0.4)
    beats = [re.sub(r"\d+ s\b", "T s", line) for line in said_by(capsys)[1:-1]]
    assert "pruning: 5 of 8 after T s: period 1 of 2, loss 3" in beats
    assert beats[-1] == "pruning: 6 of 8 after T s, about T s left: period 2 of 2, loss 2"


def test_on_a_terminal_what_is_seen_stands_under_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    talk = console.Talk(as_json=False)
    talk.err = Console(file=screen, force_terminal=True, width=80)
    with talk.step("progressive pruning (Algorithm 4)") as progress:
        progress(3, 8, "period 1 of 2, loss 3.141, 1,204 structures gone, 81 fading")
        time.sleep(0.3)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).replace("\r", "\n").splitlines()
    assert any("period 1 of 2, loss 3.141, 1,204 structures" in line for line in lines), lines
    assert any("3/8" in line for line in lines)
    assert all(len(line) <= 80 for line in lines)
