"""LLM-Pruner's importances: first and second order of Taylor, by element or by vector, summed over a group's layers.

What the original calls ``param_first`` and ``param_mix`` (element) and ``vectorize`` (vector, first order). Every
parameter of a group counts, biases too, as a layer of its own; the original's models have none.

The original backpropagates one mean loss over all samples, so a sign is dropped after the mean over batches. By vector
that takes a number for each structure and layer, added up as gradients come and are dropped. By element it takes the
mean gradient of every single weight: those are added up for one part of the layers after the other, within ``memory``,
and the data is read once for each part. So both give the original's numbers, however the data is cut into batches
(of equal numbers of tokens; the Fisher information is that of batches, hence the original's with one sample each).

Source: LLM-Pruner (Ma et al. 2023, arXiv 2305.11627), section 3.2, equations 3 to 5 and "summation" of section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from shearfx.gradients import backward_each, gradients
from shearfx.low_rank import spans
from shearfx.saliency.base import Saliency, Scores, of_part, register
from shearfx.saliency.evidence import Evidence
from shearfx.slices import SliceSums, precise


class _Vector(Saliency):
    unit = "loss"
    second: ClassVar[bool]

    def scores(self, given: Evidence) -> Scores:
        """One forward and backward pass per batch, in evaluation mode; a gradient is used and dropped as it comes."""
        sums = given.sums()
        weights, batches = given.weights(sums), given.batches
        first: dict[tuple[str, str], Tensor] = {}
        second: dict[tuple[str, str], Tensor] = {}

        def receive(name: str, weight: Tensor, gradient: Tensor) -> None:
            sums.add(name, precise(weight) * precise(gradient))
            for group, along in sums.take(name).items():
                first.setdefault((group, name), torch.zeros_like(along)).add_(along)
                second.setdefault((group, name), torch.zeros_like(along)).add_(along.square())

        count = 0
        with gradients(given.model, weights, receive):
            for count in backward_each(given.model, batches, given.loss, self.name, given.progress):  # noqa: B007
                pass
        scores = sums.take()
        for (group, name), along in first.items():
            curvature = second[group, name] if self.second else torch.zeros_like(along)
            scores[group] += (along - 0.5 * curvature).abs() / count
        return scores


@register
class LlmPrunerVector1(_Vector):
    """``sum over layers |w . g|``, the dot product over the slice that a structure has of a layer.

    Estimates a change of the loss (the original ranks within each layer: ``scope="uniform"``). Needs data and a loss;
    memory for one gradient at a time.

    Source: LLM-Pruner (arXiv 2305.11627), equation 3, first term.
    """

    name = "llm_pruner_vector1"
    second = False


@register
class LlmPrunerVector2(_Vector):
    """``sum over layers |w . g - w F w / 2|`` with the Fisher matrix ``F`` of a layer's slice, the mean of ``g_b g_b``
    over batches ``b``.

    The paper states the term and leaves it out, as the Hessian is too large; ``w F w`` is the mean of ``(w . g_b)^2``,
    which takes no matrix. In units of loss; needs data and a loss; memory for one gradient at a time.

    Source: LLM-Pruner (arXiv 2305.11627), equation 3, with the Hessian as in equation 5.
    """

    name = "llm_pruner_vector2"
    second = True


class _Element(Saliency):
    unit = "loss"
    second: ClassVar[bool]

    def __init__(self, memory: int | None = 2 * 2**30) -> None:
        self.memory = memory

    def scores(self, given: Evidence) -> Scores:
        """One forward and backward pass per batch and part of the layers, in evaluation mode."""
        sums = given.sums()
        parts, batches = self._parts(given.weights(sums)), given.batches
        batches = list(batches) if len(parts) > 1 else batches
        for done, part in enumerate(parts):
            tell = given.progress and of_part(given.progress, done, len(parts))
            self._part(sums, given.model, part, backward_each(given.model, batches, given.loss, self.name, tell))
        return sums.take()

    def _part(self, sums: SliceSums, model: nn.Module, part: Mapping[str, nn.Parameter], passes: Iterable[int]) -> None:
        first: dict[str, Tensor] = {}
        second: dict[str, Tensor] = {}

        def receive(name: str, weight: Tensor, gradient: Tensor) -> None:
            gradient = precise(gradient)
            if self.second:
                second[name] = second[name].addcmul_(gradient, gradient) if name in second else gradient.square()
            first[name] = first[name].add_(gradient) if name in first else gradient

        count = 0
        with gradients(model, part, receive):
            for count in passes:  # noqa: B007
                pass
        for name, total in first.items():
            weight = part[name].detach()
            for start, stop in spans(len(weight), weight[0].numel()):
                rows = precise(weight[start:stop])
                change = rows * total[start:stop] / count
                if self.second:
                    change -= 0.5 * rows.square() * second[name][start:stop] / count
                sums.add(name, change.abs(), start)

    def _parts(self, weights: Mapping[str, nn.Parameter]) -> list[dict[str, nn.Parameter]]:
        """Weights in parts whose sums of gradients take no more than the memory (but one weight at least)."""
        parts: list[dict[str, nn.Parameter]] = []
        left = 0.0
        for name, weight in weights.items():
            size = (2 if self.second else 1) * max(4, weight.element_size()) * weight.numel()
            if not parts or size > left:
                parts.append({})
                left = float("inf") if self.memory is None else self.memory
            parts[-1][name] = weight
            left -= size
        return parts


@register
class LlmPrunerElement1(_Element):
    """``sum |w_k g_k|`` over all weights of a structure.

    In units of loss, of which it is an upper bound (the original ranks within each layer: ``scope="uniform"``). Needs
    data and a loss.

    Args:
        memory: bytes that sums of gradients may take at a time, float32; the data is read once for each part of the
            layers.

    Source: LLM-Pruner (arXiv 2305.11627), equation 4, first term (``param_first``).
    """

    name = "llm_pruner_element1"
    second = False


@register
class LlmPrunerElement2(_Element):
    """``sum |w_k g_k - w_k^2 F_kk / 2|`` over all weights of a structure, ``F_kk`` the mean of the squared gradients of
    batches: give batches of one sample each, as the original does.

    In units of loss. Needs data and a loss.

    Args:
        memory: bytes that sums of gradients and of their squares may take at a time, float32; the data is read once
            for each part of the layers.

    Source: LLM-Pruner (arXiv 2305.11627), equations 4 and 5 (``param_mix``).
    """

    name = "llm_pruner_element2"
    second = True
