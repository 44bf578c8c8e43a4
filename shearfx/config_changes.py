"""What of a run's configuration may change while it is cut off: what only matters to what is still to come."""

from __future__ import annotations

import dataclasses
from typing import Any

from shearfx.config import ShearConfig
from shearfx.errors import CheckpointError, message

LATER = ("lr", "distill", "batch_size", "accumulate", "gradient_checkpointing", "checkpoint_seconds", "minutes")
"""Options that a run can go on with at another value: what to lower when the loss diverges or memory runs out, and the
wall clock (how many steps it asks for is settled when training begins; later it only says when they have to end)."""


def changes(before: ShearConfig, now: ShearConfig, where: str) -> dict[str, list[Any]]:
    """Options that changed, each with the value before and now.

    Raises:
        CheckpointError: what is done already would have been done otherwise, or a step would be of another size.
    """
    changed = {
        field.name: [getattr(before, field.name), getattr(now, field.name)]
        for field in dataclasses.fields(ShearConfig)
        if getattr(before, field.name) != getattr(now, field.name)
    }
    other = next((name for name in changed if name not in LATER), None)
    if other is not None:
        what = f"the run there was asked for something else: {other}: {changed[other][0]}, not {changed[other][1]}"
        todo = f"only {', '.join(LATER)} may change now; for another {other} name a new folder"
        raise CheckpointError(message(what, where=where, todo=todo))
    windows = before.batch_size * before.accumulate
    if windows != now.batch_size * now.accumulate:
        what = f"a step of the run there takes {windows} windows, batch_size x accumulate, and now "
        what += f"{now.batch_size} x {now.accumulate} are asked for"
        raise CheckpointError(message(what, where=where, todo="change both, so that their product stays"))
    return changed
