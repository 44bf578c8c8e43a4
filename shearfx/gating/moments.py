"""Moments of activations, gathered while a model runs: second moments, or those of every feature by itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from shearfx.gating.sites import GateSite

Key = TypeVar("Key")
Place = TypeVar("Place")

BLOCK = 384
"""Rows of a second moment that are worked out together: 1,536 in four take six tenths of the time of all at once."""


@contextlib.contextmanager
def second_moments(sites: Iterable[GateSite], sums: dict[str, Tensor] | None = None) -> Iterator[dict[str, Tensor]]:
    """For the while, forward passes add ``sum of x x^T`` over all rows of what goes into some modules.

    Args:
        sites: inputs of modules, whose last axis is gated.
        sums: what there is already, added to (default: nothing).

    Yields:
        By path of the module, afterwards: float32 ``[inputs, inputs]``, of what has run.
    """
    sums = {} if sums is None else sums
    with _looking(sites, lambda path, rows: add_squares(sums, path, rows)):
        yield sums
    for found in sums.values():
        mirror(found)


def add_squares(sums: dict[Key, Tensor], key: Key, rows: Tensor) -> None:
    """Add ``sum of x x^T`` of rows ``[count, size]`` to a sum, but for what :func:`mirror` fills in."""
    rows = rows.float()
    if key not in sums:
        sums[key] = torch.zeros(rows.shape[1], rows.shape[1], device=rows.device)
    for start, stop in _blocks(rows.shape[1]):  # what is left of the diagonal: the rest is the same
        sums[key][start:stop, :stop].addmm_(rows[:, start:stop].T, rows[:, :stop])


def mirror(found: Tensor) -> None:
    """Fill in what is right of the diagonal, in place."""
    for start, stop in _blocks(len(found)):
        found[:start, start:stop] = found[start:stop, :start].T


def _blocks(size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + BLOCK, size)) for start in range(0, size, BLOCK))


def parted_by(places: Iterable[Place], squares: Callable[[Place], int], memory: int | None) -> list[list[Place]]:
    """Places in parts whose second moments take no more than so many bytes (but one at least); None for one part.

    Args:
        places: of any kind.
        squares: from each to how many numbers its second moments are.
        memory: bytes.
    """
    found: list[list[Place]] = []
    left = 0.0
    for place in places:
        size = 4 * squares(place)
        if not found or size > left:
            found.append([])
            left = float("inf") if memory is None else memory
        found[-1].append(place)
        left -= size
    return found


@dataclass
class FeatureMoments:
    """Of each feature of what goes into a module, over all rows (tokens, pixels) so far. Tensors are float64 ``[size]``
    on the CPU.
    """

    count: int
    mean: Tensor
    deviations: Tensor
    """Sum of squared differences from the mean."""

    @classmethod
    def empty(cls, size: int) -> FeatureMoments:
        """Of no rows."""
        zero = torch.zeros(size, dtype=torch.float64)
        return cls(0, zero, zero)

    @property
    def squares(self) -> Tensor:
        """Sum of squares."""
        return self.deviations + self.count * self.mean.square()

    @property
    def variance(self) -> Tensor:
        """Unbiased; zero of a single row."""
        return self.deviations / max(self.count - 1, 1)

    def add(self, rows: Tensor) -> None:
        """Take in rows ``[count, size]``, so that how they are cut into batches makes no difference.

        Source: Chan, Golub and LeVeque 1983 (The American Statistician 37), equation 2.1.
        """
        count = len(rows)
        if not count:
            return
        mean = rows.mean(0, dtype=torch.float64)
        deviations = (rows - mean).square().sum(0).cpu()
        both, apart = self.count + count, mean.cpu() - self.mean
        self.deviations = self.deviations + deviations + apart.square() * (self.count * count / both)
        self.mean = self.mean + apart * (count / both)
        self.count = both


@contextlib.contextmanager
def feature_moments(
    sites: Iterable[GateSite], found: dict[str, FeatureMoments] | None = None
) -> Iterator[dict[str, FeatureMoments]]:
    """For the while, forward passes add to the moments of every feature of what goes into some modules.

    Args:
        sites: inputs of modules.
        found: what there is already, added to (default: nothing).

    Yields:
        By path of the module, once it has run.
    """
    found = {} if found is None else found

    def add(path: str, rows: Tensor) -> None:
        found.setdefault(path, FeatureMoments.empty(rows.shape[1])).add(rows)

    with _looking(sites, add):
        yield found


@contextlib.contextmanager
def _looking(sites: Iterable[GateSite], add: Callable[[str, Tensor], None]) -> Iterator[None]:
    """For the while, hand over path and input of some modules, as rows ``[count, features]``."""

    def hook_of(site: GateSite) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = (args[0] if args else next(iter(kwargs.values()))).detach().movedim(site.axis, -1)
            add(site.path, x.reshape(-1, x.shape[-1]))

        return hook

    hooks = [site.module.register_forward_pre_hook(hook_of(site), with_kwargs=True) for site in sites]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
