"""Traps: blocks in which a cut is easily taken for a zero, or a dim for another of the same size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import nn

from shearfx.testing.spec import Apply, Block, Shape, mix, parameter

Function: TypeAlias = Callable[[Any, torch.Tensor], torch.Tensor]

LAST: dict[str, Function] = {
    # values at zero
    "log": lambda m, x: torch.log(x * x + 0.1),
    "log_abs": lambda m, x: torch.log(x.abs()),
    "reciprocal": lambda m, x: 1 / (x * x + 0.5),
    "divide": lambda m, x: torch.tanh(x) / (x.abs() + 0.2),
    "divide_self": lambda m, x: x.sin() / x,
    "rsqrt": lambda m, x: x * torch.rsqrt(x * x),
    "rare_mask": lambda m, x: x.cos() * (1000 * x.sum(-1, keepdim=True) > 50),
    "rare_equal": lambda m, x: x.cos() * (torch.arange(x.shape[0]).view(-1, *(1,) * (x.dim() - 1)) + 49 == 50),
    "threshold": lambda m, x: x.cos() * F.threshold(100 * x.sum(-1, keepdim=True), 40, 0),
    # statistics over features
    "softmax": lambda m, x: x.softmax(-1),
    "log_softmax": lambda m, x: x.log_softmax(-1),
    "sparse_softmax": lambda m, x: x * x.sigmoid() / x.sigmoid().sum(-1, keepdim=True),
    "center": lambda m, x: x - x.mean(-1, keepdim=True),
    "center_max": lambda m, x: x - x.amax(-1, keepdim=True),
    "add_sum": lambda m, x: x + x.sum(-1, keepdim=True),
    "add_mean_square": lambda m, x: x * (x * x).mean(-1, keepdim=True),
    "add_sigmoid_sum": lambda m, x: x * x.sigmoid().sum(-1, keepdim=True),
    "add_mean_sigmoid": lambda m, x: x * x.sigmoid().mean(-1, keepdim=True),
    "std": lambda m, x: x / (x.std(-1, keepdim=True) + 0.3),
    "std_population": lambda m, x: x / (x.var(-1, correction=0, keepdim=True) + 0.3).sqrt(),
    "max_min": lambda m, x: (x - x.max(-1, keepdim=True).values) * x.min(-1, keepdim=True)[0],
    "count": lambda m, x: x * x.shape[-1],
    "average": lambda m, x: x.sum(-1, keepdim=True) / x.shape[-1] + x,
    "norm": lambda m, x: x / (x.norm(dim=-1, keepdim=True) + 0.2),
    "norm1": lambda m, x: x * x.abs().sum(-1, keepdim=True).rsqrt(),
    "prod": lambda m, x: x + x.prod(-1, keepdim=True),
    "logsumexp": lambda m, x: x - x.logsumexp(-1, keepdim=True),
    # positions
    "arange": lambda m, x: x + torch.arange(x.shape[-1], dtype=x.dtype),
    "scale_arange": lambda m, x: x * torch.arange(1, x.shape[-1] + 1, dtype=x.dtype),
    "linspace": lambda m, x: x * torch.linspace(0.2, 1.0, x.shape[-1], dtype=x.dtype),
    "ones": lambda m, x: x + torch.ones(x.shape[-1], dtype=x.dtype),
    "full_like": lambda m, x: x * torch.full_like(x, 1.5),
    "zeros_like": lambda m, x: torch.zeros_like(x) + x.sum(-1, keepdim=True),
    "ones_sum": lambda m, x: x + torch.ones_like(x).sum(-1, keepdim=True),
    "eye": lambda m, x: x @ torch.eye(x.shape[-1], dtype=x.dtype),
    "buffer": lambda m, x: x + m.table,
    "scale_buffer": lambda m, x: x * m.table,
    "square_buffer": lambda m, x: x @ m.square,
    "square_weight": lambda m, x: x @ m.weight,
    "square_sigmoid": lambda m, x: x @ m.weight.sigmoid(),
    "square_softmax": lambda m, x: x @ m.weight.softmax(-1),
    "reverse_index": lambda m, x: x[..., torch.arange(x.shape[-1] - 1, -1, -1)],
    "permute_index": lambda m, x: x[..., m.order],
    "index_select": lambda m, x: x.index_select(-1, m.order[: max(1, x.shape[-1] // 2)]),
    "gather": lambda m, x: x.gather(-1, x.argsort(-1)),
    "topk": lambda m, x: x.topk(max(1, x.shape[-1] // 2), -1).values,
    "sort": lambda m, x: x.sort(-1).values,
    "flip": lambda m, x: x.flip(-1),
    "roll": lambda m, x: x.roll(1, -1),
    "cumsum": lambda m, x: x.cumsum(-1),
    "diff": lambda m, x: torch.cat((x[..., :1], x.diff(dim=-1)), -1),
    "tril": lambda m, x: (x[..., :, None] * x[..., None, :]).tril().sum(-1),
    # taking apart and putting together
    "stack_unbind": lambda m, x: torch.stack([a * (i + 1) for i, a in enumerate(x.unbind(-1))], -1),
    "stack_two": lambda m, x: torch.stack((x, x * 2), -1).flatten(-2),
    "stack_sum": lambda m, x: torch.stack((x, x.cos()), -1).sum(-1),
    "stack_front": lambda m, x: torch.stack((x, x.sin()), -2).flatten(-2),
    "interleave": lambda m, x: x.repeat_interleave(2, -1),
    "repeat": lambda m, x: x.repeat(*(1,) * (x.dim() - 1), 2),
    "tile": lambda m, x: x.tile(3),
    "expand": lambda m, x: x.unsqueeze(-1).expand(*x.shape, 2).flatten(-2),
    "expand_front": lambda m, x: x.unsqueeze(-2).expand(*x.shape[:-1], 2, x.shape[-1]).flatten(-2),
    "expand_sum": lambda m, x: x.sum(-1, keepdim=True).expand(*x.shape[:-1], 3),
    "pad": lambda m, x: F.pad(x, (1, 2)),
    "pad_one": lambda m, x: F.pad(x, (0, 1), value=1.0),
    "pad_reflect": lambda m, x: F.pad(x, (1, 1), mode="replicate") if x.dim() == 3 else x,
    "cat_self": lambda m, x: torch.cat((x, x), -1),
    "cat_ones": lambda m, x: torch.cat((x, torch.ones_like(x)), -1),
    "cat_part": lambda m, x: torch.cat((x, x[..., : x.shape[-1] // 2]), -1),
    "cat_sum": lambda m, x: torch.cat((x, x.sum(-1, keepdim=True)), -1),
    "swap_halves": lambda m, x: torch.cat(tuple(reversed(x.chunk(2, -1))), -1),
    "slice_head": lambda m, x: x[..., : max(1, x.shape[-1] - 1)],
    "slice_tail": lambda m, x: x[..., -max(1, x.shape[-1] // 2) :],
    "slice_odd": lambda m, x: x[..., 1 : max(2, x.shape[-1] - 2)] if x.shape[-1] > 1 else x,
    "slice_step": lambda m, x: x[..., ::2],
    "slice_step3": lambda m, x: x[..., min(1, x.shape[-1] - 1) :: 3],
    "shift": lambda m, x: torch.cat((x[..., 1:], x[..., :1]), -1),
    "first_times": lambda m, x: x * x[..., :1],
    "last_added": lambda m, x: x + x[..., -1:],
    "select": lambda m, x: x + x.select(-1, x.shape[-1] // 2).unsqueeze(-1),
    "split_odd": lambda m, x: torch.cat([p * (i + 1) for i, p in enumerate(x.split(2, -1))], -1),
    "chunk_three": lambda m, x: torch.cat([p.sin() for p in x.chunk(3, -1)], -1),
    "tensor_split": lambda m, x: torch.cat([p.cos() for p in x.tensor_split(3, -1)], -1),
    "halves_added": lambda m, x: (
        x[..., : x.shape[-1] // 2 * 2].unflatten(-1, (2, -1)).sum(-2) if x.shape[-1] > 1 else x
    ),
    "pairs_added": lambda m, x: x[..., : x.shape[-1] // 2 * 2].unflatten(-1, (-1, 2)).sum(-1) if x.shape[-1] > 1 else x,
    "set_slice": lambda m, x: _set_slice(x),
    "set_mul": lambda m, x: _set_mul(x),
    # a dim met twice in one tensor
    "pairwise_sum": lambda m, x: (x[..., :, None] + x[..., None, :]).sum(-1),
    "pairwise_product": lambda m, x: (x[..., :, None] * x[..., None, :]).sum(-1),
    "pairwise_tanh": lambda m, x: (x[..., :, None] + x[..., None, :]).tanh().sum(-2),
    "pairwise_const": lambda m, x: (torch.ones_like(x)[..., :, None] * x[..., None, :]).sum(-1),
    "pairwise_flat": lambda m, x: (x[..., :, None] * x[..., None, :]).flatten(-2),
    "gram": lambda m, x: x @ (x.flatten(0, -2).T @ x.flatten(0, -2)) if x.dim() > 1 else x,
    "outer_mul": lambda m, x: torch.einsum("...i,...j->...ij", x, x.cos()).sum(-2),
    "einsum_free": lambda m, x: torch.einsum("...i,...j->...j", x.cos(), x),
    "einsum_free2": lambda m, x: torch.einsum("...i,...j,j->...i", x, x.cos(), m.table),
    "square_sigmoid_skip": lambda m, x: x + x @ m.weight.sigmoid(),
    "square_buffer_skip": lambda m, x: x + x @ m.square,
    "square_standard_skip": lambda m, x: x + F.linear(x, m.weight - m.weight.mean(-1, keepdim=True)),
    "square_norm_skip": lambda m, x: x + F.linear(x, F.normalize(m.weight, dim=-1)),
    "square_twice": lambda m, x: x + (x @ m.weight).cos() @ m.weight,
    "mixed_norm": lambda m, x: x + F.layer_norm(x[..., :, None] + m.weight, x.shape[-1:]).sum(-1),
    "mixed_scan": lambda m, x: x + (x[..., None] * m.weight.exp()).sum(-2),
    "trace": lambda m, x: x * torch.einsum("ii->", m.weight),
    "diagonal": lambda m, x: x * m.weight.diagonal(),
    "symmetric": lambda m, x: x @ (m.weight + m.weight.T),
    "symmetric_bias": lambda m, x: (x[..., None] + m.weight).sum(-2),
    "power": lambda m, x: x @ m.weight @ m.weight,
    "inverse": lambda m, x: torch.linalg.solve(
        m.weight @ m.weight.T + torch.eye(x.shape[-1], dtype=x.dtype), x[..., None]
    )[..., 0],
    "softmax_scores": lambda m, x: ((x[..., :, None] * x[..., None, :]).softmax(-1) @ x[..., None])[..., 0],
    "channel_attention": lambda m, x: (
        (x.transpose(-1, -2) @ x).softmax(-1).transpose(-1, -2).mul(0.3) @ x.transpose(-1, -2) @ x
        if x.dim() == 3
        else x
    ),
    "distance": lambda m, x: torch.cdist(x[..., None], m.table[:, None].expand(*x.shape[:-1], -1, -1)).sum(-1),
    "maximum": lambda m, x: torch.maximum(x[..., :, None], x[..., None, :]).sum(-1),
    "where_index": lambda m, x: torch.where(torch.arange(x.shape[-1]) % 2 == 0, x, x.cos()),
    "lerp": lambda m, x: torch.lerp(x, m.table.expand_as(x), 0.3),
    "addcmul": lambda m, x: torch.addcmul(x, x.cos(), m.table, value=0.4),
    "glu": lambda m, x: F.glu(torch.cat((x, x.cos()), -1), -1),
    "prelu": lambda m, x: F.prelu(x.unsqueeze(1).transpose(1, -1), m.table).transpose(1, -1).squeeze(1),
    "bilinear": lambda m, x: F.bilinear(x, x, m.cube),
    "matvec": lambda m, x: torch.mv(x.flatten(0, -2), m.table).view(*x.shape[:-1], 1) * x,
    "cross_time": lambda m, x: x + (x.cumsum(1) if x.dim() == 3 else x),
    "time_mean": lambda m, x: x - x.mean(1, keepdim=True) if x.dim() == 3 else x,
    "time_softmax": lambda m, x: x * x.softmax(1) if x.dim() == 3 else x,
    "state": lambda m, x: _state(m, x),
}
"""Functions of a module and a tensor with its features last."""


def _set_slice(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[..., : max(1, x.shape[-1] // 2)] = x[..., -max(1, x.shape[-1] // 2) :]
    return y


def _set_mul(x: torch.Tensor) -> torch.Tensor:
    y = x * 1.0
    y[..., 0] *= 2.0
    y[..., -1] = y[..., 0].cos()
    return y


def _state(m: Any, x: torch.Tensor) -> torch.Tensor:
    """A small state-space recurrence over two tokens: a state of 2 numbers a feature, decayed and written token by
    token; other tokens stay."""
    if x.dim() != 3:
        return x
    state = torch.zeros(x.shape[0], x.shape[2], 2, dtype=x.dtype)
    outputs = []
    for i in range(2):
        state = state * torch.exp(-F.softplus(m.decay)) + x[:, i, :, None] * m.write
        outputs.append((state * m.write.tanh()).sum(-1))
    return torch.cat([torch.stack(outputs, 1), x[:, 2:]], 1)


@dataclass(frozen=True)
class Trap(Block):
    """A function from :data:`LAST`, applied to the features of a linear layer's output, or of the input itself."""

    name: str
    out: int = 4
    """Width of the linear layer; 0 for none."""

    def _build(self, shape: Shape) -> tuple[nn.Module, Shape]:
        function, axis, width = LAST[self.name], shape.axis, self.out or shape.width

        def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = (m.up(x) if self.out else x).movedim(axis, -1)
            return function(m, y).movedim(-1, axis)

        order = torch.randperm(width, generator=torch.Generator().manual_seed(width))
        parts: dict[str, Any] = {"up": mix(shape, width)} if self.out else {}
        parts |= _used(self.name, {
            "table": lambda: torch.linspace(0.3, 1.3, width, dtype=torch.float64), "order": lambda: order,
            "square": lambda: torch.linspace(0.1, 0.9, width * width, dtype=torch.float64).view(width, width),
            "weight": lambda: parameter(width, width), "cube": lambda: parameter(width, width, width),
            "decay": lambda: parameter(width, 2), "write": lambda: parameter(width, 2),
        })  # fmt: skip
        module = Apply(forward, **parts).double()
        sides = {"flat": (2,), "tokens": (2, 2)}.get(shape.kind, (2, *(2,) * shape.space))
        example = torch.full((*sides, width), 0.5, dtype=torch.float64)
        return module, shape.wide(int(function(module, example).shape[-1]))


def _used(name: str, parts: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """The parts that a function mentions, so that no parameter is there for nothing."""
    code = LAST[name].__code__
    names = set(code.co_names)
    if name == "state":
        names |= {"decay", "write"}
    return {part: make() for part, make in parts.items() if part in names}
