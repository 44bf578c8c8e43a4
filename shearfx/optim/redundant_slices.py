"""The slices of weights that fading structures own, and how what was learnt lies to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn

from shearfx.gating.sites import live_names
from shearfx.graph import Graph
from shearfx.low_rank import LowRank, plain_weight, spans, wider


@dataclass(eq=False)
class Slices:
    """The slices of one dim of one weight that go with some structures of a group."""

    group: str
    name: str
    """Of the parameter in the live model."""
    module: nn.Module
    leaf: str
    dim: int
    index: Tensor
    """LongTensor ``[n]`` into the dim."""
    slot: Tensor
    """LongTensor ``[n]``: which of the structures each belongs to, by place."""
    adapter: LowRank | None
    before: Tensor | None = field(default=None, repr=False)
    """What trained slices were before the optimiser's step, ``[n, ...]``: allocated once, when a period begins."""

    @property
    def parameter(self) -> nn.Parameter:
        """The weight itself."""
        found: nn.Parameter = getattr(self.module, self.leaf)
        return found

    @property
    def trained(self) -> bool:
        """Whether the optimiser may change the weight itself."""
        return self.parameter.requires_grad

    @property
    def key(self) -> str:
        """A name for the slices."""
        return f"{self.group} {self.name} {self.dim}"

    def remember(self) -> None:
        """Keep the slices as they are beside, where the optimiser may change them."""
        if self.trained:
            rows = self.parameter.detach().movedim(self.dim, 0)
            if self.before is None:
                self.before = rows.new_empty(len(self.index), *rows.shape[1:])
            torch.index_select(rows, 0, self.index.to(rows.device), out=self.before)

    def sums(self) -> tuple[Tensor, Tensor]:
        """``||x||^2`` and ``<x, d>`` of each slice, ``[n]`` on the CPU, a part of them at a time.

        ``x`` is what the slice was before the step, ``d`` what the step changed and LoRA's product.
        """
        if not len(self.index):
            return torch.zeros(0), torch.zeros(0)
        weight = plain_weight(self.module) if self.leaf == "weight" else self.parameter.detach()
        index, rows = self.index.to(weight.device), weight.movedim(self.dim, 0)
        dtype = wider(weight.dtype)
        square = torch.zeros(len(index), device=weight.device, dtype=dtype)
        inner = torch.zeros_like(square)
        for start, stop in spans(len(index), max(1, rows[0].numel())):
            now = rows[index[start:stop]].reshape(stop - start, -1).to(dtype)
            was = now if self.before is None else self.before[start:stop].reshape(stop - start, -1).to(dtype)
            square[start:stop] = was.square().sum(1)
            if self.before is not None:
                inner[start:stop] = (was * (now - was)).sum(1)
        if self.adapter is not None:
            inner += self.adapter.inner(self.dim, self.index.to(self.adapter.a.device)).to(inner)
        return square.cpu(), inner.cpu()

    def learnt(self) -> Tensor:
        """``<x, d>`` alone: of slices that are neither adapted nor trained, nothing is read."""
        if self.adapter is not None and self.before is None:
            return self.adapter.inner(self.dim, self.index.to(self.adapter.a.device)).cpu()
        return torch.zeros(len(self.index)) if self.before is None else self.sums()[1]

    def replace(self, factor: Tensor) -> None:
        """Set the slices to ``factor x + d``, a part of them at a time.

        Args:
            factor: for each structure of the group, by place.
        """
        weight = self.parameter.detach()
        rows, index = weight.movedim(self.dim, 0), self.index.to(weight.device)
        dtype = wider(weight.dtype)
        scale = factor[self.slot].to(weight.device, dtype).reshape(-1, *[1] * (rows.dim() - 1))
        for start, stop in spans(len(index), max(1, rows[:1].numel())):
            part = index[start:stop]
            now = rows[part].to(dtype)
            if self.before is None:
                new = scale[start:stop] * now
            else:
                was = self.before[start:stop].to(dtype)
                new = scale[start:stop] * was + (now - was)
            if self.adapter is not None:
                new += self.adapter.product(self.dim, part.to(self.adapter.a.device)).reshape(new.shape).to(new)
            rows.index_copy_(0, part, new.to(rows.dtype))

    def clear(self) -> None:
        """The adapter's own part is zero: rows of B, columns of A."""
        if self.adapter is not None:
            self.adapter.clear(self.dim, self.index)

    def zero(self, which: Tensor | None = None) -> None:
        """The weight's slices are zero: all, or those of some structures (bool, by place)."""
        index = self.index if which is None else self.index[which[self.slot]]
        self.parameter.data.index_fill_(self.dim, index.to(self.parameter.device), 0)

    def taken(self) -> Tensor:
        """A copy of the slices, shaped as in the weight."""
        return self.parameter.detach().index_select(self.dim, self.index.to(self.parameter.device))

    def put(self, value: Tensor) -> None:
        """Set the slices to what :meth:`taken` returned."""
        weight = self.parameter.data
        weight.index_copy_(self.dim, self.index.to(weight.device), value.to(weight))


Find: TypeAlias = Callable[[Mapping[str, Tensor]], list[Slices]]
"""From group names with LongTensors of structures to the slices of these."""


def slices_of(
    graph: Graph, model: nn.Module, adapters: Mapping[str, LowRank], fading: Mapping[str, Tensor]
) -> list[Slices]:
    """All floating parameter slices of some structures in a live model, adapters' own aside.

    Args:
        graph: the analysis of the model, or of its base without adapters.
        model: the live model.
        adapters: its adapters by path.
        fading: group name to LongTensor of structures.
    """
    return list(_slices(graph, model, adapters, fading))


def _slices(
    graph: Graph, model: nn.Module, adapters: Mapping[str, LowRank], fading: Mapping[str, Tensor]
) -> Iterator[Slices]:
    live, modules = live_names(model), dict(model.named_modules())
    by_base = {(id(one.base), one.leaf): one for one in adapters.values()}
    groups = {g.name: g for g in graph.groups}
    for name, gone in fading.items():
        group = groups[name]
        for member in group.members:
            tensor = graph.tensors[member.name]
            if tensor.kind != "parameter" or not tensor.dtype.is_floating_point or member.name not in live:
                continue
            owner, _, leaf = live[member.name].rpartition(".")
            if "lora_" in live[member.name] or member.name in graph.traced.ranks:
                continue
            own = member.indices[gone]
            slot = torch.full((member.term.size,), -1)
            slot[own.flatten()] = torch.arange(len(gone)).repeat_interleave(own.shape[1])
            index = (slot >= 0).nonzero().flatten()
            module = modules[owner]
            adapter = by_base.get((id(module), leaf))
            if len(index):
                yield Slices(name, live[member.name], module, leaf, member.dim, index, slot[index], adapter)
