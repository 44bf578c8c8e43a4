"""Saliencies that read a trained adapter: what LoRA has learnt stands where the gradient stands elsewhere.

With frozen weights ``x`` and the learnt ``d = gamma * B A``, the displacement ``-d`` is what gradients added up to. The
four sums that these proxies are made of (``n``, ``||x||^2``, ``<x, d>``, ``||d||^2`` over all weights of a structure)
come from products of thin matrices; ``BA`` is never formed. Without adapters on the model the gradient itself stands
there: ``d = -gradient`` where a parameter has one, else zero.

Source: LoRAShear, section 3.3, and the authors' earlier optimisers (HESSO, arXiv 2409.09085), whose scores are these.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from shearfx.cuda.choosing import Kernels
from shearfx.errors import PlanError, message
from shearfx.gating.sites import live_names
from shearfx.graph import Graph, Group, Member, coordinates
from shearfx.live_adapters import adapters_of
from shearfx.saliency.along import Key, Place, along_all
from shearfx.saliency.base import Saliency, Scores, register
from shearfx.saliency.evidence import Evidence


@dataclass
class Sums:
    """For every structure of a group, summed over its weights; each float64 ``[size]``."""

    count: Tensor
    weight: Tensor
    """``||x||^2``"""
    inner: Tensor
    """``<x, d>``"""
    delta: Tensor
    """``||d||^2``"""
    adapted: float = 0.0
    """Share of the weights that have an adapter."""


def displacement_sums(
    graph: Graph, model: nn.Module, groups: Iterable[Group], kernels: Kernels = "auto"
) -> dict[str, Sums]:
    """The four sums for every structure, one pass over the weights.

    Where one weight mentions a group in both its dims (``hidden x hidden``), what lies in both slices counts twice.

    Raises:
        PlanError: the model lacks a parameter of the graph, its weights are on the meta device, or an adapter is no
            plain LoRA.
    """
    groups = list(groups)
    adapters = {(id(one.base), one.leaf): one for one in adapters_of(model).values()}
    live, modules = live_names(model), dict(model.named_modules())
    places: dict[Key, Place] = {}
    members: dict[str, list[tuple[Key, Member]]] = {group.name: [] for group in groups}
    for group in groups:
        for member in group.members:
            tensor = graph.tensors[member.name]
            name = live.get(member.name)
            if tensor.kind != "parameter" or not tensor.dtype.is_floating_point or member.name in graph.traced.ranks:
                continue
            if name is None:
                todo = "pass the model that was traced"
                raise PlanError(message(f"this model has no parameter {member.name}", todo=todo))
            key = (name, member.dim)
            members[group.name].append((key, member))
            if key not in places:
                owner, _, leaf = name.rpartition(".")
                module = modules[owner]
                one = adapters.get((id(module), leaf))
                gradient = None if adapters else getattr(module, leaf).grad
                places[key] = Place(module, leaf, member.dim, one, gradient)
    along = along_all(places, kernels)
    return {group.name: _of_group(group, graph, members[group.name], places, along) for group in groups}


def _of_group(
    group: Group,
    graph: Graph,
    members: Iterable[tuple[Key, Member]],
    places: Mapping[Key, Place],
    along: Mapping[Key, tuple[Tensor, Tensor, Tensor]],
) -> Sums:
    """What lies along the weights, added up by structure."""
    zero = torch.zeros(group.size, dtype=torch.float64)
    sums = Sums(zero, zero.clone(), zero.clone(), zero.clone())
    adapted = total = 0
    for key, member in members:
        place, shape = places[key], graph.tensors[member.name].shape
        each = math.prod(shape) // max(1, shape[member.dim])
        where = coordinates(member.term, member.atom)
        here = where >= 0
        where = where[here]
        sums.count.index_add_(0, where, torch.full((len(where),), float(each), dtype=torch.float64))
        for total_of, vector in zip((sums.weight, sums.inner, sums.delta), along[key], strict=True):
            total_of.index_add_(0, where, vector[here])
        total += each * len(where)
        adapted += each * len(where) * (place.adapter is not None or place.gradient is not None)
    sums.adapted = adapted / max(total, 1)
    return sums


def from_sums(name: str, sums: Sums) -> Tensor:
    """A proxy by its name, without the ``lora_``."""
    effective = (sums.weight + 2 * sums.inner + sums.delta).clamp(min=0)
    if name == "magnitude":
        return effective
    if name == "average_magnitude":
        return effective / sums.count.clamp(min=1)
    if name == "cosine":
        return sums.inner.abs() / (sums.weight * sums.delta).sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    if name == "taylor":
        return sums.inner.abs()
    assert name == "taylor2"
    return (sums.inner - 0.5 * sums.inner.square()).abs()


class Learnt(Saliency):
    """What all proxies of this file share."""

    unit = "relative"
    needs_delta: ClassVar[bool] = True

    def scores(self, given: Evidence) -> Scores:
        """One pass over weights and adapters; no data.

        Raises:
            PlanError: there is no model, or nothing was learnt yet where the proxy reads that only.
        """
        sums = displacement_sums(given.graph, given.model, given.groups, self.kernels)
        if self.needs_delta:
            check_learnt(sums, self.name)
        return {name: from_sums(self.name.removeprefix("lora_"), one) for name, one in sums.items()}


def reads_adapters(saliency: object) -> bool:
    """Whether a saliency looks at what adapters hold, which is nothing right after a merge."""
    parts = getattr(saliency, "weights", None)
    names = parts if isinstance(parts, Mapping) else [getattr(saliency, "name", "")]
    return any(str(name).startswith("lora_") for name in names)


def check_learnt(sums: Mapping[str, Sums], what: str) -> None:
    """Raise PlanError where no adapter has learnt anything; warn where most of the weights have none."""
    if not any(bool(one.delta.any()) for one in sums.values()):
        todo = "train adapters first (warmup=), or choose a saliency that looks at weights or data"
        raise PlanError(
            message(f"saliency {what!r} reads what LoRA learnt (or gradients), and that is zero everywhere", todo=todo)
        )
    bare = [name for name, one in sums.items() if one.adapted < 0.5]
    if len(bare) > len(sums) / 2:
        warnings.warn(
            f"{len(bare)} of {len(sums)} groups have adapters on less than half of their weights; saliency {what!r} "
            "sees no others (adapt all linear layers: target_modules='all-linear')",
            stacklevel=2,
        )


@register
class LoraMagnitude(Learnt):
    """``||x + d||^2``: the size of what a structure has become."""

    name = "lora_magnitude"
    needs_delta = False


@register
class LoraAverageMagnitude(Learnt):
    """``||x + d||^2 / n``: the same per weight."""

    name = "lora_average_magnitude"
    needs_delta = False


@register
class LoraCosine(Learnt):
    """``|<x, d>| / (||x|| ||d||)``: whether what was learnt points along the structure."""

    name = "lora_cosine"


@register
class LoraTaylor(Learnt):
    """``|<x, d>|``: first-order Taylor with ``d`` in the gradient's place."""

    name = "lora_taylor"


@register
class LoraTaylor2(Learnt):
    """``|<x, d> - <x, d>^2 / 2|``: second-order Taylor, the curvature by the square of the first order."""

    name = "lora_taylor2"
