"""The loss's derivative by every gate, collected from backward passes that happen anyway."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from shearfx.gating.sites import GateSite

Along: TypeAlias = Sequence[tuple[Sequence[tuple[str, Tensor]], Tensor]]
"""Groups that are gated at one place, and what goes with one of their structures, shaped like the activation there."""

KEPT = 64
"""Forward passes that a backward pass may still come for."""


class Collector:
    """Sums the derivative of the loss by every gate, sequence by sequence, out of whatever backward passes come by.

    ``square`` sums the squares of each sequence's derivative (the Fisher information along the structure),
    ``absolute`` the absolute values of each batch's (first-order Taylor).

    Args:
        sizes: the groups to collect, with their numbers of structures.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = dict(sizes)
        self.square = {name: torch.zeros(size, dtype=torch.float64) for name, size in sizes.items()}
        self.absolute = {name: torch.zeros(size, dtype=torch.float64) for name, size in sizes.items()}
        self.sequences = 0
        self.number = 0
        """Of the forward pass that began last; its gates hand it back with their derivatives."""
        self._passes: dict[int, tuple[int, frozenset[int]]] = {}
        self._pending: dict[int, dict[str, Tensor]] = {}
        self._where: dict[tuple[str, int, torch.device], Tensor] = {}

    def begin(self, batch: int, tokens: Iterable[int] = ()) -> None:
        """A forward pass over so many sequences begins.

        Args:
            batch: sequences (0 where that is not known).
            tokens: how many rows an activation has that holds all tokens of all sequences one after the other, where
                that is known. Activations of other lengths hold some tokens only (routed experts).
        """
        self.flush()
        self.number += 1
        self._passes = {n: known for n, known in self._passes.items() if n > self.number - KEPT}
        self._passes[self.number] = (batch, frozenset(tokens))

    def along(self, site: GateSite, x: Tensor) -> Along:
        """The directions that derivatives are taken in where an activation is gated: along itself."""
        return [(site.where, x)]

    def add(
        self, where_of: Sequence[tuple[str, Tensor]], axis: int, product: Tensor, number: int | None = None
    ) -> None:
        """Take in activation times gradient.

        Args:
            where_of: for each group that is gated here, LongTensor ``[size]``: the structure of each index, or -1.
            axis: of the activation that is gated, counted from the end.
            product: shaped like the activation, sequences along dim 0.
            number: of the forward pass that it belongs to (default: the last one).
        """
        number = self.number if number is None else number
        axis %= product.dim()
        size = product.shape[axis]
        batch = product.shape[0] if product.dim() > 1 and axis > 0 else 1
        known, tokens = self._passes.get(number, (0, frozenset()))
        if known and batch != known:
            # tokens of all sequences in one row after the other, or some of them only (routed experts)
            rows = product.movedim(axis, -1).reshape(-1, size)
            whole = len(rows) in tokens if tokens else len(rows) % known == 0
            product = rows.reshape(known, -1, size) if whole else rows[None]
            axis = 2
        others = [i for i in range(1, product.dim()) if i != axis]
        precision = torch.float64 if product.dtype == torch.float64 else torch.float32
        sums = product.sum(others, dtype=precision) if others else product.to(precision)
        if sums.dim() == 1:
            sums = sums[None]
        pending = self._pending.setdefault(number, {})
        for group, where in where_of:
            if group not in self.square:
                continue
            size = self.sizes[group]
            key = (group, id(where), sums.device)
            if key not in self._where:
                self._where[key] = torch.where(where >= 0, where, size).to(sums.device)
            rows = sums.new_zeros(len(sums), size + 1).index_add_(1, self._where[key], sums)[:, :size]
            _add_to(pending, group, rows)

    def add_whole(self, group: str, where: Tensor, along: Tensor, number: int | None = None) -> None:
        """Take in derivatives whose sequences cannot be told apart.

        Args:
            group: gated somewhere.
            where: LongTensor ``[size]``, the structure of each index, or -1.
            along: ``[size]``, one for each index.
            number: of the forward pass that they belong to (default: the last one).
        """
        if group not in self.square:
            return
        size = self.sizes[group]
        index = torch.where(where >= 0, where, size).to(along.device)
        row = along.new_zeros(size + 1).index_add_(0, index, along)[None, :size]
        _add_to(self._pending.setdefault(self.number if number is None else number, {}), group, row)

    def flush(self) -> None:
        """Square what the last backward passes brought. A pass whose loss overflowed counts for nothing."""
        for number, of in self._pending.items():
            if not all(bool(rows.isfinite().all()) for rows in of.values()):
                continue
            for group, rows in of.items():
                self.square[group] += rows.square().sum(0).cpu().double()
                self.absolute[group] += rows.sum(0).abs().cpu().double()
            known, _ = self._passes.get(number, (0, None))  # rows are fewer where sequences cannot be told apart
            self.sequences += max(known, *(len(rows) for rows in of.values()))
        self._pending = {}

    def sums(self) -> Tensor:
        """All sums in one float64 vector on the CPU, the number of sequences last."""
        count = torch.tensor([self.sequences], dtype=torch.float64)
        return torch.cat([*self.square.values(), *self.absolute.values(), count])

    def add_sums(self, more: Tensor) -> None:
        """Add what :meth:`sums` of another collector of the same groups returned."""
        start = 0
        for mine in (*self.square.values(), *self.absolute.values()):
            mine += more[start : start + len(mine)]
            start += len(mine)
        self.sequences += round(float(more[start]))

    def reset(self) -> None:
        """Start counting again."""
        self._pending = {}
        self.sequences = 0
        for sums in (self.square, self.absolute):
            for value in sums.values():
                value.zero_()

    def state_dict(self) -> dict[str, Any]:
        """What was collected since the last reset."""
        self.flush()
        return {
            "square": {name: value.clone() for name, value in self.square.items()},
            "absolute": {name: value.clone() for name, value in self.absolute.items()},
            "sequences": self.sequences,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what was collected."""
        self.reset()
        self.sequences = int(state["sequences"])
        for mine, theirs in ((self.square, state["square"]), (self.absolute, state["absolute"])):
            for name, value in theirs.items():
                mine[name].copy_(value)


def _add_to(pending: dict[str, Tensor], group: str, rows: Tensor) -> None:
    """Add a derivative for each sequence, or one for all, ``[sequences, structures]``."""
    old = pending.get(group)
    if old is None:
        pending[group] = rows
    elif old.shape == rows.shape:
        pending[group] = old + rows
    else:
        pending[group] = old.sum(0, keepdim=True) + rows.sum(0, keepdim=True)
