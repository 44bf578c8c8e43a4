"""Scaled-dot-product attention as one operator, with grouped queries and without an explicit scale."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from shearfx.dims import prod
from shearfx.rules.registry import Dims, Site, rule
from shearfx.values import Value, multiply

aten = torch.ops.aten


def _samples() -> Iterable[tuple[Any, ...]]:
    def t(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64)

    target = aten.scaled_dot_product_attention.default
    yield target, (t(2, 3, 5, 4), t(2, 3, 7, 4), t(2, 3, 7, 6)), {"scale": 0.3}
    yield target, (t(2, 3, 5, 4), t(2, 3, 7, 4), t(2, 3, 7, 6)), {}
    yield target, (t(2, 3, 5, 4), t(2, 3, 5, 4), t(2, 3, 5, 6), None, 0.0, True), {}
    yield target, (t(2, 6, 5, 4), t(2, 3, 7, 4), t(2, 3, 7, 4)), {"enable_gqa": True}
    yield target, (t(2, 3, 5, 4), t(2, 3, 7, 4), t(2, 3, 7, 6), t(2, 1, 5, 7)), {}
    yield target, (t(2, 3, 5, 4), t(2, 3, 7, 4), t(2, 3, 7, 6), t(1, 3, 5, 7)), {}


@rule(aten.scaled_dot_product_attention.default, samples=_samples)
def attention(site: Site) -> Dims:
    """``... h q d, ... k t d, ... k t e, [... h q t] -> ... h q e`` with ``h = k`` or, grouped, ``h = k * g``.

    A zeroed index of ``d`` adds nothing to the scores. A zeroed head has uniform weights over zero values.
    """
    q, k, v, mask = (site.dims(name) for name in ("query", "key", "value", "attn_mask"))
    site.equate(q[-1], k[-1])
    site.equate(k[-2], v[-2])
    batch = site.broadcast([q[:-3], k[:-3], v[:-3]])
    heads: Dims = ()
    if len(q) > 2:
        if site.arg("enable_gqa") and q[-3].size != k[-3].size:
            if k[-3].size != v[-3].size:  # each has groups of its own
                site.pin((q[-3], k[-3], v[-3]), "attention with other numbers of key and value heads")
            else:
                site.equate(k[-3], v[-3])
            group = site.fresh(q[-3].size // k[-3].size)
            site.role("repeated", group)
            grouped = prod((k[-3], group))
            site.equate(q[-3], grouped)
            heads = (grouped,)
        else:
            heads = site.broadcast([q[-3:-2], k[-3:-2], v[-3:-2]])
    scores = (*batch, *heads, q[-2], k[-2])
    if mask:
        site.broadcast([scores, mask])
    if site.arg("is_causal"):
        site.pin((q[-2], k[-2]), "causal attention goes by position")
    site.contracts(q[-1], lambda values: multiply(values[:2]), "the scores of attention", carriers=(0, 1))
    site.approximates(k[-2], "the softmax of attention is over it")
    for role, dims in (("heads", heads), ("head_dim", q[-1:]), ("value_dim", v[-1:]), ("softmax", k[-2:-1])):
        for dim in dims:
            site.role(role, dim)
    if site.arg("scale") is None and isinstance(q[-1].size, int):
        site.record.constants.append(("scale", 1 / math.sqrt(q[-1].size)))
    site.operands(site.arg("query"), site.arg("key"), site.arg("value"), transfer=_weighted)
    site.record.carried = [*((dim, (0, 1, 2)) for dim in (*batch, *heads)), (q[-2], (0,)), (v[-1], (2,))]
    return (*batch, *heads, q[-2], v[-1])


def _weighted(values: list[Value]) -> Value:
    if max(values[:2]) > Value.FINITE:
        return Value.UNKNOWN
    return multiply([Value.NONNEGATIVE, values[2]])
