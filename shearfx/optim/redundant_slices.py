"""The slices of weights that fading structures own, and how what was learnt lies to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shearfx.gating.sites import live_names
from shearfx.graph import Graph, coordinates
from shearfx.low_rank import LowRank, plain_weight, spans


@dataclass(frozen=True, eq=False)
class Slices:
    """The slices of one dim of one weight that go with some structures of a group."""

    group: str
    module: nn.Module
    leaf: str
    dim: int
    index: Tensor
    """LongTensor ``[n]`` into the dim."""
    slot: Tensor
    """LongTensor ``[n]``: which of the structures each belongs to, by place."""
    adapter: LowRank | None

    @property
    def parameter(self) -> nn.Parameter:
        """The weight itself."""
        found: nn.Parameter = getattr(self.module, self.leaf)
        return found

    def squares(self) -> Tensor:
        """``||x||^2`` of each slice, float32 ``[n]``."""
        return self._inner(None)

    def inner(self, before: Tensor | None = None) -> Tensor:
        """``<x, d>`` of each slice, ``d`` what was learnt: LoRA's product, or what changed since ``before``."""
        if self.adapter is not None:
            return self.adapter.inner(self.dim, self.index.to(self.adapter.a.device)).cpu()
        if before is None:
            return torch.zeros(len(self.index))
        return self._inner(before)

    def taken(self) -> Tensor:
        """A copy of the slices as they are."""
        return self.parameter.detach().index_select(self.dim, self.index.to(self.parameter.device))

    def _inner(self, before: Tensor | None) -> Tensor:
        weight = plain_weight(self.module) if self.leaf == "weight" else self.parameter.detach()
        index = self.index.to(weight.device)
        rows = weight.movedim(self.dim, 0)
        found = torch.empty(len(index), device=weight.device)
        old = None if before is None else before.movedim(self.dim, 0)
        for start, stop in spans(len(index), max(1, rows[0].numel())):
            part = rows[index[start:stop]].reshape(stop - start, -1).float()
            if old is None:
                found[start:stop] = part.square().sum(1)
            else:
                was = old[start:stop].reshape(stop - start, -1).float()
                found[start:stop] = (was * (part - was)).sum(1)
        return found.cpu()


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
    by_base = {id(one.base): one for one in adapters.values()}
    groups = {g.name: g for g in graph.groups}
    for name, gone in fading.items():
        group = groups[name]
        slot_of = torch.full((group.size + 1,), -1)
        slot_of[gone] = torch.arange(len(gone))
        for member in group.members:
            tensor = graph.tensors[member.name]
            if tensor.kind != "parameter" or not tensor.dtype.is_floating_point or member.name not in live:
                continue
            owner, _, leaf = live[member.name].rpartition(".")
            if "lora_" in live[member.name]:
                continue
            slot = slot_of[coordinates(member.term, member.atom)]  # -1 picks the last, which is -1
            index = (slot >= 0).nonzero().flatten()
            module = modules[owner]
            adapter = by_base.get(id(module)) if leaf == "weight" else None
            yield Slices(name, module, leaf, member.dim, index, slot[index], adapter)
