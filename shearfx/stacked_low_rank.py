"""LoRA adapters on a parameter that holds many matrices: the fused experts of a mixture.

PEFT (``target_parameters``) keeps the factors of all experts side by side, and adds the product of each expert's to its
matrix while the module runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shearfx.low_rank import LowRank

STACKED = 3
"""Dims of a parameter that holds a matrix for each expert."""


class _Matrix(nn.Module):
    """Holds one matrix as a layer does."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight


@dataclass(frozen=True, eq=False)
class StackedLowRank(LowRank):
    """One adapter: ``scaling * B_e @ A_e`` is added to matrix ``e`` of a frozen parameter ``[experts, out, in]``.

    ``a`` is ``[experts * rank, in]``, an expert after the other; ``b`` is ``[out, rank * experts]``, a rank after the
    other; ``transposed`` says that each matrix is ``[in, out]``.
    """

    def side(self, dim: int) -> str:
        """Whether a dim of the matrices is ``out`` or ``in``."""
        return super().side(dim - 1)

    def clear(self, dim: int, index: Tensor) -> None:
        """See :class:`LowRank`; of whole matrices, B."""
        if dim:
            super().clear(dim, index)
        else:
            self.b.data.unflatten(1, (-1, len(self.weight))).index_fill_(2, index.to(self.b.device), 0)

    def cut(self, kept: Mapping[int, Tensor]) -> tuple[Tensor, Tensor]:
        """See :class:`LowRank`."""
        a, b = super().cut({dim: index for dim, index in kept.items() if dim})
        if 0 in kept:
            index, count = kept[0].to(a.device), len(self.weight)
            a, b = a.unflatten(0, (count, -1))[index], b.unflatten(1, (-1, count))[..., index]
            a, b = a.flatten(0, 1), b.flatten(1)
        return a, b

    def parts(self, weight: Tensor, a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """See :class:`LowRank`: one for each expert."""
        count = len(weight)
        each = a.detach().unflatten(0, (count, -1)), b.detach().unflatten(1, (-1, count)).permute(2, 0, 1)
        for matrix, left, right in zip(weight, *each, strict=True):
            yield (matrix.T if self.transposed else matrix), left, right

    def joined(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """See :class:`LowRank`."""
        count = len(self.weight)
        a = torch.cat([a.unflatten(0, (count, -1)) for a, _ in pairs], 1).flatten(0, 1)
        return a, torch.cat([b for _, b in pairs], 1)  # ranks come first there

    def squares(self, dim: int) -> Tensor:
        """See :class:`LowRank`."""
        if not dim:
            return torch.stack([one.squares(0).sum() for one in self._experts()])
        return torch.stack([one.squares(dim - 1) for one in self._experts()]).sum(0)

    def inner(self, dim: int, index: Tensor | None = None) -> Tensor:
        """See :class:`LowRank`."""
        if not dim:
            of = torch.stack([one.inner(0).sum() for one in self._experts()])
            return of if index is None else of[index]
        return torch.stack([one.inner(dim - 1, index) for one in self._experts()]).sum(0)

    def product(self, dim: int, index: Tensor) -> Tensor:
        """See :class:`LowRank`: ``[len(index), ...]``, the other dims in the parameter's order."""
        if dim:
            return torch.stack([one.product(dim - 1, index) for one in self._experts()], 1)
        (a, b), count = self.factors(), len(self.weight)
        whole = b.unflatten(1, (-1, count))[..., index].permute(2, 0, 1) @ a.unflatten(0, (count, -1))[index]
        scaled: Tensor = (whole.mT if self.transposed else whole) * self.scaling
        return scaled

    def _experts(self) -> Iterator[LowRank]:
        """The adapter of each matrix."""
        weight = self.weight.detach()
        for matrix, (_, a, b) in zip(weight, self.parts(weight, self.a, self.b), strict=True):
            factors = nn.Parameter(a, False), nn.Parameter(b, False)
            yield LowRank(self.path, _Matrix(matrix), *factors, self.scaling, self.transposed)
