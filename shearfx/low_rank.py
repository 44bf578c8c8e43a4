"""LoRA adapters on a live model, as products of two thin matrices that are never multiplied out.

What scoring and stepping need of ``BA`` is how long its rows and columns are and how they lie to those of the base:
``||b A||^2 = b (A A^T) b^T`` and ``<w, b A> = (w A^T) . b``, which costs the rank instead of the width.

Source: LoRAShear, section 3.3 (``x + gamma * B * A``, gamma being LoRA's scaling).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shearfx.errors import PlanError, message

CHUNK = 2**20
"""Numbers of a weight that are looked at in float32 at a time."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """One adapter: ``scaling * B @ A`` is added to a frozen weight."""

    path: str
    """Of the adapter's layer in the live model."""
    base: nn.Module
    """The layer inside, whose ``weight`` it is."""
    a: nn.Parameter
    """``[rank, in, ...]``; the kernel's axes follow for convolutions."""
    b: nn.Parameter
    """``[out, rank, ...]``."""
    scaling: float
    transposed: bool
    """Whether the weight is ``[in, out]`` (embeddings, transformers' Conv1D)."""

    @property
    def weight(self) -> Tensor:
        """The base's weight as it is kept."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    def side(self, dim: int) -> str:
        """Whether a dim of the weight is ``out`` (rows of B) or ``in`` (columns of A)."""
        return "out" if (dim == 0) ^ self.transposed else "in"

    def factors(self) -> tuple[Tensor, Tensor]:
        """A as ``[rank, in * kernel]`` and B as ``[out, rank]``, detached, in float32."""
        return self.a.detach().flatten(1).float(), self.b.detach().flatten(1).float()

    def squares(self, dim: int) -> Tensor:
        """``||scaling * BA||^2`` of each slice along a dim of the weight, float32."""
        a, b = self.factors()
        if self.side(dim) == "out":
            found = ((b @ (a @ a.T)) * b).sum(1)
        else:
            found = (((b.T @ b) @ a) * a).sum(0).unflatten(0, (self.a.shape[1], -1)).sum(1)
        return found.clamp(min=0) * self.scaling**2

    def inner(self, dim: int, index: Tensor | None = None) -> Tensor:
        """``<weight, scaling * BA>`` of each slice along a dim of the weight, or of some slices, float32."""
        a, b = self.factors()
        weight = plain_weight(self.base)
        weight = weight.T if self.transposed else weight
        kernel = a.shape[1] // self.a.shape[1]
        if self.side(dim) == "out":
            count = len(weight) if index is None else len(index)
            found = a.new_empty(count)
            for start, stop in spans(count, weight[0].numel()):
                rows = slice(start, stop) if index is None else index[start:stop]
                found[start:stop] = ((weight[rows].flatten(1).float() @ a.T) * b[rows]).sum(1)
            return found * self.scaling
        if index is not None:
            a = a.unflatten(1, (-1, kernel))[:, index].flatten(1)
        read = torch.zeros_like(a)
        for start, stop in spans(len(weight), a.shape[1]):
            rows = weight[start:stop] if index is None else weight[start:stop].index_select(1, index)
            read += b[start:stop].T @ rows.flatten(1).float()
        columns: Tensor = (read * a).sum(0).unflatten(0, (-1, kernel)).sum(1)
        return columns * self.scaling

    @torch.no_grad()
    def merge(self) -> None:
        """Add ``scaling * BA`` to the weight and set B to zero, a few rows at a time: the function stays.

        Raises:
            PlanError: the base is quantised.
        """
        weight = self.weight
        if not weight.is_floating_point():
            what = f"{self.path} has a quantised base, into which nothing can be merged"
            raise PlanError(message(what, todo='pass merge="never"'))
        a, b = self.factors()
        rows = weight.detach().T if self.transposed else weight.detach()
        for start, stop in spans(len(rows), rows[0].numel()):
            part = rows[start:stop]
            delta = (b[start:stop] @ a).reshape(part.shape)
            part.copy_(part.float() + self.scaling * delta)
        self.b.zero_()


def spans(count: int, each: int) -> Iterator[tuple[int, int]]:
    """From 0 to ``count`` in steps of about ``CHUNK`` numbers, where each counts for ``each``."""
    step = max(1, CHUNK // max(1, each))
    return ((start, min(start + step, count)) for start in range(0, count, step))


def plain_weight(module: nn.Module) -> Tensor:
    """The weight of a layer as a plain floating tensor: itself, or dequantised for the while."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    if weight.is_floating_point():
        return weight.detach()
    from peft.utils.integrations import dequantize_module_weight

    plain: Tensor = dequantize_module_weight(module)
    return plain.detach()


def adapters_of(model: nn.Module) -> dict[str, LowRank]:
    """The active LoRA adapters of a live model, by the path of their layer; none for a model without.

    Raises:
        PlanError: an adapter is more than ``scaling * B @ A`` (DoRA), or several are active at once.
    """
    from peft.tuners.lora import LoraLayer

    found: dict[str, LowRank] = {}
    for path, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        active = [name for name in module.active_adapters if name in module.scaling]
        if not active:
            continue
        if len(active) > 1:
            what = f"{len(active)} adapters are active at once: {', '.join(active)}"
            raise PlanError(message(what, where=path, todo="model.set_adapter(one of them)"))
        (name,) = active
        if module.use_dora.get(name) or module.lora_variant.get(name) is not None:
            what = f"adapter {name!r} rescales its base (DoRA or another variant), so it is no sum of W and BA"
            raise PlanError(message(what, where=path, todo="use a LoraConfig with use_dora=False"))
        base = module.get_base_layer()
        if name in module.lora_embedding_A:
            a, b, transposed = module.lora_embedding_A[name], module.lora_embedding_B[name], True
        else:
            a, b = module.lora_A[name].weight, module.lora_B[name].weight
            transposed = bool(getattr(module, "fan_in_fan_out", False))
        found[path] = LowRank(path, base, a, b, float(module.scaling[name]), transposed)
    return found
