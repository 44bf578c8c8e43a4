"""SparseGPT for structures: what the layers that read a structure lose though all their other weights are refitted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from shearfx.contractions.gathering import Sums, run_and_replay, squares
from shearfx.contractions.patches import patch_size, patch_weights, patches
from shearfx.contractions.products import Product
from shearfx.contractions.replaying import Replay
from shearfx.gating.moments import parted_by
from shearfx.gating.residuals import blocks, inverse, within
from shearfx.gating.sites import GateSite
from shearfx.gradients import call, forward_each
from shearfx.graph import Graph, Group
from shearfx.live_adapters import adapters_of
from shearfx.saliency.base import Saliency, Scores, of_part, register
from shearfx.saliency.evidence import Evidence
from shearfx.saliency.readers import find_readers, unread
from shearfx.saliency.reading import chunks, weight_rows


@register
class SparseGpt(Saliency):
    """``tr(W_s [(H^-1)_ss]^-1 W_s^T)``, summed over the weights ``W`` that read structure ``s``: the squared change of
    their outputs, summed over tokens, when it goes and the rest is refitted by least squares. Weights are those of
    linear layers, convolutions (by patches), each expert, and whatever else is multiplied with a structure and summed.

    ``H`` is the sum of ``x x^T`` over the tokens of the data, damped. The refit itself is
    :func:`shearfx.compensation.compensate_cut`. Each structure is scored as if it went alone; a ratio that is reached
    in several cuts (``ShearConfig.cuts``) scores on what the one before left. Relative: errors of different layers are
    of different scales. Needs data and one forward pass per batch, no gradients.

    Args:
        ridge: share of the mean of the diagonal that is added to it, as of the compensation ("percdamp").
        memory: bytes that the matrices ``[inputs, inputs]`` may take at a time, float32; the data is read once for
            each part of the layers. Beside them, one layer's inverse is held in float64.

    Source: SparseGPT (Frantar and Alistarh 2023, arXiv 2301.00774), equations 2 and 3, with the columns of a structure
    in the place of one weight: ZipLM (Kurtic et al. 2023, arXiv 2302.04089), section 3.1.
    """

    name: ClassVar[str] = "sparsegpt"
    unit = "relative"

    def __init__(self, ridge: float = 1e-2, memory: int | None = 4 * 2**30) -> None:
        self.ridge, self.memory = ridge, memory

    def unseen(self, graph: Graph, model: nn.Module, groups: Sequence[Group]) -> list[Group]:
        """Those that no weight reads."""
        return unread(graph, groups)

    def scores(self, given: Evidence) -> Scores:
        """Forward passes over the batches, for one part of what reads after the other, each of them followed by one on
        the graph where it is more than linear layers; the model is left as it was.

        Args:
            loss: called in the model's place, where the model cannot be called on a batch as it is.

        Raises:
            PlanError: no model or data, a group that no weight reads, or data that calls the model in a way in which
                it cannot be traced.
        """
        readers, model = find_readers(given, last=True), given.model
        replay = Replay(given.graph, model, tuple(readers.products), patches, patch_weights)
        places: list[GateSite | Product] = [*readers.sites, *readers.products]
        parts = parted_by(places, squares, self.memory)
        batches, adapters = given.batches, adapters_of(model)
        batches = list(batches) if len(parts) > 1 else batches
        scores = {name: torch.zeros(g.size, dtype=torch.float64) for name, g in readers.groups.items()}
        for done, part in enumerate(parts):
            tell = given.progress and of_part(given.progress, done, len(parts))
            sums = Sums(part)
            go = run_and_replay(given.loss or call, replay, sums.products, sums.watching, sums.read)
            forward_each(model, batches, go, self.name, tell)
            for site in sums.sites:
                if site.path in sums.inputs:  # no data may have come by an expert
                    precision = inverse(sums.inputs.pop(site.path), self.ridge)
                    for group, where in site.where:
                        _add(scores[group], precision, weight_rows(site, adapters), where)
            for product, found in sums.taken():
                weight = replay.weight(product)
                for number, moments in found.items():
                    shut = (weight[number] == 0).all(0)  # what a cut before took away stands in for nothing
                    moments[shut], moments[:, shut] = 0, 0
                    precision = inverse(moments, self.ridge)
                    for group, where in readers.products[product]:
                        here = where[0 if len(where) == 1 else number].repeat_interleave(patch_size(product))
                        _add(scores[group], precision, chunks(weight[number]), here)
        return scores


def _add(scores: Tensor, precision: Tensor, rows: Iterator[Tensor], where: Tensor) -> None:
    """Add what a layer loses with each structure.

    Args:
        scores: float64 ``[structures]``, added to.
        precision: float64 ``[inputs, inputs]``, the inverse of the damped second moments.
        rows: the layer's weight, some rows ``[rows, inputs]`` at a time.
        where: LongTensor ``[inputs]``, the structure of each, -1 for none.
    """
    left = [(structures, index, within(precision, index)) for structures, index in blocks(where.to(precision.device))]
    for some in rows:
        for structures, index, inner in left:
            read = some.double()[:, index]  # [rows, structures, inputs of one]
            lost = torch.einsum("rsi,sij,rsj->s", read, inner, read)
            scores.index_add_(0, structures.cpu(), lost.cpu())
