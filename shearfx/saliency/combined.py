"""A weighted mean of other saliencies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from shearfx.errors import PlanError, message
from shearfx.gradients import Loss
from shearfx.graph import Graph, Group
from shearfx.saliency.base import Progress, Saliency, Scores, find, register
from shearfx.saliency.learnt import Learnt, check_learnt, displacement_sums, from_sums


@register
@dataclass(eq=False)
class Combined(Saliency):
    """A weighted mean of relative scores, each divided by its mean over the group first.

    Defaults to the five scores of the authors' code in equal parts.
    """

    name: ClassVar[str] = "combined"
    unit = "relative"
    weights: Mapping[str, float] = field(
        default_factory=lambda: {
            "lora_magnitude": 0.2, "lora_average_magnitude": 0.2, "lora_cosine": 0.2, "lora_taylor": 0.2,
            "lora_taylor2": 0.2,
        }
    )  # fmt: skip

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
        """Every part is scored on its own; parts that need data share one list of batches.

        Raises:
            PlanError: no part, a weight that is not positive, or whatever a part raises.
        """
        if not self.weights or not all(weight > 0 for weight in self.weights.values()):
            raise PlanError(message(f"the weights {dict(self.weights)} are no mixture", todo="name parts with weights"))
        batches = None if data is None else list(data)
        chosen = list(graph.groups if groups is None else groups)
        total = {g.name: torch.zeros(g.size, dtype=torch.float64) for g in chosen}
        read = None
        for name, weight in self.weights.items():
            part = find(name)
            if isinstance(part, Learnt) and model is not None:
                if read is None:
                    read = displacement_sums(graph, model, chosen, self.kernels)
                    check_learnt(read, self.name)
                scores = {group: from_sums(name.removeprefix("lora_"), one) for group, one in read.items()}
            else:
                scores = part.score(graph, model, groups=chosen, data=batches, loss=loss, seed=seed, progress=progress)
            for group, score in scores.items():
                mean = score.mean()
                total[group] += weight * (score / mean if mean > 0 else score)
        return total
