"""What language models are trained by: the next token, and what the full model says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shearfx.gradients import IGNORED
from shearfx.inference import device_of
from shearfx.training.mixed_precision import mixed_precision

Teacher = Callable[[Tensor], Tensor]
"""From token ids ``[batch, tokens]`` to the full model's logits ``[batch, tokens, vocabulary]``, without gradients."""

ROWS = 128
"""Positions whose probabilities are worked out in float32 at a time."""


def token_loss(
    logits: Tensor, labels: Tensor, teacher: Tensor | None = None, distill: float = 0.0, normalizer: float | None = None
) -> Tensor:
    """Next-token loss, mixed with the divergence from a teacher: ``(1 - distill) CE + distill KL(teacher || model)``.

    Probabilities are worked out in float32, a few positions at a time, and their gradient with them, so that no float32
    tensor as large as the logits exists.

    Args:
        logits: ``[batch, tokens, vocabulary]``.
        labels: int64 ``[batch, tokens]``, not shifted; -100 where nothing is to be learnt.
        teacher: the teacher's logits, shaped alike.
        distill: from 0 to 1.
        normalizer: what the sum is divided by (default: the number of labels that count, for a mean).

    Returns:
        A scalar in nats.
    """
    targets = labels[:, 1:].reshape(-1)
    kept = (targets != IGNORED).nonzero().flatten()
    divisor = float(max(len(kept), 1)) if normalizer is None else normalizer
    every = len(kept) == len(targets)
    rows = logits[:, :-1].reshape(-1, logits.shape[-1])
    hints = None if teacher is None or distill == 0 else teacher[:, :-1].reshape(-1, logits.shape[-1])
    if not every:
        rows, targets = rows[kept], targets[kept]
        hints = None if hints is None else hints[kept]
    found: Tensor = _TokenLoss.apply(rows, targets, hints, distill, divisor)  # type: ignore[no-untyped-call]
    return found


def causal_loss(model: nn.Module, batch: Mapping[str, Tensor], teacher: Teacher | None, distill: float) -> Tensor:
    """:func:`token_loss` of a causal language model on ``input_ids`` and ``labels``, moved to where it is."""
    device = device_of(model)
    ids, labels = batch["input_ids"].to(device), batch["labels"].to(device)
    hints = teacher(ids) if teacher is not None and distill > 0 else None
    with mixed_precision(model):
        logits = model(input_ids=ids, use_cache=False).logits
    return token_loss(logits, labels, hints, distill)


class _TokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, teacher: Tensor | None, distill: float, divisor: float
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(logits) if wanted else None
        total = logits.new_zeros((), dtype=torch.float32)
        hard = 1.0 - distill if teacher is not None else 1.0
        for start in range(0, len(logits), ROWS):
            part, at = logits[start : start + ROWS].float(), targets[start : start + ROWS, None]
            log_p = F.log_softmax(part, -1)
            total -= hard * log_p.gather(1, at).sum()
            soft = None
            if teacher is not None:
                log_q = F.log_softmax(teacher[start : start + ROWS].float(), -1)
                soft = log_q.exp()
                total += distill * (soft * (log_q - log_p)).sum()
            if gradient is not None:
                slope = log_p.exp_()
                slope.scatter_add_(1, at, torch.full_like(at, -hard, dtype=slope.dtype))
                if soft is not None:
                    slope.sub_(soft, alpha=distill)
                gradient[start : start + ROWS] = slope.div_(divisor)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total / divisor

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0].to(gradient.dtype), None, None, None, None
