"""What saliencies share that look at the layers which read a structure: at their inputs and their weights, at no
gradient."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvTransposeNd
from transformers.pytorch_utils import Conv1D

from shearfx.errors import PlanError, message
from shearfx.gating.gates import Gates
from shearfx.gating.moments import FeatureMoments, feature_moments
from shearfx.gating.sites import GateSite, base_layer
from shearfx.gradients import forward_each
from shearfx.low_rank import LowRank, adapters_of, plain_weight, spans, wider
from shearfx.saliency.base import Saliency, Scores
from shearfx.saliency.evidence import Evidence
from shearfx.saliency.fisher import check_seen


class Reading(Saliency):
    """A saliency made of a number for each input feature of each layer that reads a group."""

    def scores(self, given: Evidence) -> Scores:
        """One forward pass per batch; keeps two numbers for each feature. The model is left as it was.

        Args:
            loss: called in the model's place, where the model cannot be called on a batch as it is.

        Raises:
            PlanError: no model or data, or a group that something else than weights reads.
        """
        gates = reading_gates(given)
        batches, sites = given.batches, gates.places.sites
        with feature_moments(sites) as seen:
            forward_each(gates.model, batches, given.loss, self.name, given.progress)
        adapters = adapters_of(gates.model)
        parts: dict[str, list[Tensor]] = {name: [] for name in gates.groups}
        for site in sites:
            if site.path in seen:  # no data may have come by an expert
                features = self.of_features(seen[site.path], weight_rows(site, adapters))
                for group, where in site.where:
                    parts[group].append(self.of_structures(features, where, gates.groups[group].size))
        return {
            name: self.together(torch.stack(of)) if of else torch.zeros(gates.groups[name].size, dtype=torch.float64)
            for name, of in parts.items()
        }

    @abstractmethod
    def of_features(self, seen: FeatureMoments, rows: Iterator[Tensor]) -> Tensor:
        """A number for each input feature of a layer, float64 ``[inputs]``.

        Args:
            seen: what the layer read.
            rows: its weight, some rows at a time (see :func:`weight_rows`).
        """

    def of_structures(self, features: Tensor, where: Tensor, size: int) -> Tensor:
        """A number for each structure, ``[size]``: the sum over its features."""
        return by_structure(features, where, size)

    def together(self, scores: Tensor) -> Tensor:
        """The score of each structure from those at all layers that read it, ``[layers, size]``: their sum."""
        return scores.sum(0)


def reading_gates(given: Evidence) -> Gates:
    """Gates, not attached, of groups that are read by weights everywhere; their places are inputs only.

    Raises:
        PlanError: there is no model, it has no weights, or something else reads a group.
    """
    gates = Gates(given.graph, given.model, given.groups)
    check_seen(gates, given.saliency)
    for site in gates.places.sites:
        weight = getattr(base_layer(site.module), "weight", None)
        if isinstance(weight, Tensor) and weight.is_meta:
            what = f"saliency {given.saliency!r} looks at weights, and {site.path} is on the meta device"
            raise PlanError(message(what, todo="load the weights, or choose saliency='random'"))
    return gates


def weight_rows(site: GateSite, adapters: Mapping[str, LowRank]) -> Iterator[Tensor]:
    """The weight of a layer with what its adapter adds, some rows at a time: ``[rows, inputs, ...]``, at least float32.

    Args:
        site: the input of the layer.
        adapters: of the model, by path.
    """
    module, adapter = base_layer(site.module), adapters.get(site.path)
    weight = plain_weight(module)
    if isinstance(module, Conv1D):
        weight = weight.T
    elif isinstance(module, _ConvTransposeNd):
        weight = weight.transpose(0, 1)
    for start, stop in spans(len(weight), weight[0].numel()):
        rows = weight[start:stop].to(wider(weight.dtype))
        if adapter is not None:
            index = torch.arange(start, stop, device=adapter.b.device)
            rows = rows + adapter.product(1 if adapter.transposed else 0, index).to(rows)
        yield rows


def by_structure(features: Tensor, where: Tensor, size: int) -> Tensor:
    """The sum over the features of each structure, ``[size]``.

    Args:
        features: ``[inputs]``.
        where: LongTensor ``[inputs]``, the structure of each, -1 for none.
        size: how many structures there are.
    """
    return features.new_zeros(size + 1).index_add_(0, torch.where(where >= 0, where, size), features)[:size]
