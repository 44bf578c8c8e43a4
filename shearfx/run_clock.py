"""How long a run has been at work, over all processes that went on with it."""

from __future__ import annotations

import json
import math
from pathlib import Path

BEGIN = "begin"
"""The event that every process of a run begins with."""


def seconds_at_work(metrics: Path) -> float:
    """Seconds between each beginning and the last line before the next, from the times that ``metrics.jsonl`` states.

    What a process did after its last line is lost with it and does not count; nor do lines that a kill cut in two.
    """
    if not metrics.is_file():
        return 0.0
    total, begun, last = 0.0, math.nan, math.nan
    for line in metrics.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
            now, kind = float(event["time"]), event["event"]
        except (ValueError, TypeError, KeyError):
            continue
        if kind == BEGIN:
            total += _between(begun, last)
            begun = now
        last = now
    return total + _between(begun, last)


def _between(begun: float, last: float) -> float:
    """0 before there is a beginning, and where somebody set the clock back."""
    return max(0.0, last - begun) if math.isfinite(last - begun) else 0.0
