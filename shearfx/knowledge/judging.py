"""What one forward pass says: its loss, and how far its distributions are from those of the full model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from shearfx.errors import PlanError, message
from shearfx.gradients import IGNORED, Loss
from shearfx.inference import rows_at_once


@dataclass(frozen=True)
class Sums:
    """Of one pass over one batch; sums, so that batches add up."""

    loss: float
    """In nats, times ``weight``."""
    weight: float
    """Predicted tokens; with a loss of the user's, sequences."""
    kl: float = 0.0
    positions: float = 0.0
    """Over which ``kl`` is summed; 0 where there is no distribution."""


@dataclass(frozen=True)
class Result:
    """What a pass returned, as far as it is judged."""

    loss: Tensor | None
    """Scalar; None where it follows from the logits."""
    logits: Tensor | None
    """``[positions, classes]``."""

    def same(self, other: Result) -> bool:
        """Bit for bit."""
        pairs = ((self.loss, other.loss), (self.logits, other.logits))
        return all((a is None) == (b is None) and (a is None or b is None or torch.equal(a, b)) for a, b in pairs)


class Judge:
    """Runs batches and sums up losses and divergences.

    Args:
        model: the model.
        loss: from model and batch to a scalar; None for the cross entropy of the next token.
        kl: whether divergences are asked for.
    """

    def __init__(self, model: nn.Module, loss: Loss | None, kl: bool) -> None:
        self.model, self.loss, self.kl = model, loss, kl
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.options = _no_cache(model)

    def run(self, batch: Any) -> Result:
        """One forward pass.

        Raises:
            PlanError: the model does not take the batch, or returns no logits.
        """
        if self.loss is not None:
            return self._own(batch)
        logits, targets = self._predicted(batch)
        return Result(None, logits[targets != IGNORED])

    def differentiable(self, batch: Any) -> Tensor:
        """The mean loss per token of a batch, for saliencies that go back from it."""
        logits, targets = self._predicted(batch)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)

    def sums(self, batch: Any, result: Result, full: Result | None) -> Sums:
        """Sum up a pass beside that of the full model (None: it is the full model)."""
        reference = None if full is None or not self.kl else full.logits
        if self.loss is None:
            _, targets = self._language(batch)
            assert result.logits is not None
            nll, kl = _distances(result.logits, targets[targets != IGNORED], reference)
            count = float(len(result.logits))
            return Sums(nll, count, kl, count if self.kl else 0.0)
        assert result.loss is not None
        weight = float(_sequences(batch))
        loss = float(result.loss.double()) * weight
        if not self.kl or result.logits is None:
            return Sums(loss, weight)
        _, kl = _distances(result.logits, None, reference)
        return Sums(loss, weight, kl, float(len(result.logits)))

    def _own(self, batch: Any) -> Result:
        assert self.loss is not None
        caught: list[Any] = []
        hook = self.model.register_forward_hook(lambda module, args, output: caught.append(output))
        try:
            value = self.loss(self.model, self._here(batch))
        finally:
            hook.remove()
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise PlanError(message("loss= returns no scalar", todo="return a tensor with one number"))
        logits = _logits(caught[-1]) if caught and self.kl else None
        return Result(value.detach().reshape(()), None if logits is None else logits.detach().flatten(0, -2))

    def _predicted(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Logits ``[batch, tokens, vocabulary]``, and what they are to predict, int64 ``[batch, tokens]``."""
        arguments, targets = self._language(batch)
        name = type(self.model).__name__
        try:
            output = self.model(**(self.options | arguments))
        except (TypeError, ValueError) as error:
            raise PlanError(message(f"{name} does not take this batch: {error}", todo=_TODO)) from error
        logits = _logits(output)
        if logits is None or logits.dim() != 3 or logits.shape[:2] != targets.shape:
            shape = None if logits is None else list(logits.shape)
            what = f"{name} returns {shape}, not logits {[*targets.shape, 'vocabulary']}"
            raise PlanError(message(what, todo=_TODO))
        return logits, targets

    def _here(self, batch: Any) -> Any:
        return pytree.tree_map(lambda v: v.to(self.device) if isinstance(v, Tensor) else v, batch)

    def _language(self, batch: Any) -> tuple[dict[str, Any], Tensor]:
        """The model's arguments, and for each position ``[batch, tokens]`` the token to predict, or -100."""
        if not isinstance(batch, (Tensor, Mapping)):
            raise PlanError(message(f"a batch is a {type(batch).__name__}, not token ids", todo=_TODO))
        arguments = self._here({"input_ids": batch} if isinstance(batch, Tensor) else dict(batch))
        labels, ids = arguments.pop("labels", None), arguments.get("input_ids")
        if getattr(getattr(self.model, "config", None), "is_encoder_decoder", False):
            if labels is None or not {"decoder_input_ids", "decoder_inputs_embeds"} & arguments.keys():
                raise PlanError(
                    message(
                        "batches for an encoder-decoder lack decoder_input_ids or labels",
                        todo="pass both, labels[:, t] being predicted at decoder_input_ids[:, t], or loss=",
                    )
                )
            return arguments, labels
        given = ids if labels is None else labels
        if not isinstance(given, Tensor) or given.dim() != 2:
            raise PlanError(message("batches have neither labels nor input_ids [batch, tokens]", todo=_TODO))
        if labels is None:
            mask = arguments.get("attention_mask")
            masked = isinstance(mask, Tensor) and mask.shape == given.shape
            given = given.masked_fill(mask.eq(0), IGNORED) if masked else given
        targets = torch.full_like(given, IGNORED)
        targets[:, :-1] = given[:, 1:]
        return arguments, targets


_TODO = "pass batches of token ids [batch, tokens], arguments by name, or loss=, a function of model and batch"


def _no_cache(model: nn.Module) -> dict[str, Any]:
    """Caches of keys and values are of no use here, and would be kept beside what is recorded."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    taken = inspect.signature(base.forward).parameters
    return {"use_cache": False} if "use_cache" in taken else {}


def _sequences(batch: Any) -> int:
    tensors = (leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim())
    return next((len(tensor) for tensor in tensors), 1)


def _logits(output: Any) -> Tensor | None:
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif not isinstance(output, Tensor):
        output = getattr(output, "logits", output)
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    usable = isinstance(output, Tensor) and output.dim() > 1 and output.is_floating_point()
    return output if usable else None


def _distances(logits: Tensor, targets: Tensor | None, reference: Tensor | None) -> tuple[float, float]:
    """Sums over positions of -log p(target), where there are targets, and of KL(reference || p), in nats.

    Args:
        logits, reference: ``[positions, classes]``.
        targets: ``[positions]``, int64.
    """
    nll = torch.zeros((), dtype=torch.float64, device=logits.device)
    kl = torch.zeros_like(nll)
    most = rows_at_once(logits)
    for begin in range(0, len(logits), most):
        rows = slice(begin, begin + most)
        log_p = _log_softmax(logits[rows])
        if targets is not None:
            nll += F.nll_loss(log_p, targets[rows], reduction="none").sum(dtype=torch.float64)
        if reference is not None:
            log_q = _log_softmax(reference[rows])
            # where a class is impossible for both there is no distance, and no infinity minus infinity
            apart = torch.where(log_q == -torch.inf, 0.0, log_q - log_p)
            kl += (log_q.exp() * apart).sum(dtype=torch.float64)
    return float(nll), float(kl)


def _log_softmax(logits: Tensor) -> Tensor:
    return F.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)
