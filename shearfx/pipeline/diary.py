"""What happens while structures fade, step by step: lines for the run's folder, and a few words for the terminal."""

from __future__ import annotations

from typing import Any

from shearfx.optim import LHSPG
from shearfx.run_directory import RunDirectory


class Diary:
    """Writes down a run of LHSPG.

    Args:
        optimizer: whose run it is; with periods behind it where the run was resumed. These are written again: a run
            that is killed between a checkpoint and its end would miss some otherwise.
        folder: of the run; gets a line ``schedule``, one ``period`` for each period, and one ``prune`` for each step.
    """

    def __init__(self, optimizer: LHSPG, folder: RunDirectory) -> None:
        self.optimizer, self.folder = optimizer, folder
        self._periods = 0
        self._zero = self._fading = 0
        folder.log("schedule", **vars(optimizer.schedule), structures=sum(g.size for g in optimizer.chooser.groups))

    def step(self, metrics: dict[str, Any]) -> None:
        """A step is over: its metrics, and how many structures are zero and how many fade."""
        self.periods()
        fading, zeros = self.optimizer.fading, self.optimizer.zeros
        self._zero = sum(map(len, zeros.values()))
        self._fading = sum(len(set(gone.tolist()) - set(zeros.get(name, ()))) for name, gone in fading.items())
        self.folder.log("prune", **metrics, zero=self._zero, fading=self._fading)

    def periods(self) -> None:
        """Write down what each period picked that is not written down yet."""
        for entry in self.optimizer.history[self._periods :]:
            self.folder.log("period", **entry)
        self._periods = len(self.optimizer.history)

    def line(self, loss: float) -> str:
        """Where it is, in a few words."""
        of = self.optimizer.schedule.periods
        period = f"period {self._periods} of {of}" if self._periods else "warm-up"
        return f"{period}, loss {loss:.3f}, {self._zero:,} structures gone, {self._fading:,} fading"
