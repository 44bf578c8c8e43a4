"""Who is told how a run goes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol


class Progress(Protocol):
    """Told how far a step is."""

    def __call__(self, done: int, total: int, said: str = "", /) -> None:
        """So much of so much is done; ``said`` is worth showing beside it, such as the loss."""


class Teller(Protocol):
    """Who is told how it goes: the command line's ``Talk``, or nobody."""

    def step(self, what: str) -> contextlib.AbstractContextManager[Progress]:
        """A step that takes a while; yields a function of (done, total)."""

    def note(self, text: str) -> None:
        """Something worth a line."""


class Silent:
    """Tells nobody."""

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[Progress]:
        """Nothing is shown."""
        yield lambda done, total, said="": None

    def note(self, text: str) -> None:
        """Nothing is shown."""
