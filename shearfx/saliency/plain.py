"""Saliencies that need no data: random numbers, and the size of the weights."""

from __future__ import annotations

import torch

from shearfx.low_rank import spans
from shearfx.saliency.base import Saliency, Scores, register
from shearfx.saliency.evidence import Evidence
from shearfx.slices import precise


@register
class Random(Saliency):
    """Uniform numbers from a seed: the floor that every other proxy has to beat. Needs no weights.

    Source: Mittal et al. 2018 (arXiv 1801.10447), "Recovering from random pruning"; a baseline since.
    """

    name = "random"
    unit = "relative"

    def scores(self, given: Evidence) -> Scores:
        """Independent draws, group after group."""
        generator = torch.Generator().manual_seed(given.seed)
        # drawn for all groups, so that a group's scores do not follow from which others are asked for
        drawn = {g.name: torch.rand(g.size, generator=generator, dtype=torch.float64) for g in given.graph.groups}
        return {g.name: drawn[g.name] for g in given.groups}


@register
class Magnitude(Saliency):
    """The sum of squares of all parameters that go with a structure.

    Source: Han et al. 2015 (arXiv 1506.02626), section 3, for weights; Li et al. 2017 (arXiv 1608.08710), section 3.1,
    for structures (absolute values there), over all of a group as in DepGraph (Fang et al. 2023, arXiv 2301.12900).
    """

    name = "magnitude"
    unit = "relative"

    def scores(self, given: Evidence) -> Scores:
        """One pass over the weights, a part of one parameter at a time."""
        sums = given.sums()
        weights = given.weights(sums)
        for done, (name, weight) in enumerate(weights.items(), start=1):
            rows = weight.detach()
            for start, stop in spans(len(rows), rows[0].numel()):
                sums.add(name, precise(rows[start:stop]).square(), start)
            if given.progress is not None:
                given.progress(done, len(weights))
        return sums.take()
