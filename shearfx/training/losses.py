"""What language models are trained by: the next token, and what the full model says of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from shearfx.gradients import IGNORED
from shearfx.inference import device_of, rows_at_once
from shearfx.training.mixed_precision import mixed_precision

Teacher = Callable[[Tensor], Tensor]
"""From token ids ``[batch, tokens]`` to the full model's logits ``[batch, tokens, vocabulary]``, without gradients."""


def token_loss(
    logits: Tensor, labels: Tensor, teacher: Tensor | None = None, distill: float = 0.0, normalizer: float | None = None
) -> Tensor:
    """Next-token loss, mixed with the divergence from a teacher: ``(1 - distill) CE + distill KL(teacher || model)``.

    Probabilities are worked out in float32, a few positions at a time, and their gradient with them, so that no float32
    tensor as large as the logits exists, and no second copy of logits.

    Args:
        logits: ``[batch, tokens, vocabulary]``.
        labels: int64 ``[batch, tokens]``, not shifted; -100 where nothing is to be learnt.
        teacher: the teacher's logits, shaped alike.
        distill: from 0 to 1.
        normalizer: what the sum is divided by (default: the number of labels that count, for a mean).

    Returns:
        A scalar in nats.
    """
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED).reshape(-1)
    kept = (targets != IGNORED).nonzero().flatten()
    divisor = float(max(len(kept), 1)) if normalizer is None else normalizer
    hints = None if teacher is None or distill == 0 else teacher.reshape(-1, teacher.shape[-1])
    rows = logits.reshape(-1, logits.shape[-1])
    found: Tensor = _TokenLoss.apply(rows, targets, kept, hints, distill, divisor)  # type: ignore[no-untyped-call]
    return found


def scratch_bytes(positions: int, vocabulary: int, device: torch.device, taught: bool) -> int:
    """What :func:`token_loss` takes beside logits and their gradient, however many positions there are: a few of them
    in float32, of the teacher's logits too."""
    rows = min(positions, rows_at_once(torch.empty(0, vocabulary, device=device)))
    return (3 if taught else 1) * rows * vocabulary * torch.float32.itemsize


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
        ctx: Any, logits: Tensor, targets: Tensor, kept: Tensor, teacher: Tensor | None, distill: float, divisor: float
    ) -> Tensor:
        hard = 1.0 - distill if teacher is not None else 1.0
        total = logits.new_zeros((), dtype=torch.float32)
        ctx.dtype = logits.dtype
        # in float16 most of it would be zero before a gradient scaler multiplies it
        kept_in = torch.float32 if logits.dtype == torch.float16 else logits.dtype
        gradient = torch.empty_like(logits, dtype=kept_in) if ctx.needs_input_grad[0] else None
        if gradient is not None:
            gradient[targets == IGNORED] = 0
        for where in _parts(kept, rows_at_once(logits)):
            at = targets[where, None]
            model, q = _from_largest(logits[where]), None
            total -= hard * model.gather(1, at).sum()
            if teacher is not None:
                hint = _from_largest(teacher[where])
                q = hint.exp()
                sums = q.sum(-1, keepdim=True)
                q.div_(sums)
                apart = hint.sub_(model).masked_fill_(
                    q == 0, 0
                )  # what is impossible is no distance, whatever its logit
                total += distill * (torch.linalg.vecdot(q, apart).sum() - sums.log().sum())
            p = model.exp_()
            sums = p.sum(-1, keepdim=True)
            total += sums.log().sum()
            if gradient is not None:
                p.div_(sums).scatter_add_(1, at, torch.full_like(at, -hard, dtype=p.dtype))
                if q is not None:
                    p.sub_(q, alpha=distill)
                gradient[where] = p.div_(divisor).to(gradient.dtype)
        ctx.save_for_backward(gradient)
        return total / divisor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        (by,) = gradients
        if by.device.type != "cpu" or by != 1:  # to look at it elsewhere waits for the device
            gradient = (gradient * by).to(ctx.dtype)
        return gradient.to(ctx.dtype), None, None, None, None, None


def _parts(kept: Tensor, most: int) -> Iterator[slice | Tensor]:
    """Positions, some at a time; those that lie side by side as a slice, which copies nothing."""
    for some in kept.split(most):
        if len(some):
            first, last = some[[0, -1]].tolist()
            yield slice(first, last + 1) if last - first + 1 == len(some) else some


def _from_largest(logits: Tensor) -> Tensor:
    """In float32, less the largest of each row, so that no exponential overflows."""
    found = logits.to(torch.float32, copy=True)
    return found.sub_(found.amax(-1, keepdim=True))
