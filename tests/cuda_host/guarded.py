"""Tensors between walls of NaN: a kernel that reads beyond one computes NaN, one that writes beyond it is seen."""

from __future__ import annotations

import torch
from torch import Tensor

WALL = 48


class Guarded:
    """A tensor in a larger room.

    Args:
        value: what it holds, ``[n]`` or ``[n, m]``.
        gap: numbers between the end of a row and the start of the next.
        shift: numbers that it begins after a multiple of 16 bytes.
        device: where the room is.
        turned: whether columns lie beside each other instead of rows.
    """

    def __init__(
        self, value: Tensor, *, gap: int = 0, shift: int = 0, turned: bool = False, device: str = "cpu"
    ) -> None:
        stored = value.T if turned else value
        rows, width = (stored.shape[0], stored.shape[1]) if stored.dim() == 2 else (1, len(stored))
        start = WALL + shift
        self.room = torch.full((start + rows * (width + gap) + WALL,), float("nan"), dtype=value.dtype, device=device)
        assert self.room.data_ptr() % 16 == 0
        shape, stride = ((rows, width), (width + gap, 1)) if stored.dim() == 2 else ((width,), (1,))
        view = self.room.as_strided(shape, stride, start)
        view.copy_(stored)
        self.tensor = view.T if turned else view
        self._before = self.room.clone()

    def untouched_beside(self, allowed: Tensor | None = None) -> bool:
        """Whether nothing changed but where ``allowed`` (bool, shaped like the tensor) says."""
        after = self.room.clone()
        inside = after.as_strided(self.tensor.shape, self.tensor.stride(), self.tensor.storage_offset())
        was = self._before.as_strided(self.tensor.shape, self.tensor.stride(), self.tensor.storage_offset())
        if allowed is not None:
            inside[allowed] = was[allowed]
        kind = torch.int32 if after.element_size() == 4 else torch.int16
        return torch.equal(after.view(kind), self._before.view(kind))
