"""What saliencies look at in a run: windows of text, and the next tokens that Fisher information is about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shearfx.gradients import IGNORED
from shearfx.inference import rows_at_once
from shearfx.pipeline.study import Study
from shearfx.saliency import Saliency
from shearfx.saliency.fisher import Fisher
from shearfx.training.losses import causal_loss, token_loss
from shearfx.training.mixed_precision import mixed_precision

LABELS = 4
"""Beside the run's seed, that of drawn labels."""


class ScoringData:
    """The windows of each choice: others each time, so that none is made by what the one before was made by.

    Args:
        study: the data of the run.
        model: what is cut, still whole: its word on the next tokens is drawn before anything goes.
        proxy: the saliency. Fisher information gets drawn labels, where the configuration says so; all others see text.
        choices: how many there are, cuts or periods.
    """

    def __init__(self, study: Study, model: nn.Module, proxy: Saliency, choices: int) -> None:
        self.config = study.config
        windows = torch.cat(study.batches(self.config.scoring_windows * choices, self.config.seed + 2))
        self._ids = windows.split(self.config.scoring_windows)
        self._labels: list[Tensor] | None = None
        if isinstance(proxy, Fisher) and self.config.scoring_labels == "model":
            generator = torch.Generator(windows.device).manual_seed(self.config.seed + LABELS)
            batches = windows.split(self.config.batch_size)
            labels = torch.cat([drawn_labels(model, ids, generator) for ids in batches])
            self._labels = list(labels.split(self.config.scoring_windows))

    def of(self, choice: int) -> list[Any]:
        """The batches of a choice, from 0: token ids ``[batch, tokens]``, or these with labels."""
        ids = self._ids[choice].split(self.config.batch_size)
        if self._labels is None:
            return list(ids)
        labels = self._labels[choice].split(self.config.batch_size)
        return [{"input_ids": i, "labels": of} for i, of in zip(ids, labels, strict=True)]


def drawn_labels(model: nn.Module, ids: Tensor, generator: torch.Generator) -> Tensor:
    """Next tokens as the model itself would have them, one drawn for each position: with them, the squared gradient of
    the loss is an unbiased estimate of Fisher information, which measures how far the model moves from itself; with
    the text's, tokens that surprise the model drown the rest.

    Args:
        model: a causal language model.
        ids: ``[batch, tokens]``.
        generator: on the device of ``ids``.

    Returns:
        int64 ``[batch, tokens]``, not shifted: at ``t`` what was drawn after ``t - 1``; nothing at 0.

    Source: Kunstner et al. 2019 (arXiv 1905.12558), on the empirical Fisher information and the true one.
    """
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
    parts = logits.split(rows_at_once(logits))
    rows = [torch.multinomial(part.float().softmax(-1), 1, generator=generator).flatten() for part in parts]
    labels = torch.full_like(ids, IGNORED)
    labels[:, 1:] = torch.cat(rows).view(len(ids), -1)
    return labels


def call_loss(model: nn.Module, batch: Any) -> Tensor:
    """Of token ids ``[batch, tokens]``, or these with labels: as in training, which copies no logits to float32."""
    given = {"input_ids": batch, "labels": batch} if isinstance(batch, Tensor) else batch
    return causal_loss(model, given, None, 0.0)


class Moved:
    """How far a model moves from what it says now: the divergence of its next-token distributions, a mean over windows.

    Whether text is predicted worse says less: what a part of a model is for may hardly occur in a few windows, while
    its word changes.

    Args:
        model: as it is.
        batches: token ids ``[batch, tokens]``; the logits of all of them are kept.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Tensor]) -> None:
        self.model = model
        self.said = [(ids, self._logits(ids)) for ids in batches]

    def __call__(self) -> float:
        """Of the model as it has become: nats a token, zero where it says the same."""
        return self._over(self.said)

    def roughly(self) -> float:
        """By a quarter of the windows, one at least."""
        return self._over(self.said[: max(1, len(self.said) // 4)])

    def _over(self, said: Sequence[tuple[Tensor, Tensor]]) -> float:
        found = [ids.numel() * float(token_loss(self._logits(ids), ids, before, 1.0)) for ids, before in said]
        return sum(found) / sum(ids.numel() for ids, _ in said)

    @torch.no_grad()
    def _logits(self, ids: Tensor) -> Tensor:
        with mixed_precision(self.model):
            logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits
