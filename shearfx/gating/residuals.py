"""What of an activation the structures that stay cannot take over: the residual of a least-squares fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from shearfx.gating.collector import Along, Collector
from shearfx.gating.sites import GateSite


class ResidualCollector(Collector):
    """Derivatives by gates along what is lost with a structure once the others are refitted.

    Where a linear layer reads ``x``, structure ``b`` is removed and the rest takes over by least squares what it can,
    what goes is not ``x_b`` but ``r_b = x_b - E[x_b | others]``, and ``r_b = (P_bb)^-1 P_b x`` with ``P`` the inverse
    of the second moments.

    Args:
        sizes: the groups to collect, with their numbers of structures.
        projections: of :func:`projections`. Where there is none, derivatives are plain.
    """

    def __init__(self, sizes: Mapping[str, int], projections: Mapping[tuple[str, str], Tensor]) -> None:
        super().__init__(sizes)
        self._projections = projections

    def along(self, site: GateSite, x: Tensor) -> Along:
        """One direction for each group: what is lost depends on how indices go together."""
        if site.side != "in":
            return super().along(site, x)
        found = [(one, self._projections.get((site.path, one[0]))) for one in site.where]
        # What is left is a small difference of large terms, of which bfloat16 would keep little.
        wide = x if x.dtype == torch.float64 else x.float()
        return [((one,), x if matrix is None else wide @ matrix.to(x.device, wide.dtype)) for one, matrix in found]


def projections(sites: Iterable[GateSite], moments: dict[str, Tensor], ridge: float) -> dict[tuple[str, str], Tensor]:
    """By path of the module and group: what turns its input into residuals, float32 ``[inputs, inputs]``.

    Args:
        sites: inputs of modules, whose last axis is gated.
        moments: by path of the module, ``[inputs, inputs]``; used up.
        ridge: share of the mean of the diagonal that is added before a matrix is inverted.
    """
    found: dict[tuple[str, str], Tensor] = {}
    for site in sites:
        if site.path in moments:
            precision = inverse(moments.pop(site.path), ridge)
            found |= {(site.path, group): projection(precision, where) for group, where in site.where}
    return found


def inverse(moments: Tensor, ridge: float) -> Tensor:
    """Of damped second moments, float64 ``[n, n]``."""
    damped = moments.double()
    damped.diagonal().add_(ridge * damped.diagonal().mean().clamp(min=1e-12))
    return torch.cholesky_inverse(torch.linalg.cholesky(damped))


def blocks(where: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Structures and their indices, those with equally many together: LongTensors ``[count]`` and ``[count, many]``.

    Args:
        where: LongTensor ``[n]``, the structure of each index, -1 for none.
    """
    order = where.argsort(stable=True)
    order = order[where[order] >= 0]
    structures, counts = where[order].unique_consecutive(return_counts=True)
    found = order.split(counts.tolist())
    for size in {len(block) for block in found}:
        yield structures[counts == size], torch.stack([block for block in found if len(block) == size])


def within(precision: Tensor, index: Tensor) -> Tensor:
    """The inverse of each structure's part of a matrix, ``[count, many, many]``: what is left of the second moments of
    its indices once the others have said all they can.

    Args:
        precision: ``[n, n]``, the inverse of the second moments.
        index: LongTensor ``[count, many]``.
    """
    found: Tensor = torch.linalg.inv(precision[index[:, :, None], index[:, None, :]])
    return found


def projection(precision: Tensor, where: Tensor) -> Tensor:
    """The matrix that rows ``x`` are multiplied by to become residuals.

    Args:
        precision: float64 ``[n, n]``, the inverse of the second moments.
        where: LongTensor ``[n]``, the structure of each index, -1 for none.

    Returns:
        float32 ``[n, n]``; columns of indices without a structure are zero.
    """
    found = torch.zeros_like(precision)
    for _, index in blocks(where.to(precision.device)):
        inner = within(precision, index)
        columns = precision[:, index].permute(1, 0, 2) @ inner
        found[:, index.flatten()] = columns.permute(1, 0, 2).reshape(len(precision), -1)
    return found.float()
