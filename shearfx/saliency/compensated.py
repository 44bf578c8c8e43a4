"""Fisher information along what a structure does and the others cannot take over."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import nn

from shearfx.gating.collector import Collector
from shearfx.gating.gates import Gates
from shearfx.gating.moments import second_moments
from shearfx.gating.residuals import ResidualCollector, projections
from shearfx.gating.sites import GateSite
from shearfx.gradients import Loss
from shearfx.graph import Group
from shearfx.saliency.base import Scores, of_part, register
from shearfx.saliency.evidence import Evidence
from shearfx.saliency.fisher import Fisher, sizes_of
from shearfx.tracing import evaluation


@register
class CompensatedFisher(Fisher):
    """The sum over sequences of the squared derivative of the loss along what is lost with a structure, where the
    layers that read it are refitted by least squares afterwards (:func:`shearfx.compensation.compensate_cut`).

    A structure that others can stand in for costs little, however much of the loss goes through it. In units of loss.
    Needs data, and reads it twice: once for the second moments of what linear layers read (``fitting`` in its place,
    where there is some), once for the gradients.
    Beside ``fisher`` it takes memory for ``[inputs, inputs]`` of those layers, and one product of that size a layer.

    Args:
        ridge: share of the mean of the diagonal, as of the compensation.
        memory: bytes that moments may take at a time; beyond them, layers are scored part by part, and the data is
            read twice for each. At least one layer's are taken.

    Source: of its own; the direction is that of the Optimal Brain Surgeon (Hassibi and Stork 1993, equation 5) on
    the inputs of a layer, as in SparseGPT (arXiv 2301.00774), in the measure of Theis et al. 2018 (arXiv 1801.05787).
    """

    name: ClassVar[str] = "compensated_fisher"
    weights: ClassVar[bool] = False  # what fused experts cannot take over is not worked out

    def __init__(self, ridge: float = 1e-2, memory: int | None = 4 * 2**30) -> None:
        self.ridge, self.memory = ridge, memory

    def scores(self, given: Evidence) -> Scores:
        """Run the batches, for one part of the layers after the other; the model is left as it was."""
        gates = Gates(given.graph, given.model, given.groups)
        batches = list(given.batches)
        scores: Scores = {}
        parts = self._parts(gates)
        for done, part in enumerate(parts):
            tell = given.progress and of_part(given.progress, done, len(parts))
            scores |= super().scores(replace(given, groups=part, data=batches, progress=tell))
        return scores

    def _parts(self, gates: Gates) -> list[list[Group]]:
        """Groups in parts whose moments and projections take no more than the memory."""
        sizes = dict.fromkeys(gates.groups, 0)
        for site in _linear(gates):
            for name, _ in site.where:
                sizes[name] += 2 * 4 * site.size**2
        parts: list[list[Group]] = []
        left = 0
        for name, group in gates.groups.items():
            if not parts or sizes[name] > left:
                parts.append([])
                left = self.memory if self.memory is not None else sum(sizes.values())
            parts[-1].append(group)
            left -= sizes[name]
        return parts

    def _collector(self, gates: Gates, model: nn.Module, batches: Iterable[Any], loss: Loss) -> Collector:
        with second_moments(_linear(gates)) as moments, torch.no_grad(), evaluation(model):
            for batch in batches if self.fitting is None else self.fitting:
                loss(model, batch)
        return ResidualCollector(sizes_of(gates), projections(_linear(gates), moments, self.ridge))


def _linear(gates: Gates) -> list[GateSite]:
    return [site for site in gates.places.sites if site.side == "in" and site.axis == -1]
