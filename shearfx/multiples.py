"""Sizes that processors are fast on."""

from __future__ import annotations

import math


def aligned(width: int, structure: int = 1) -> int:
    """The multiple that suits a dim: the largest power of two, 64 at most, that can be kept in steps of a 32nd of the
    dim, or of one structure where that is more.

    Kernels work in blocks of whole powers of two, and what an odd width saves they give back; coarser steps than
    these would cost choice. On a CPU multiples of 32 of 1,536 gave the speed at no loss
    (``benchmarks/results/aligned.md``); matrix units of NVIDIA cards want multiples of 64 elements of two bytes (their
    guide to matrix multiplication).

    >>> aligned(1536), aligned(3200, 100), aligned(2560, 80), aligned(4096, 128)
    (32, 4, 16, 64)

    Args:
        width: of the dim.
        structure: what one structure takes of it.
    """
    found = 64
    while found > 1 and math.lcm(found, structure) > max(width // 32, structure):
        found //= 2
    return found
