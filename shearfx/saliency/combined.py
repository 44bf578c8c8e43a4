"""A weighted mean of other saliencies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from shearfx.errors import PlanError, message
from shearfx.saliency.base import Saliency, Scores, find, register
from shearfx.saliency.evidence import Evidence
from shearfx.saliency.learnt import Learnt, check_learnt, displacement_sums, from_sums


@register
@dataclass(eq=False)
class Combined(Saliency):
    """A weighted mean of relative scores, each divided by its mean over the group first.

    Defaults to the five scores of the authors' code in equal parts.

    Source: LoRAShear (arXiv 2310.18356), section 3.3, and the authors' earlier optimisers (HESSO, arXiv 2409.09085), of
    whose scores it is made: see :mod:`shearfx.saliency.learnt`.
    """

    name: ClassVar[str] = "combined"
    unit = "relative"
    weights: Mapping[str, float] = field(
        default_factory=lambda: {
            "lora_magnitude": 0.2, "lora_average_magnitude": 0.2, "lora_cosine": 0.2, "lora_taylor": 0.2,
            "lora_taylor2": 0.2,
        }
    )  # fmt: skip

    def scores(self, given: Evidence) -> Scores:
        """Every part is scored on its own; parts that need data share one list of batches.

        Raises:
            PlanError: no part, a weight that is not positive, or whatever a part raises.
        """
        if not self.weights or not all(weight > 0 for weight in self.weights.values()):
            raise PlanError(message(f"the weights {dict(self.weights)} are no mixture", todo="name parts with weights"))
        batches = None if given.data is None else list(given.data)
        total = {g.name: torch.zeros(g.size, dtype=torch.float64) for g in given.groups}
        read = None
        for name, weight in self.weights.items():
            part = find(name)
            part.kernels, part.fitting = self.kernels, self.fitting
            part.memory = part.memory if self.memory is None else self.memory
            if isinstance(part, Learnt) and given.module is not None:
                if read is None:
                    read = displacement_sums(given.graph, given.model, given.groups, self.kernels)
                    check_learnt(read, self.name)
                scores = {group: from_sums(name.removeprefix("lora_"), one) for group, one in read.items()}
            else:
                scores = part.scores(replace(given, saliency=part.name, data=batches))
            for group, score in scores.items():
                mean = score.mean()
                total[group] += weight * (score / mean if mean > 0 else score)
        return total
