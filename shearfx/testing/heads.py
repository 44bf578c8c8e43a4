"""Attention blocks, in the many ways that people write them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from shearfx.testing.spec import Apply, Block, Shape, parameter


@dataclass(frozen=True)
class Attention(Block):
    """Self-attention over tokens, ``kv * group`` query heads to ``kv`` key heads."""

    kv: int = 2
    group: int = 1
    dim: int = 2
    """Of a query and a key; even if there is a rotary embedding."""
    value: int = 2
    fused: str = "separate"
    """``separate``, ``concat`` (rows of q, k, v in turn) or ``grouped`` (q, k, v of each key head in turn)."""
    how: str = "matmul"
    """``matmul``, ``einsum``, ``sdpa`` (scale by default), ``scaled`` (sdpa with a scale), ``linear`` (no softmax)."""
    repeat: str = "expand"
    """How key heads meet their queries: ``expand``, ``interleave``, ``gqa`` (of sdpa), ``view`` (queries by group)."""
    rotary: str = ""
    """``half`` (rotate_half), ``pairs`` (interleaved) or none."""
    norm: bool = False
    """A norm of query and key over the head dim."""
    causal: bool = False
    bias: bool = True

    def _build(self, shape: Shape) -> tuple[nn.Module, Shape]:
        heads = self.kv * self.group
        rows = (heads * self.dim, self.kv * self.dim, self.kv * self.value)
        parts: dict[str, Any] = {}
        if self.fused == "separate":
            for name, size in zip("qkv", rows, strict=True):
                parts[name] = nn.Linear(shape.width, size, bias=self.bias)
        else:
            parts["qkv"] = nn.Linear(shape.width, sum(rows), bias=self.bias)
        if self.norm:
            parts["q_norm"], parts["k_norm"] = nn.RMSNorm(self.dim, eps=0.01), nn.LayerNorm(self.dim)
        parts["out"] = nn.Linear(heads * self.value, shape.width, bias=self.bias)
        return Apply(self._forward, **parts), shape

    def _forward(self, m: Any, x: torch.Tensor) -> torch.Tensor:
        batch, time = x.shape[:2]
        q, k, v = (t.transpose(1, 2) for t in self._project(m, x, batch, time))
        if self.norm:
            q, k = m.q_norm(q), m.k_norm(k)
        if self.rotary:
            q, k = _rotate(q, self.rotary), _rotate(k, self.rotary)
        y = self._attend(q, k, v, batch, time)
        out: torch.Tensor = m.out(y.transpose(1, 2).reshape(batch, time, -1))
        return out

    def _project(self, m: Any, x: torch.Tensor, batch: int, time: int) -> tuple[torch.Tensor, ...]:
        """Query, key and value ``[b, t, heads, dim]``."""
        kv, group, dim, value = self.kv, self.group, self.dim, self.value
        if self.fused == "separate":
            q, k, v = m.q(x), m.k(x), m.v(x)
        elif self.fused == "concat":
            q, k, v = m.qkv(x).split([kv * group * dim, kv * dim, kv * value], -1)
        else:
            rows = m.qkv(x).view(batch, time, kv, group * dim + dim + value)
            q, k, v = rows.split([group * dim, dim, value], -1)
            return q.reshape(batch, time, kv * group, dim), k, v
        return q.view(batch, time, -1, dim), k.view(batch, time, kv, dim), v.view(batch, time, kv, value)

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, batch: int, time: int) -> torch.Tensor:
        kv, group = self.kv, self.group
        sdpa = self.how in ("sdpa", "scaled")
        if group > 1 and not (sdpa and self.repeat == "gqa"):
            if self.repeat == "view":
                q = q.reshape(batch, kv, group, time, -1)
                k, v = k.unsqueeze(2), v.unsqueeze(2)
            elif self.repeat == "interleave":
                k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
            else:
                k, v = (t[:, :, None].expand(batch, kv, group, time, t.shape[-1]) for t in (k, v))
                k, v = (t.reshape(batch, kv * group, time, t.shape[-1]) for t in (k, v))
        scale = 1 / math.sqrt(self.dim)
        if sdpa:
            given: dict[str, Any] = {"scale": 0.9} if self.how == "scaled" else {}
            grouped: dict[str, Any] = {"enable_gqa": True} if self.repeat == "gqa" and group > 1 else {}
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, **given, **grouped)
        elif self.how == "linear":
            q, k = F.elu(q) + 1, F.elu(k) + 1
            y = (q @ (k.transpose(-1, -2) @ v)) / (q @ k.sum(-2, keepdim=True).transpose(-1, -2))
        else:
            einsum = self.how == "einsum"
            scores = (torch.einsum("...qd,...kd->...qk", q, k) if einsum else q @ k.transpose(-1, -2)) * scale
            if self.causal:
                future = torch.ones(time, time, dtype=torch.bool, device=q.device).triu(1)
                scores = scores.masked_fill(future, float("-inf"))
            weights = scores.softmax(-1)
            y = torch.einsum("...qk,...kd->...qd", weights, v) if einsum else weights @ v
        return y.reshape(batch, kv * group, time, -1)


def _rotate(x: torch.Tensor, how: str) -> torch.Tensor:
    """Rotary position embedding of ``[b, heads, t, dim]``."""
    time, dim = x.shape[-2:]
    frequency = 1.0 / (10.0 ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim))
    angle = torch.arange(time, dtype=torch.float64)[:, None] * frequency[None]
    if how == "half":
        both = torch.cat((angle, angle), -1)
        turned = torch.cat((-x[..., dim // 2 :], x[..., : dim // 2]), -1)
    else:
        both = angle.repeat_interleave(2, -1)
        turned = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    return x * both.cos() + turned * both.sin()


@dataclass(frozen=True)
class Position(Block):
    """A table added to the tokens: learned, or a bias of ``[heads, t, t]``-like shape, one number for each feature."""

    learned: bool = True

    def _build(self, shape: Shape) -> tuple[nn.Module, Shape]:
        table = parameter(16, shape.width) if self.learned else torch.linspace(0.1, 1.0, 16 * shape.width).view(16, -1)
        return Apply(lambda m, x: x + m.table[: x.shape[1]], table=table), shape


@dataclass(frozen=True)
class PerHead(Block):
    """Features as ``[heads, dim]``, treated head by head, and back."""

    heads: int
    dim: int
    how: str = "linear"
    """``linear`` (over dim), ``mix`` (over heads), ``scale`` (one number a head), ``norm`` (over dim), ``swap``."""

    def _build(self, shape: Shape) -> tuple[nn.Module, Shape]:
        parts: dict[str, Any] = {"up": nn.Linear(shape.width, self.heads * self.dim)}
        if self.how == "linear":
            parts["inner"] = nn.Linear(self.dim, self.dim)
        elif self.how == "mix":
            parts["inner"] = nn.Linear(self.heads, self.heads)
        elif self.how == "scale":
            parts["scale"] = parameter(self.heads, 1)
        elif self.how == "norm":
            parts["inner"] = nn.RMSNorm(self.dim)

        def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
            y = m.up(x)
            y = y.view(*y.shape[:-1], self.heads, self.dim)
            if self.how in ("linear", "norm"):
                y = m.inner(y)
            elif self.how == "mix":
                y = m.inner(y.transpose(-1, -2)).transpose(-1, -2)
            elif self.how == "scale":
                y = y * m.scale
            else:
                y = y.transpose(-1, -2)
            result: torch.Tensor = y.flatten(-2)
            return result

        return Apply(forward, **parts), shape.wide(self.heads * self.dim)
