"""Matrix products of routed experts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from shearfx.routed_products import PRODUCT
from shearfx.rules.registry import Dims, Site, rule
from shearfx.values import multiply


def _samples() -> Iterable[tuple[Any, ...]]:
    rows, experts = torch.randn(7, 4, dtype=torch.float64), torch.randn(3, 4, 5, dtype=torch.float64)
    yield PRODUCT, (rows, experts, torch.tensor([2, 2, 7], dtype=torch.int32)), {}
    yield PRODUCT, (rows, experts.transpose(1, 2).contiguous().transpose(1, 2), torch.tensor([1, 4, 7])), {}


@rule(PRODUCT, samples=_samples)
def routed_product(site: Site) -> Dims:
    """``s i, e i o -> s o``, where ``offs`` says up to which row each expert reads: rows and experts stay."""
    rows, experts, offsets = site.tensors()
    (s, i), (e, k, o), (ends,) = site.dims(rows), site.dims(experts), site.dims(offsets)
    site.equate(e, ends)
    site.pin([s, e], "which expert reads which row depends on where both stand")
    site.equate(i, k)
    site.operands(rows, experts, transfer=multiply)
    site.contracts(i, multiply, carriers=(0, 1))
    site.role("contracted", i)
    for dim in (i, o):
        site.role("routed", dim)
    site.record.carried = [(s, (0,)), (o, (1,))]
    return s, o
