"""LoRA adapters on a live model, as products of two thin matrices that are never multiplied out.

What scoring and stepping need of ``BA`` is how long its rows and columns are and how they lie to those of the base:
``||b A||^2 = b (A A^T) b^T`` and ``<w, b A> = (w A^T) . b``, which costs the rank instead of the width.

Source: LoRAShear, section 3.3 (``x + gamma * B * A``, gamma being LoRA's scaling).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
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
    """The module inside, whose weight it is."""
    a: nn.Parameter
    """``[rank, in, ...]``; the kernel's axes follow for convolutions."""
    b: nn.Parameter
    """``[out, rank, ...]``."""
    scaling: float
    transposed: bool
    """Whether the weight is ``[in, out]`` (embeddings, transformers' Conv1D)."""
    leaf: str = "weight"
    """What the module inside calls the weight."""

    @property
    def name(self) -> str:
        """Of the weight; :func:`shearfx.adapters.base_name` makes it that of the model without adapters."""
        return f"{self.path}.base_layer.{self.leaf}"

    @property
    def weight(self) -> Tensor:
        """The base's weight as it is kept."""
        weight = getattr(self.base, self.leaf, None)
        if not isinstance(weight, Tensor):  # packed under another name by some quantisers
            return self.a.new_empty(0, dtype=torch.uint8)
        return weight

    def plain(self) -> Tensor:
        """The weight as a plain floating tensor: itself, or dequantised for the while.

        Raises:
            PlanError: nothing is known that dequantises it.
        """
        return plain_weight(self.base) if self.leaf == "weight" else self.weight.detach()

    def side(self, dim: int) -> str:
        """Whether a dim of the weight is ``out`` (rows of B) or ``in`` (columns of A)."""
        return "out" if (dim == 0) ^ self.transposed else "in"

    def factors(self) -> tuple[Tensor, Tensor]:
        """A as ``[rank, in * kernel]`` and B as ``[out, rank]``, detached, in float32 (float64 where one is)."""
        wide = torch.promote_types(wider(self.weight.dtype), wider(self.a.dtype))
        return self.a.detach().flatten(1).to(wide), self.b.detach().flatten(1).to(wide)

    def thin(self, dim: int) -> tuple[nn.Parameter, int]:
        """The factor that has slices along a dim of the weight for its own, and its axis: B's rows or A's columns."""
        return (self.b, 0) if self.side(dim) == "out" else (self.a, 1)

    def clear(self, dim: int, index: Tensor) -> None:
        """Set what the factors have of some slices along a dim of the weight for their own to zero, in place."""
        factor, axis = self.thin(dim)
        factor.data.index_fill_(axis, index.to(factor.device), 0)

    def cut(self, kept: Mapping[int, Tensor]) -> tuple[Tensor, Tensor]:
        """A and B for a weight of which some slices stay, detached; they may be views.

        Args:
            kept: for dims of the weight, LongTensor of what stays.
        """
        a, b = self.a.detach(), self.b.detach()
        for dim, index in kept.items():
            if self.side(dim) == "out":
                b = b[index.to(b.device)]
            else:
                a = a.index_select(1, index.to(a.device))
        return a, b

    def parts(self, weight: Tensor, a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Matrices, and what the product of two factors is added to each of them.

        Args:
            weight: shaped like the adapter's, or with fewer slices.
            a, b: shaped like the factors, or cut alike, or of another rank.

        Yields:
            A view ``[out, in, ...]`` of the weight, A as ``[rank, in * kernel]`` and B as ``[out, rank]``.
        """
        yield (weight.T if self.transposed else weight), a.detach().flatten(1), b.detach().flatten(1)

    def joined(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """One A and B whose product is the sum of those of several.

        Args:
            pairs: shaped like the factors.
        """
        return torch.cat([a for a, _ in pairs], 0), torch.cat([b for _, b in pairs], 1)

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
        weight = self.plain().T if self.transposed else self.plain()
        kernel = a.shape[1] // self.a.shape[1]
        if self.side(dim) == "out":
            count = len(weight) if index is None else len(index)
            found = a.new_empty(count)
            for start, stop in spans(count, weight[0].numel()):
                rows = slice(start, stop) if index is None else index[start:stop]
                found[start:stop] = ((weight[rows].flatten(1).to(a.dtype) @ a.T) * b[rows]).sum(1)
            return found * self.scaling
        if index is not None:
            a = a.unflatten(1, (-1, kernel))[:, index].flatten(1)
        read = torch.zeros_like(a)
        for start, stop in spans(len(weight), a.shape[1]):
            rows = weight[start:stop] if index is None else weight[start:stop].index_select(1, index)
            read += b[start:stop].T @ rows.flatten(1).to(a.dtype)
        columns: Tensor = (read * a).sum(0).unflatten(0, (a.shape[1] // kernel, kernel)).sum(1)
        return columns * self.scaling

    def product(self, dim: int, index: Tensor) -> Tensor:
        """``scaling * BA``, some slices of it along a dim of the weight, which come first: ``[len(index), ...]``."""
        a, b = self.factors()
        if self.side(dim) == "out":
            found = (b[index] @ a).unflatten(1, self.a.shape[1:])
        else:
            columns = a.unflatten(1, self.a.shape[1:])[:, index].flatten(1)
            found = (b @ columns).reshape(len(b), len(index), *self.a.shape[2:]).transpose(0, 1)
        scaled: Tensor = found * self.scaling
        return scaled

    def add(self, a: Tensor, b: Tensor, start_from: Tensor | None = None) -> None:
        """Add ``scaling * b a`` to the weight, a few rows at a time.

        Args:
            a, b: shaped like the factors.
            start_from: what it is added to instead of the weight, shaped like it.

        Raises:
            PlanError: the base is quantised.
        """
        weight = self.weight.detach()
        if not weight.is_floating_point():
            what = f"{self.path} has a quantised base, into which nothing can be merged"
            raise PlanError(message(what, todo='pass merge="never"'))
        wide = torch.promote_types(wider(weight.dtype), wider(a.dtype))
        old = weight if start_from is None else start_from
        for (rows, thin, thick), (before, _, _) in zip(self.parts(weight, a, b), self.parts(old, a, b), strict=True):
            right, left = thin.to(weight.device, wide), thick.to(weight.device, wide)
            for start, stop in spans(len(rows), rows[0].numel()):
                delta = (left[start:stop] @ right).reshape(rows[start:stop].shape)
                rows[start:stop].copy_(before[start:stop].to(weight.device, wide) + self.scaling * delta)

    @torch.no_grad()
    def merge(self) -> None:
        """Add ``scaling * BA`` to the weight and set B to zero, a few rows at a time: the function stays.

        Raises:
            PlanError: the base is quantised.
        """
        self.add(self.a, self.b)
        self.b.zero_()


def wider(dtype: torch.dtype) -> torch.dtype:
    """What sums are made in: float64 for float64, else float32."""
    return dtype if dtype == torch.float64 else torch.float32


def spans(count: int, each: int) -> Iterator[tuple[int, int]]:
    """From 0 to ``count`` in steps of about ``CHUNK`` numbers, where each counts for ``each``."""
    step = max(1, CHUNK // max(1, each))
    return ((start, min(start + step, count)) for start in range(0, count, step))


def plain_weight(module: nn.Module) -> Tensor:
    """The weight of a layer as a plain floating tensor: itself, or dequantised for the while.

    Raises:
        PlanError: nothing is known that dequantises it.
    """
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.is_floating_point():
        return weight.detach()
    plain = None
    if getattr(getattr(weight, "quant_state", None), "packing_format_for_cpu", False):
        what = f"bitsandbytes packed the weight of a {type(module).__name__} anew for inference, which PEFT misreads"
        todo = "call model.train() before the model runs for the first time"
        raise PlanError(message(what, todo=todo))
    if weight is not None or hasattr(module, "W_q"):
        from peft.utils import integrations

        with _restored(module):
            plain = integrations.dequantize_module_weight(module)
    if not isinstance(plain, Tensor) or not plain.is_floating_point():
        kind = getattr(weight, "dtype", "no weight of its own")
        raise PlanError(
            message(
                f"a {type(module).__name__} keeps its weight as {kind}, which PEFT does not dequantise",
                todo='use saliency="fisher" and half_space_eps=-math.inf, which look at no weights',
            )
        )
    return plain.detach()


@contextlib.contextmanager
def _restored(module: nn.Module) -> Iterator[None]:
    """On a CPU, PEFT puts a weight of bitsandbytes' back by a copy that has lost its scale (PEFT 0.21)."""
    weight, state = module._parameters.get("weight"), getattr(module, "state", None)
    kept = [(one, dict(vars(one))) for one in (weight, state) if one is not None and hasattr(one, "__dict__")]
    try:
        yield
    finally:
        if weight is not None:
            module._parameters["weight"] = weight
        for one, values in kept:
            vars(one).update(values)
