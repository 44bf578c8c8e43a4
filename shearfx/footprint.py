"""How much memory a run takes: what a device has left, the peak of a stage, and what a computation allocates."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

STATUS, CLEAR, MEMINFO = Path("/proc/self/status"), Path("/proc/self/clear_refs"), Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def reset_peak(device: torch.device) -> None:
    """Begin a new peak. Where the system does not let a process do so, peaks count from its start."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            CLEAR.write_text("5")  # Linux: the peak of the resident set begins anew


def peak(device: torch.device) -> int | None:
    """Bytes at most since the last reset: allocated on a GPU, else resident in the process; None where not known."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        return _kilobytes(STATUS, "VmHWM")
    except (OSError, LookupError):
        return None


def available(device: torch.device) -> int | None:
    """Bytes that can still be allocated; None where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    try:
        left = _kilobytes(MEMINFO, "MemAvailable")
    except (OSError, LookupError):
        return None
    try:  # a container may have less than the machine
        limit, used = (CGROUP / name for name in ("memory.max", "memory.current"))
        left = min(left, int(limit.read_text()) - int(used.read_text()))
    except (OSError, ValueError):  # no such limit, or "max"
        pass
    return left


def _kilobytes(path: Path, name: str) -> int:
    """A line of a file under /proc, in bytes."""
    rows = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return 1024 * int(rows[name].split()[0])


class Allocations(TorchDispatchMode):
    """Counts the bytes of all tensors on a device that operators make while it is on, backward passes included.

    What kernels take for themselves, and give back before they return, is not seen.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device, self.now, self.most = device, 0, 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and look at what it returns."""
        for value in tree_leaves((args, kwargs)):  # what was there before does not count
            if isinstance(value, torch.Tensor) and value.device.type == self.device.type:
                self._seen.add(value.untyped_storage())
        found = func(*args, **(kwargs or {}))
        for value in tree_leaves(found):
            if isinstance(value, torch.Tensor) and value.device.type == self.device.type:
                storage = value.untyped_storage()
                if storage not in self._seen:
                    self._seen.add(storage)
                    self._add(storage.nbytes())
                    weakref.finalize(storage, self._add, -storage.nbytes())
        return found

    def _add(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)


@contextlib.contextmanager
def measured(record: dict[str, int | None], what: str, device: torch.device) -> Iterator[None]:
    """Note the peak of a block by its name."""
    reset_peak(device)
    try:
        yield
    finally:
        record[what] = peak(device)


def bytes_text(size: float) -> str:
    """Bytes for people.

    >>> bytes_text(1536), bytes_text(3.2e9)
    ('2 kB', '3.20 GB')
    """
    for unit, scale, digits in (("GB", 1e9, 2), ("MB", 1e6, 0)):
        if size >= scale:
            return f"{size / scale:.{digits}f} {unit}"
    return f"{size / 1e3:.0f} kB"
