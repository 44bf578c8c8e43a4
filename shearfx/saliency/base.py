"""Saliency: what each structure is worth, by a proxy that was chosen beforehand. One interface, a registry by name.

A new proxy is a class and a decorator::

    @register
    class Wanda(Saliency):
        name, unit = "wanda", "relative"

        def scores(self, given):
            return {group.name: ... for group in given.groups}  # by given.model, given.batches

Source: LoRAShear, section 3.3 ("prespecified saliency proxies"), and the comparison methods there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, TypeAlias, get_args

import torch
from torch import nn

from shearfx.cuda.choosing import Kernels
from shearfx.errors import PlanError, message
from shearfx.gradients import Loss
from shearfx.graph import Graph, Group
from shearfx.saliency.evidence import Evidence, Progress
from shearfx.spending import Ranking

Scores: TypeAlias = dict[str, torch.Tensor]
"""Group name to a float64 tensor ``[size]``: the higher, the more is lost with the structure."""


class Saliency(ABC):
    """A proxy for what the model loses with a structure."""

    name: ClassVar[str]
    unit: ClassVar[Ranking]
    """``loss``: scores estimate a change of the loss, so structures of all layers and kinds compare, per unit of
    cost. ``relative``: they order the structures of one group and say nothing across layers and kinds.
    ``standardised``: structures of all layers and kinds compare as they are, whatever they cost."""
    memory: int | None = None
    """Bytes that it may take at a time beside the model and its activations, where it can do with less."""
    kernels: Kernels = "auto"
    """Whether CUDA kernels read weights and adapters, where they can (see :mod:`shearfx.cuda.choosing`)."""
    fitting: Sequence[Any] | None = None
    """Batches for what is found without gradients, where that is cheaper: second moments. None: the data itself."""

    @abstractmethod
    def scores(self, given: Evidence) -> Scores:
        """Score every structure of ``given.groups``.

        Raises:
            PlanError: weights, data or a loss are needed and not there.
        """

    def unseen(self, graph: Graph, model: nn.Module, groups: Sequence[Group]) -> list[Group]:
        """Those of some groups that it cannot score, whatever the data: :meth:`scores` refuses them."""
        return []

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
        asked = list(graph.groups if groups is None else groups)
        return self.scores(Evidence(self.name, graph, model, asked, data, loss, seed, progress))


REGISTRY: dict[str, type[Saliency]] = {}
"""Every saliency by name."""


def register(kind: type[Saliency]) -> type[Saliency]:
    """Class decorator: make a saliency known by its name.

    Raises:
        ValueError: there is no such unit.
    """
    if kind.unit not in get_args(Ranking):
        raise ValueError(f"{kind.__name__}.unit is {kind.unit!r}; it is one of {', '.join(get_args(Ranking))}")
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


def of_part(progress: Progress, part: int, parts: int) -> Progress:
    """What tells of one part of the work as a share of all, where each part goes through the same batches."""
    return lambda done, of: progress(part * of + done, parts * of)


def refuse_unseen(groups: Iterable[Group], what: str, among: Iterable[Group] = ()) -> None:
    """Raise PlanError that names the groups which a saliency does not see, if there are any.

    Args:
        groups: which it does not see.
        what: the saliency.
        among: the groups that it was asked for, of which the message says what is left.
    """
    unseen = list({g.name: g for g in groups}.values())
    if unseen:
        kinds = sorted({g.kind for g in unseen})
        left = sorted({g.kind for g in among} - set(kinds))
        listed = ", ".join(g.name for g in unseen[:3]) + (", ..." if len(unseen) > 3 else "")
        modules = sorted({m.name.rpartition(".")[0] for g in unseen[:3] for m in g.members[:1]})
        way = f"kinds={left}" if left else f"exclude={modules}" if len(unseen) <= 3 else "exclude=, by their modules"
        raise PlanError(
            message(
                f"saliency {what!r} does not see {len(unseen)} groups of kind {', '.join(kinds)}: {listed}",
                todo=f"leave them out ({way}), or choose 'taylor' or 'magnitude'",
            )
        )
