"""Tables of tensors for one launch: the fields of ``kernels/tables.cuh``, eight bytes each, in the same order."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""What kernels can read, by the number that they know it by."""


@dataclass
class Matrix:
    """Some lines of a stored matrix and the two thin factors whose product lies along it; see ``tables.cuh``.

    Element (line, along) is ``weight[line * line_stride + along * along_stride]`` and has the displacement
    ``scaling * sum_k lead[line * lead_line + k * lead_rank] * other[k * other_rank + along * other_along]``.
    """

    weight: int
    kind: int
    lines: int
    along: int
    line_stride: int
    along_stride: int
    index: int = 0
    lead: int = 0
    lead_kind: int = 0
    lead_line: int = 0
    lead_rank: int = 0
    other: int = 0
    other_kind: int = 0
    other_rank: int = 0
    other_along: int = 0
    rank: int = 0
    scaling: float = 1.0
    line_at: int = 0
    partial_at: int = 0
    parts: int = 2
    gram_at: int = -1
    strips: int = 0
    chunks: int = 0
    gram_chunks: int = 0
    slot_at: int = 0


def packed(rows: Iterable[object], device: torch.device) -> Tensor:
    """Dataclasses of whole numbers and floats as the bytes that kernels read, uint8 on the device."""
    data = bytearray()
    for row in rows:
        fields = astuple(row)  # type: ignore[call-overload]
        data += struct.pack("<" + "".join("d" if isinstance(f, float) else "q" for f in fields), *fields)
    return to_device(torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8), device)


def numbers(values: Sequence[int], device: torch.device) -> Tensor:
    """Whole numbers, int64 on the device."""
    return to_device(torch.tensor(values, dtype=torch.int64), device)


def first_blocks(blocks: Sequence[int], device: torch.device) -> Tensor:
    """The first block of each job, and the number of all: int64 ``[jobs + 1]``."""
    found = [0]
    for count in blocks:
        found.append(found[-1] + count)
    return numbers(found, device)


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """A copy on the device that waits for nothing, also while a graph is captured."""
    if device.type != "cuda":
        return host.to(device)
    pinned = host.pin_memory()
    found = pinned.to(device, non_blocking=True)
    found.pinned = pinned  # type: ignore[attr-defined]  # a captured copy reads it again when the graph runs
    return found
