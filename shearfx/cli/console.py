"""What a command says and where: progress and errors on stderr, the result, and nothing else, on stdout."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from shearfx.errors import ShearError

if TYPE_CHECKING:
    from shearfx.pipeline.tellers import Progress as Told

__all__ = ["AsJson", "Debug", "Talk", "talking"]

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else there.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

WORTH_TELLING = 1.0  # seconds: on a terminal, steps that took longer leave a line behind
WIDTH = 140  # columns of output that goes to a file or a pipe
HEARTBEAT = 10.0  # seconds after which a step says in a log that it goes on; then after twice as long each time,
RAREST = 120.0  # but at least this often


class Talk:
    """One command's conversation with the user."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.err = Console(stderr=True, highlight=False)
        self._out = sys.stdout
        self._said = False

    # -- progress, on stderr -------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Say something in passing."""
        self.err.print(text, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[Told]:
        """Show that something is going on until the block ends.

        Yields a function that may be called with (done, total), and with a few words on what is seen meanwhile; until
        it is, only the time is shown.
        """
        # A log that claims to be a terminal (FORCE_COLOR) would fill with the bar's control codes.
        live = self.err.is_interactive and self.err.file.isatty()
        start = time.monotonic()
        with self._live(what) if live else self._plain(what) as update:
            yield update
        seconds = time.monotonic() - start
        if not live or seconds >= WORTH_TELLING:
            self.note(f"{what}: {seconds:.1f} s")

    @contextlib.contextmanager
    def _live(self, what: str) -> Iterator[Told]:
        text = TextColumn("{task.description}", markup=False)
        columns = (SpinnerColumn(), text, BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TimeRemainingColumn(), console=self.err, transient=True) as progress:
            task = progress.add_task(what, total=None)

            def update(done: int, total: int, said: str = "") -> None:
                both = f"{what}\n{said}" if said else what  # under each other: a terminal may have 80 columns
                progress.update(task, completed=done, total=total, description=both)

            yield update

    @contextlib.contextmanager
    def _plain(self, what: str) -> Iterator[Told]:
        """A line now, and from time to time one that says how far it is: a step may be one call that takes minutes."""
        start = time.monotonic()
        over = threading.Event()
        known: tuple[int, int, str] | None = None
        first: tuple[int, float] | None = None

        def update(done: int, total: int, said: str = "") -> None:
            nonlocal known, first
            known, first = (done, total, said), first or (done, time.monotonic())

        def beat() -> None:
            pause = HEARTBEAT
            while not over.wait(pause):
                self.note(f"{what}: {_how_far(known, first, start)}")
                pause = min(2 * pause, RAREST)

        self.note(f"{what} ...")
        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield update
        finally:
            over.set()
            thread.join()  # nothing of a step is said after its end

    # -- the result, on stdout -----------------------------------------------------------------------

    def out(self) -> Console:
        """The console of the result."""
        # a pipe has no width: leave room for names, nobody wraps them there
        return Console(file=self._out, highlight=False, width=None if self._out.isatty() else WIDTH)

    def result(self, data: dict[str, Any], show: Callable[[Console], None]) -> None:
        """Print the result: ``data`` as JSON, or what ``show`` prints."""
        if self.as_json:
            self._write_json(data)
        else:
            show(self.out())

    def error(self, error: ShearError) -> None:
        """Print an error on stderr; as JSON on stdout too, for whoever reads that."""
        first, *rest = str(error).splitlines() or [""]
        self.err.print(f"[bold red]error:[/bold red] {_escaped(first)}", soft_wrap=True)
        for line in rest:
            self.note(line)
        if self.as_json:
            self._write_json({"error": {"kind": type(error).__name__, "message": str(error)}})

    def _write_json(self, data: dict[str, Any]) -> None:
        if not self._said:  # one document: an error after the result only shows in the exit code and on stderr
            self._said = True
            self._out.write(json.dumps(_plain_numbers(data), indent=1, allow_nan=False) + "\n")
            self._out.flush()


@contextlib.contextmanager
def talking(as_json: bool, debug: bool, goes_on: str = "") -> Iterator[Talk]:
    """Run a command's body: what it or a library prints goes to stderr, a ShearError becomes exit code 1.

    Args:
        as_json, debug: as every command takes them.
        goes_on: what goes on with the work when it is interrupted.
    """
    # bars of tqdm would write over ours; it reads this when it is imported, so before anything else
    os.environ.setdefault("TQDM_DISABLE", "1")
    talk = Talk(as_json)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield talk
    except ShearError as error:
        if debug:
            talk.err.print_exception()
        talk.error(error)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        talk.note(f"interrupted; {goes_on} goes on with it" if goes_on else "interrupted")
        raise typer.Exit(130) from None


def _how_far(known: tuple[int, int, str] | None, first: tuple[int, float] | None, start: float) -> str:
    """Done of total, seconds gone and left, and what is seen.

    Args:
        known: done, total and words of the last report.
        first: done and clock of the first one, which may be of a run that was resumed: speed counts from there.
        start: the clock when the step began.
    """
    now = time.monotonic()
    if known is None or first is None:
        return f"still going after {now - start:.0f} s"
    done, total, said = known
    left = ""
    if done > first[0] and total > done:
        left = f", about {(now - first[1]) * (total - done) / (done - first[0]):.0f} s left"
    return f"{done} of {total} after {now - start:.0f} s{left}{': ' * bool(said)}{said}"


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _plain_numbers(value: Any) -> Any:
    """JSON has no infinity: as text."""
    if isinstance(value, dict):
        return {key: _plain_numbers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_numbers(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
