"""Saliency: what each structure is worth, by a proxy that was chosen beforehand. One interface, a registry by name.

A new proxy is a class and a decorator::

    @register
    class Wanda(Saliency):
        name, unit = "wanda", "relative"

        def score(self, graph, model, *, groups=None, data=None, loss=None, seed=0, progress=None): ...

Source: LoRAShear, section 3.3 ("prespecified saliency proxies"), and the comparison methods there.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import nn

from shearfx.errors import PlanError, message
from shearfx.gradients import Loss, batch_loss, fed, gradients
from shearfx.graph import Graph, Group
from shearfx.slices import SliceSums, precise

Scores: TypeAlias = dict[str, torch.Tensor]
"""Group name to a float64 tensor ``[size]``: the higher, the more is lost with the structure."""

Progress: TypeAlias = Callable[[int, int], None]
"""Called with what is done and what there is in all (0 where that is not known)."""


class Saliency(ABC):
    """A proxy for what the model loses with a structure."""

    name: ClassVar[str]
    unit: ClassVar[Literal["loss", "relative"]]
    """``loss``: scores estimate a change of the loss, so structures of all layers and kinds compare, per unit of
    cost. ``relative``: they order the structures of one group and say nothing across layers and kinds."""

    @abstractmethod
    def score(
        self,
        graph: Graph,
        model: nn.Module | None,
        *,
        groups: Sequence[Group] | None = None,
        data: Iterable[Any] | None = None,
        loss: Loss | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Scores:
        """Score every structure of ``groups`` (default: all of ``graph.groups``).

        Args:
            graph: the analysis of the model.
            model: the model with its weights; left as it was, also after an exception.
            groups: the groups to score.
            data: batches, for proxies that look at data; read once, one after the other.
            loss: from model and batch to a scalar, for proxies that need one.
            seed: for proxies that draw.
            progress: called as work gets done.

        Raises:
            PlanError: weights, data or a loss are needed and not there.
        """


REGISTRY: dict[str, type[Saliency]] = {}
"""Every saliency by name."""


def register(kind: type[Saliency]) -> type[Saliency]:
    """Class decorator: make a saliency known by its name.

    Raises:
        ValueError: its unit is neither ``loss`` nor ``relative``.
    """
    if kind.unit not in ("loss", "relative"):
        raise ValueError(f"{kind.__name__}.unit is {kind.unit!r}; it is 'loss' or 'relative'")
    REGISTRY[kind.name] = kind
    return kind


def find(saliency: str | Saliency) -> Saliency:
    """A saliency by name, or the given one.

    Raises:
        PlanError: there is none of that name.
    """
    if isinstance(saliency, Saliency):
        return saliency
    if saliency not in REGISTRY:
        known = ", ".join(sorted(REGISTRY))
        raise PlanError(message(f"there is no saliency {saliency!r}", todo=f"choose one of {known}, or register yours"))
    return REGISTRY[saliency]()


@register
class Random(Saliency):
    """Uniform numbers from a seed: the floor that every other proxy has to beat. Needs no weights."""

    name = "random"
    unit = "relative"

    def score(
        self,
        graph: Graph,
        model: nn.Module | None,
        *,
        groups: Sequence[Group] | None = None,
        data: Iterable[Any] | None = None,
        loss: Loss | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Scores:
        """Independent draws, group after group."""
        generator = torch.Generator().manual_seed(seed)
        # drawn for all groups, so that a group's scores do not follow from which others are asked for
        drawn = {g.name: torch.rand(g.size, generator=generator, dtype=torch.float64) for g in graph.groups}
        return {g.name: drawn[g.name] for g in (graph.groups if groups is None else groups)}


@register
class Magnitude(Saliency):
    """The sum of squares of all parameters that go with a structure."""

    name = "magnitude"
    unit = "relative"

    def score(
        self,
        graph: Graph,
        model: nn.Module | None,
        *,
        groups: Sequence[Group] | None = None,
        data: Iterable[Any] | None = None,
        loss: Loss | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Scores:
        """One pass over the weights, one parameter at a time."""
        sums = SliceSums(graph, graph.groups if groups is None else groups)
        weights = weights_of(model, sums, self.name)
        for done, (name, weight) in enumerate(weights.items(), start=1):
            sums.add(name, precise(weight.detach()).square())
            if progress is not None:
                progress(done, len(weights))
        return sums.take()


@register
class Taylor(Saliency):
    """First-order Taylor: ``|sum(weight * gradient)|`` over all weights of a structure, averaged over batches.

    Estimates how the loss changes when the structure is set to zero. The sign is dropped per batch, after the sum over
    the structure ("vector-wise" in LLM-Pruner).

    Source: Molchanov et al. 2019 (arXiv 1906.10771), equation 8; LLM-Pruner (Ma et al. 2023), section 3.2.
    """

    name = "taylor"
    unit = "loss"

    def score(
        self,
        graph: Graph,
        model: nn.Module | None,
        *,
        groups: Sequence[Group] | None = None,
        data: Iterable[Any] | None = None,
        loss: Loss | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Scores:
        """One forward and backward pass per batch, in evaluation mode; a gradient is used and dropped as it comes."""
        sums = SliceSums(graph, graph.groups if groups is None else groups)
        weights = weights_of(model, sums, self.name)
        batches = fed(data, self.name)
        assert model is not None
        total: Scores = {name: torch.zeros_like(s) for name, s in sums.sums.items()}
        count = 0

        def receive(name: str, weight: torch.Tensor, gradient: torch.Tensor) -> None:
            sums.add(name, precise(weight) * precise(gradient))

        with gradients(model, weights, receive):
            for batch in batches:
                value = (loss or batch_loss)(model, batch)
                if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.requires_grad:
                    raise PlanError(
                        message("the loss is no scalar with a gradient", todo="return a scalar from loss(...)")
                    )
                if not math.isfinite(float(value.detach())):
                    raise PlanError(
                        message(f"the loss of batch {count} is {float(value.detach())}", todo="check the data")
                    )
                value.reshape(()).backward()
                for name, signed in sums.take().items():
                    total[name] += signed.abs()
                count += 1
                if progress is not None:
                    progress(count, len(data) if hasattr(data, "__len__") else 0)  # type: ignore[arg-type]
        if count == 0:
            raise PlanError(message("the data for saliency 'taylor' has no batches", todo="pass at least one batch"))
        return {name: score / count for name, score in total.items()}


def weights_of(model: nn.Module | None, sums: SliceSums, what: str) -> Mapping[str, nn.Parameter]:
    """The parameters that some group mentions, by one name each.

    Raises:
        PlanError: there is no model, or its weights are on the meta device.
    """
    if model is None:
        raise PlanError(message(f"saliency {what!r} looks at weights", todo="pass model=, or saliency='random'"))
    found = {name: p for name, p in model.named_parameters() if name in sums.names}
    for name, parameter in found.items():
        if parameter.is_meta:
            raise PlanError(
                message(
                    f"saliency {what!r} looks at weights, and {name} is on the meta device",
                    todo="load the weights, or choose saliency='random'",
                )
            )
    return found
