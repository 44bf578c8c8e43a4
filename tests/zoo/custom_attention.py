"""Attention of our own, written in the ways people write it. Hidden 28, heads 3 (or 6 over 3), head dims 8 and 10."""

# Calling a module returns Any, so every forward does.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.custom_mlp import FeedForward
from tests.zoo.handmade import custom, sequences

#: (query, key, value) of shape (batch, heads, length, dim) to (batch, heads, length, value dim).
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Attention(nn.Module):
    """Separate projections around `attend`; key/value heads repeated where there are fewer."""

    def __init__(self, attend: Attend, heads: int = 3, groups: int = 3, dim: int = 8, value: int = 10) -> None:
        super().__init__()
        self.attend, self.heads, self.groups, self.dim, self.value = attend, heads, groups, dim, value
        self.query, self.key = nn.Linear(28, heads * dim), nn.Linear(28, groups * dim)
        self.values, self.out = nn.Linear(28, groups * value), nn.Linear(heads * value, 28)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        query = self.query(x).view(batch, length, self.heads, self.dim).transpose(1, 2)
        key = self.key(x).view(batch, length, self.groups, self.dim).transpose(1, 2)
        value = self.values(x).view(batch, length, self.groups, self.value).transpose(1, 2)
        y = self.attend(query, key, value)
        return self.out(y.transpose(1, 2).reshape(batch, length, self.heads * self.value))


class FusedAttention(nn.Module):
    """One projection to queries, keys and values, split as `layout` says.

    `unbind`: (3, heads, dim); `interleaved`: (heads, 3, dim), as GPT-NeoX; `split`: three slices.
    """

    def __init__(self, layout: str, heads: int = 3, dim: int = 8) -> None:
        super().__init__()
        self.layout, self.heads, self.dim = layout, heads, dim
        self.qkv, self.out = nn.Linear(28, 3 * heads * dim), nn.Linear(heads * dim, 28)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        fused = self.qkv(x)
        if self.layout == "unbind":
            query, key, value = fused.reshape(batch, length, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.layout == "interleaved":
            query, key, value = fused.view(batch, length, self.heads, 3 * self.dim).transpose(1, 2).chunk(3, -1)
        else:
            parts = fused.split(self.heads * self.dim, -1)
            query, key, value = (p.view(batch, length, self.heads, self.dim).transpose(1, 2) for p in parts)
        y = functional.scaled_dot_product_attention(query, key, value, scale=self.dim**-0.5)
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a feed-forward under layer norm, between two linears that free the residual width."""

    def __init__(self, *attentions: nn.Module) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(12, 28), nn.Linear(28, 7)
        self.attentions = nn.ModuleList(attentions)
        self.norms = nn.ModuleList([nn.LayerNorm(28) for _ in range(2 * len(attentions))])
        self.feeds = nn.ModuleList([FeedForward(28, 44) for _ in attentions])

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        for i, attention in enumerate(self.attentions):
            x = x + attention(self.norms[2 * i](x))
            x = x + self.feeds[i](self.norms[2 * i + 1](x))
        return self.out(x)


def sdpa_default_scale(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The scale is 1/sqrt of the head dim: it would change with a cut."""
    return functional.scaled_dot_product_attention(query, key, value)


def sdpa_grouped(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(query, key, value, enable_gqa=True, is_causal=True, scale=0.4)


def by_matmul(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.softmax(query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1]), -1) @ value


def by_einsum(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    weights = torch.einsum("bhid,bhjd->bhij", query, key) * 0.35
    return torch.einsum("bhij,bhjd->bhid", weights.softmax(-1), value)


def repeated(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Grouped-query attention by repeat_interleave, causal by a filled mask."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    logits = query @ key.transpose(-2, -1) * 0.35
    future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1)
    return logits.masked_fill(future, -torch.inf).softmax(-1) @ value


def grouped_einsum(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Grouped-query attention by a five-dim einsum."""
    batch, heads, length, dim = query.shape
    query = query.view(batch, key.shape[1], heads // key.shape[1], length, dim)
    weights = (torch.einsum("bkgid,bkjd->bkgij", query, key) * 0.35).softmax(-1)
    return torch.einsum("bkgij,bkjd->bkgid", weights, value).flatten(1, 2)


def hand_softmax(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    logits = query @ key.transpose(-2, -1) * 0.35
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    return (weights / weights.sum(-1, keepdim=True)) @ value


def linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """elu(x) + 1 is 1 at zero: a zeroed head dim still adds to both sums, so cutting it is not zeroing it."""
    query, key = functional.elu(query) + 1, functional.elu(key) + 1
    total = torch.einsum("bhnd,bhd->bhn", query, key.sum(2))
    return torch.einsum("bhnd,bhde->bhne", query, torch.einsum("bhnd,bhne->bhde", key, value)) / total.unsqueeze(-1)


class SelfMultihead(nn.Module):
    """`nn.MultiheadAttention` as self-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(28, 7, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.attention(x, x, x, need_weights=False)
        return y


class Encoder(nn.Module):
    """`nn.TransformerEncoderLayer`, twice, pre-norm."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(12, 28), nn.Linear(28, 7)
        self.layers = nn.ModuleList(
            [nn.TransformerEncoderLayer(28, 7, 44, batch_first=True, norm_first=True) for _ in range(2)]
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        for layer in self.layers:
            x = layer(x)
        return self.out(x)


_ALL = {"ffn", "heads", "head_dim", "value_dim", "hidden_layernorm"}
_GROUPED = _ALL | {"query_group"}


def attention(
    name: str, structures: set[str], make: Callable[[], nn.Module], seen: bool = True, trap: bool = False
) -> None:
    """Register two blocks around the attention that `make` builds; `seen`: its softmax is one that entropy sees."""
    custom(name, lambda: Block(make(), make()), structures, sequences(12), attention=seen, trap=trap)


attention("attention_sdpa_default_scale", _ALL, lambda: Attention(sdpa_default_scale), trap=True)
attention("attention_sdpa_grouped", _GROUPED, lambda: Attention(sdpa_grouped, heads=6))
attention("attention_matmul", _ALL, lambda: Attention(by_matmul))
# heads == head_dim == value_dim == 4
attention("attention_matmul_square", _ALL, lambda: Attention(by_matmul, 4, 4, 4, 4))
attention("attention_einsum", _ALL, lambda: Attention(by_einsum))
attention("attention_repeated", _GROUPED, lambda: Attention(repeated, heads=6))
attention("attention_grouped_einsum", _GROUPED, lambda: Attention(grouped_einsum, heads=6))
attention("attention_hand_softmax", _ALL, lambda: Attention(hand_softmax), seen=False)
attention("attention_linear", _ALL - {"head_dim"}, lambda: Attention(linear_attention), seen=False, trap=True)
attention("attention_fused_unbind", _ALL, lambda: FusedAttention("unbind"))
attention("attention_fused_interleaved", _ALL, lambda: FusedAttention("interleaved"))
attention("attention_fused_split", _ALL, lambda: FusedAttention("split"))
attention("multihead_attention", _ALL, SelfMultihead)
custom("transformer_encoder", Encoder, _ALL, sequences(12), attention=True)
