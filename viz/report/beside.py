"""The page on a run in the run's own folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shearfx.atomic import replace_file
from shearfx.viz.report.page import REPORT, report


def report_beside(run: Path, warn: Callable[[str], None]) -> Path | None:
    """Write the page on a run into its folder; where that fails, say so and go on: the run itself is done.

    Args:
        run: its folder.
        warn: told why there is no page.
    """
    target = run / REPORT
    try:
        replace_file(target, report([run]).encode(errors="replace"))
    except Exception as error:  # whatever it is, hours of work are done and must not end in an error
        reason = " ".join(str(error).split()) or type(error).__name__
        warn(f"warning: no report was written: {reason}")
        return None
    return target
