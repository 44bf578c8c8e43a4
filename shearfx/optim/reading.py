"""How long frozen slices are and how what was learnt lies to them: by kernels where there is a card, else by torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from shearfx.cuda import choosing
from shearfx.cuda.statistics import Lines, Statistics
from shearfx.optim.redundant_slices import Slices

Addresses = tuple[tuple[int, ...], ...]


def lines_of(one: Slices) -> Lines:
    """A fading structure's slices as kernels see them."""
    weight = one.parameter.detach()
    return Lines(weight, one.dim, one.index.to(weight.device), one.adapter)


def prepared(slices: Sequence[Slices], kernels: choosing.Kernels, *, steps: bool) -> None:
    """Have ready what reads frozen slices (with ``steps``, what fades them too), while nothing depends on it yet.

    Raises:
        PlanError: ``kernels`` is ``"cuda"``, and they cannot take one of them.
    """
    # whole weights: what is compiled does not depend on which slices, and their indices need no copies
    lines = {i: Lines(o.parameter.detach(), o.dim, None, o.adapter) for i, o in enumerate(slices) if not o.trained}
    choosing.fitting(lines, kernels, steps=steps)


def addresses(slices: Sequence[Slices]) -> Addresses:
    """Where everything lies: tables of a launch are of use as long as that stays."""
    return tuple(
        (one.parameter.data_ptr(), *((one.adapter.a.data_ptr(), one.adapter.b.data_ptr()) if one.adapter else ()))
        for one in slices
    )


class Reader:
    """Reads frozen slices, all of them at once where kernels can.

    Args:
        kernels: see :class:`shearfx.optim.LHSPG`.
    """

    def __init__(self, kernels: choosing.Kernels) -> None:
        self.kernels: choosing.Kernels = kernels
        self._for: tuple[tuple[Slices, ...], Addresses] | None = None
        """The slices themselves (they are equal by identity), as an id alone may be another's once they are gone."""
        self._plans: list[tuple[Statistics, list[int]]] = []

    def squares(self, slices: Sequence[Slices]) -> list[Tensor]:
        """``||x||^2``, ``[n]`` on the CPU for each."""
        return self._read(slices, "squares")

    def learnt(self, slices: Sequence[Slices]) -> list[Tensor]:
        """``<x, d>``, ``[n]`` on the CPU for each: zero where there is no adapter."""
        return self._read(slices, "learnt")

    def _read(self, slices: Sequence[Slices], what: Literal["squares", "learnt"]) -> list[Tensor]:
        found: list[Tensor | None] = [None] * len(slices)
        for statistics, numbers in self._planned(slices):
            sums = statistics.run()[0 if what == "squares" else 1].cpu()
            for number, part in zip(numbers, sums.split([one.count for one in statistics.lines]), strict=True):
                found[number] = part
        return [
            got if got is not None else (one.sums()[0] if what == "squares" else one.learnt())
            for one, got in zip(slices, found, strict=True)
        ]

    def _planned(self, slices: Sequence[Slices]) -> list[tuple[Statistics, list[int]]]:
        key = (tuple(slices), addresses(slices))
        if key != self._for:
            lines = {i: lines_of(one) for i, one in enumerate(slices) if not one.trained}
            self._plans = [
                (Statistics(where, [lines[i] for i in numbers], delta=False), numbers)
                for where, numbers in choosing.fitting(lines, self.kernels).items()
            ]
            self._for = key
        return self._plans


def stacked(parts: Sequence[Tensor], device: torch.device) -> Tensor:
    """Vectors one after the other, float32 on the device."""
    return torch.cat([part.float() for part in parts]).to(device) if parts else torch.zeros(0, device=device)
