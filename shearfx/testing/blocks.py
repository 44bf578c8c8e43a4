"""The common blocks: linear layers, activations, skips, gates, norms, shared modules, adapters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from shearfx.testing.spec import Apply, Block, Shape, chain, mix, parameter

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh, "sigmoid": torch.sigmoid,
    "square": torch.square, "abs": torch.abs, "cos": torch.cos, "softplus": F.softplus,
    "elu_plus": lambda x: F.elu(x) + 1, "exp": lambda x: torch.exp(torch.tanh(x)), "leaky": F.leaky_relu,
    "hardtanh": lambda x: x.clamp(0.1, 2.0),
    "hardswish": F.hardswish, "step": lambda x: (x > 0.1).to(x.dtype),
    "where": lambda x: torch.where(x > 0, x, 0.3 * x),
    "fill": lambda x: x.masked_fill(x < 0, 0.7), "cast": lambda x: x.float().double() * 0 + x, "sign": torch.sign,
}  # fmt: skip
"""Point-wise functions by name; some leave zero at zero, some do not."""


@dataclass(frozen=True)
class Linear(Block):
    """A linear layer, or a convolution of one pixel."""

    out: int
    bias: bool = True

    def _build(self, shape: Shape) -> tuple[nn.Module, Shape]:
        return mix(shape, self.out, self.bias), shape.wide(self.out)


@dataclass(frozen=True)
class Matrix(Block):
    """A linear layer written as a product with a parameter of transposed layout (Conv1D of GPT-2), or as einsum."""

    out: int
    how: str = "matmul"
    """``matmul``, ``addmm`` or ``einsum``."""

    def _build(self, shape: Shape) -> tuple[nn.Module, Shape]:
        def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
            x = x.movedim(shape.axis, -1)
            if self.how == "addmm":
                y = torch.addmm(m.bias, x.reshape(-1, x.shape[-1]), m.weight).view(*x.shape[:-1], -1)
            elif self.how == "einsum":
                y = torch.einsum("...i,io->...o", x, m.weight) + m.bias
            else:
                y = x @ m.weight + m.bias
            return y.movedim(-1, shape.axis)

        module = Apply(forward, weight=parameter(shape.width, self.out), bias=parameter(self.out))
        return module, shape.wide(self.out)


@dataclass(frozen=True)
class Act(Block):
    """A point-wise function."""

    name: str = "relu"

    def _build(self, shape: Shape) -> tuple[nn.Module, Shape]:
        function = ACTIVATIONS[self.name]
        return Apply(lambda m, x: function(x)), shape


@dataclass(frozen=True)
class Residual(Block):
    """``x`` joined with ``body(x)``: added, multiplied or subtracted (through a linear layer to the width of x)."""

    body: tuple[Block, ...]
    how: str = "add"
    """``add``, ``mul``, ``sub`` or ``scaled`` (by a parameter, as ConvNeXt does)."""

    def _build(self, shape: Shape) -> tuple[nn.Module, Shape]:
        body, after = chain(self.body, shape)
        out = mix(after, shape.width)

        def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = m.out(m.body(x))
            if self.how == "scaled":
                y = y * shape.column(m.scale)
            return x * y if self.how == "mul" else x - y if self.how == "sub" else x + y

        scale = {"scale": parameter(shape.width)} if self.how == "scaled" else {}
        return Apply(forward, body=body, out=out, **scale), shape


@dataclass(frozen=True)
class Concat(Block):
    """``x`` beside ``body(x)``, as DenseNet and U-Net do; ``twice`` puts x on both sides."""

    body: tuple[Block, ...]
    order: str = "after"
    """``after``, ``before`` or ``twice``."""

    def _build(self, shape: Shape) -> tuple[nn.Module, Shape]:
        body, after = chain(self.body, shape)

        def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
            y = m.body(x)
            parts = {"after": (x, y), "before": (y, x), "twice": (x, y, x)}[self.order]
            return torch.cat(parts, shape.axis)

        width = after.width + shape.width * (2 if self.order == "twice" else 1)
        return Apply(forward, body=body), shape.wide(width)


@dataclass(frozen=True)
class Gate(Block):
    """A gated linear unit. One projection is taken apart into value and gate, in any of the usual ways."""

    hidden: int
    how: str = "chunk"
    """``chunk``, ``split``, ``slice``, ``view``, ``interleaved``, ``unbind``, ``separate`` (two projections)."""
    act: str = "silu"

    def _build(self, shape: Shape) -> tuple[nn.Module, Shape]:
        act, axis, hidden = ACTIVATIONS[self.act], shape.axis, self.hidden

        def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
            if self.how == "separate":
                value, gate = m.up(x), m.gate(x)
            else:
                value, gate = _halves(m.up(x), self.how, axis, hidden)
            result: torch.Tensor = value * act(gate)
            return result

        parts = {"gate": mix(shape, hidden, bias=False)} if self.how == "separate" else {}
        up = mix(shape, hidden if self.how == "separate" else 2 * hidden)
        return Apply(forward, up=up, **parts), shape.wide(hidden)


def _halves(x: torch.Tensor, how: str, axis: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    if how == "chunk":
        a, b = x.chunk(2, axis)
    elif how == "split":
        a, b = x.split([size, size], axis)
    elif how == "slice":
        a, b = x.narrow(axis, 0, size), x.movedim(axis, -1)[..., size:].movedim(-1, axis)
    elif how == "interleaved":
        last = x.movedim(axis, -1)
        a, b = last[..., 0::2].movedim(-1, axis), last[..., 1::2].movedim(-1, axis)
    else:
        a, b = x.unflatten(axis, (2, size)).unbind(1 if axis == 1 else -2)
    return a, b


@dataclass(frozen=True)
class Excite(Block):
    """Squeeze and excitation: features gated by a sigmoid of their own mean over positions."""

    hidden: int
    gate: str = "sigmoid"

    def _build(self, shape: Shape) -> tuple[nn.Module, Shape]:
        flat = Shape("flat", shape.width)

        def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
            over = {"tokens": (1,), "signal": (2,), "image": (2, 3)}.get(shape.kind, ())
            pooled = x.mean(over) if over else x
            gate = ACTIVATIONS[self.gate](m.up(F.relu(m.down(pooled))))
            gate = gate.unsqueeze(1) if shape.kind == "tokens" else gate.reshape(*gate.shape, *(1,) * shape.space)
            return x * gate

        return Apply(forward, down=mix(flat, self.hidden), up=nn.Linear(self.hidden, shape.width)), shape


@dataclass(frozen=True)
class Norm(Block):
    """A normalisation over features, or over positions, by name."""

    how: str = "rms"
    """``rms`` (written out), ``rms_offset`` (weight counts from 1), ``rms_module``, ``rms_plain``, ``layer``,
    ``batch``, ``group``, ``instance``, ``l2``."""
    groups: int = 1

    def _build(self, shape: Shape) -> tuple[nn.Module, Shape]:
        width, last = shape.width, shape.axis == -1
        if self.how in ("rms", "rms_offset"):
            offset = 1.0 if self.how == "rms_offset" else 0.0

            def rms(m: Any, x: torch.Tensor) -> torch.Tensor:
                x = x.movedim(shape.axis, -1)
                x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 0.01)
                weight: torch.Tensor = offset + m.weight if offset else m.weight
                return (weight * x).movedim(-1, shape.axis)

            return Apply(rms, weight=parameter(width)), shape
        if self.how == "l2":
            return Apply(lambda m, x: F.normalize(x, dim=shape.axis)), shape
        if last and self.how in ("rms_module", "rms_plain"):
            return nn.RMSNorm(width, eps=0.02, elementwise_affine=self.how == "rms_module"), shape
        if last and self.how == "layer":
            return nn.LayerNorm(width), shape
        if not last and self.how == "batch":
            return (nn.BatchNorm1d if shape.space == 1 else nn.BatchNorm2d)(width), shape
        if not last and self.how == "instance":
            kind = nn.InstanceNorm1d if shape.space == 1 else nn.InstanceNorm2d
            return kind(width, affine=bool(self.groups % 2)), shape
        return nn.GroupNorm(self.groups if width % self.groups == 0 else 1, width) if not last else nn.Identity(), shape


@dataclass(frozen=True)
class Shared(Block):
    """The same blocks called twice, one after the other; a linear layer brings the width back in between."""

    body: tuple[Block, ...]

    def _build(self, shape: Shape) -> tuple[nn.Module, Shape]:
        body, after = chain(self.body, shape)
        back = mix(after, shape.width)
        return Apply(lambda m, x: m.back(m.body(m.back(m.body(x)))), body=body, back=back), shape


@dataclass(frozen=True)
class TiedPair(Block):
    """Two linear layers of one weight: ``x W^T`` and then ``y W``, as autoencoders tie them."""

    hidden: int
    act: str = "tanh"

    def _build(self, shape: Shape) -> tuple[nn.Module, Shape]:
        def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
            x = x.movedim(shape.axis, -1)
            y = ACTIVATIONS[self.act](F.linear(x, m.weight, m.bias))
            return F.linear(y, m.weight.t()).movedim(-1, shape.axis)

        return Apply(forward, weight=parameter(self.hidden, shape.width), bias=parameter(self.hidden)), shape


class _HandLora(nn.Module):
    """A low-rank adapter under PEFT's names: a frozen base, A and B."""

    def __init__(self, inner: int, out: int, rank: int) -> None:
        super().__init__()
        self.base_layer = nn.Linear(inner, out)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(inner, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, out, bias=False)})
        self.base_layer.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.base_layer(x) + 0.7 * self.lora_B["default"](self.lora_A["default"](x))
        return result


@dataclass(frozen=True)
class Lora(Block):
    """A linear layer with a low-rank adapter, made by hand or by PEFT."""

    out: int
    rank: int = 2
    peft: bool = False

    def _build(self, shape: Shape) -> tuple[nn.Module, Shape]:
        module: nn.Module = _HandLora(shape.width, self.out, self.rank)
        if self.peft:
            from peft import LoraConfig, inject_adapter_in_model

            holder = nn.Sequential(nn.Linear(shape.width, self.out))
            config = LoraConfig(r=self.rank, lora_alpha=3, target_modules=["0"], lora_dropout=0.1)
            module = inject_adapter_in_model(config, holder)
        axis = shape.axis
        return Apply(lambda m, x: m.layer(x.movedim(axis, -1)).movedim(-1, axis), layer=module), shape.wide(self.out)
