"""Memory that runs out becomes one error that says where, and what to lower."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

import torch

from shearfx.config import ShearConfig
from shearfx.errors import TrainingError, message

_SAYS = re.compile(r"out of memory|not enough memory|can't allocate memory|cannot allocate memory", re.IGNORECASE)


@contextlib.contextmanager
def memory_guard(stage: str, config: ShearConfig, kept: Callable[[], bool] = bool) -> Iterator[None]:
    """Turn errors of allocators, on a GPU or a CPU, into one TrainingError.

    Args:
        stage: what is going on, for the message.
        config: says what can be lowered.
        kept: whether anything was done that a resumed run goes on from, asked when memory ran out.

    Raises:
        TrainingError: the block ran out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError) and not ran_out(error):
            raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        begun = kept()
        more = "; what is done is kept, and --resume goes on with it" if begun else ""
        what = f"out of memory while {stage}{more}"
        raise TrainingError(message(what, where=first, todo=f"lower {what_to_lower(config, begun)}")) from error


def ran_out(error: RuntimeError) -> bool:
    """Whether an error of torch says that memory ran out: the CPU's allocator has no error of its own."""
    return bool(_SAYS.search(str(error)))


def what_to_lower(config: ShearConfig, begun: bool = False) -> str:
    """Which options take memory, and their values; what is at its least is left out.

    Args:
        config: with the values.
        begun: whether a run is to go on: not all of them may change then.
    """
    found, windows = [], config.batch_size * config.accumulate
    if config.batch_size > 1:
        found.append(f"batch_size (now {config.batch_size}; raise accumulate, so that a step keeps {windows} windows)")
    if config.distill > 0:
        found.append("distill to 0 (the full model is let go of after the cut)")
    if not config.gradient_checkpointing:
        found.append("what activations take, by gradient_checkpointing: true")
    anew = [f"sequence_length (now {config.sequence_length})"]
    if config.rank > 1:
        anew.append(f"rank (now {config.rank})")
    if not begun:
        return _either(found + anew)
    return f"{_either(found)}; or, in a new run, {_either(anew)}" if found else f"{_either(anew)} in a new run"


def _either(found: list[str]) -> str:
    return ", ".join(found[:-1]) + " or " + found[-1] if len(found) > 1 else found[0]
