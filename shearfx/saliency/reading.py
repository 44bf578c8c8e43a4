"""What saliencies share that look at what reads a structure by weights: at activations and weights, at no gradient."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from transformers.pytorch_utils import Conv1D

from shearfx.contractions.gathering import run_and_replay
from shearfx.contractions.products import Product
from shearfx.contractions.replaying import Replay
from shearfx.gating.moments import FeatureMoments, feature_moments
from shearfx.gating.sites import GateSite, base_layer
from shearfx.gradients import call, forward_each
from shearfx.graph import Graph, Group
from shearfx.live_adapters import adapters_of
from shearfx.low_rank import LowRank, plain_weight, spans, wider
from shearfx.saliency.base import Saliency, Scores
from shearfx.saliency.evidence import Evidence
from shearfx.saliency.readers import find_readers, unread


class Reading(Saliency):
    """A saliency made of a number for each feature of each weight that reads a group: a linear layer's or a
    convolution's inputs, each expert's, or what any other product with parameters sums over."""

    def unseen(self, graph: Graph, model: nn.Module, groups: Sequence[Group]) -> list[Group]:
        """Those that no weight reads."""
        return unread(graph, groups)

    def scores(self, given: Evidence) -> Scores:
        """One forward pass per batch, and one on the graph where groups are read by more than modules; keeps two
        numbers for each feature. The model is left as it was.

        Args:
            loss: called in the model's place, where the model cannot be called on a batch as it is.

        Raises:
            PlanError: no model or data, a group that no weight reads, or data that calls the model in a way in which
                it cannot be traced.
        """
        readers, model = find_readers(given), given.model
        seen: dict[str, FeatureMoments] = {}
        routed: dict[tuple[str, int], FeatureMoments] = {}
        replay = Replay(given.graph, model, tuple(readers.products))

        def read(product: Product, instance: int, rows: Tensor) -> None:
            routed.setdefault((product.key, instance), FeatureMoments.empty(rows.shape[1])).add(rows)

        keys = {product.key for product in readers.products}
        go = run_and_replay(given.loss or call, replay, keys, lambda: feature_moments(readers.sites, seen), read)
        forward_each(model, given.batches, go, self.name, given.progress)
        adapters = adapters_of(model)
        parts: dict[str, list[Tensor]] = {name: [] for name in readers.groups}
        for site in readers.sites:
            if site.path in seen:  # no data may have come by an expert
                features = self.of_features(seen[site.path], weight_rows(site, adapters))
                for group, where in site.where:
                    parts[group].append(self.of_structures(features, where, readers.groups[group].size))
        for product, where_of in readers.products.items():
            numbers = [number for key, number in routed if key == product.key]
            if not numbers:
                continue
            weight = replay.weight(product)
            features = torch.cat(
                [self.of_features(routed[product.key, i], chunks(weight[i])) for i in numbers]
            )  # fmt: skip
            for group, where in where_of:
                here = where[numbers] if product.chosen is None else where.expand(len(numbers), -1)
                parts[group].append(self.of_structures(features, here.flatten(), readers.groups[group].size))
        return {
            name: self.together(torch.stack(of)) if of else torch.zeros(readers.groups[name].size, dtype=torch.float64)
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
    for start, rows in _spans(weight):
        if adapter is not None:
            index = torch.arange(start, start + len(rows), device=adapter.b.device)
            rows = rows + adapter.product(1 if adapter.transposed else 0, index).to(rows)
        yield rows


def chunks(weight: Tensor) -> Iterator[Tensor]:
    """A weight some rows at a time, at least float32."""
    return (rows for _, rows in _spans(weight))


def _spans(weight: Tensor) -> Iterator[tuple[int, Tensor]]:
    for start, stop in spans(len(weight), weight[0].numel()):
        yield start, weight[start:stop].to(wider(weight.dtype))


def by_structure(features: Tensor, where: Tensor, size: int) -> Tensor:
    """The sum over the features of each structure, ``[size]``.

    Args:
        features: ``[inputs]``.
        where: LongTensor ``[inputs]``, the structure of each, -1 for none.
        size: how many structures there are.
    """
    return features.new_zeros(size + 1).index_add_(0, torch.where(where >= 0, where, size), features)[:size]
