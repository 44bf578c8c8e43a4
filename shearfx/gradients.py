"""Passes over batches for looking at gradients or activations, not for training: nothing of the model is different
afterwards, also after an exception."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils import _pytree as pytree

from shearfx.errors import PlanError, message
from shearfx.tracing import evaluation

Loss: TypeAlias = Callable[[nn.Module, Any], torch.Tensor]
"""From the model and a batch to a scalar."""

IGNORED = -100
"""The label that losses of Hugging Face models leave out."""


@contextlib.contextmanager
def gradients(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    receive: Callable[[str, torch.Tensor, torch.Tensor], None],
) -> Iterator[None]:
    """For the while, every ``backward()`` hands over name, weight and gradient of each of ``weights``, and drops it.

    So there is never more than one gradient beside the model. Frozen weights (a base under LoRA) get gradients too,
    all other parameters none. Evaluation mode. Modes, ``requires_grad`` and ``.grad`` are restored.
    """
    parameters = list(model.parameters())
    before = [(p, p.requires_grad, p.grad) for p in parameters]
    hooks = []

    def hook_of(name: str) -> Callable[[torch.Tensor], None]:
        def hook(parameter: torch.Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            if gradient is not None:
                receive(name, parameter.detach(), gradient)

        return hook

    with torch.inference_mode(False), torch.enable_grad(), evaluation(model):
        try:
            for parameter in parameters:
                parameter.grad = None
                parameter.requires_grad_(False)
            for name, parameter in weights.items():
                parameter.requires_grad_(True)
                hooks.append(parameter.register_post_accumulate_grad_hook(hook_of(name)))
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for parameter, required, gradient in before:
                parameter.requires_grad_(required)
                parameter.grad = gradient


def backward_each(
    model: nn.Module,
    data: Iterable[Any],
    loss: Loss | None,
    what: str,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[int]:
    """One forward and backward pass per batch, to be gone through inside :func:`gradients`.

    Args:
        model: the model.
        data: batches, read once.
        loss: of a batch; by default the model's own.
        what: the saliency that asks, for errors.
        progress: called after each batch with how many there were and are in all (0 where that is not known).

    Yields:
        After each batch: how many there were.

    Raises:
        PlanError: no batches, or a loss that is no finite scalar with a gradient.
    """
    count = 0
    for batch in data:
        value = (loss or batch_loss)(model, batch)
        if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.requires_grad:
            raise PlanError(message("the loss is no scalar with a gradient", todo="return a scalar from loss(...)"))
        if not math.isfinite(float(value.detach())):
            raise PlanError(message(f"the loss of batch {count} is {float(value.detach())}", todo="check the data"))
        value.reshape(()).backward()
        count += 1
        yield count
        _tell(progress, count, data)
    _check_any(count, what)


def forward_each(
    model: nn.Module,
    data: Iterable[Any],
    loss: Loss | None,
    what: str,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """One forward pass per batch in evaluation mode, without gradients, for hooks that look at activations.

    Args: as of :func:`backward_each`; without a loss the model is only called (see :func:`call`).

    Raises:
        PlanError: no batches.
    """
    count = 0
    with torch.no_grad(), evaluation(model):
        for batch in data:
            (loss or call)(model, batch)
            count += 1
            _tell(progress, count, data)
    _check_any(count, what)


def call(model: nn.Module, batch: Any) -> Any:
    """Call a model on a batch: arguments by name, in order (a tuple or list), or one tensor."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


def _tell(progress: Callable[[int, int], None] | None, count: int, data: Iterable[Any]) -> None:
    if progress is not None:
        progress(count, len(data) if isinstance(data, Sized) else 0)


def _check_any(count: int, what: str) -> None:
    if not count:
        raise PlanError(message(f"the data for saliency {what!r} has no batches", todo="pass at least one batch"))


def fed(data: Iterable[Any] | None, what: str) -> Iterable[Any]:
    """The batches.

    Raises:
        PlanError: there are none.
    """
    if data is None:
        raise PlanError(message(f"saliency {what!r} looks at data", todo="pass data=, an iterable of batches"))
    if isinstance(data, (Mapping, torch.Tensor, str)):
        raise PlanError(message(f"data= is one {type(data).__name__}, not batches", todo="pass a list of batches"))
    return data


def batch_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    """The loss that the model itself returns: ``model(**batch).loss``, labels made from ``input_ids`` if missing.

    Args:
        model: a model in the manner of Hugging Face.
        batch: its arguments by name, or a tensor of token ids ``[batch, sequence]``.

    Raises:
        PlanError: the model returns no loss.
    """
    arguments = {"input_ids": batch} if isinstance(batch, torch.Tensor) else dict(batch)
    device = next(model.parameters()).device
    arguments = pytree.tree_map(lambda v: v.to(device) if isinstance(v, torch.Tensor) else v, arguments)
    if "labels" not in arguments and "input_ids" in arguments:
        arguments["labels"] = _labels(arguments)
    try:
        output = model(**arguments)
    except (TypeError, ValueError) as error:
        raise PlanError(message(f"{type(model).__name__} does not take this batch: {error}", todo=_TODO)) from error
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if not isinstance(loss, torch.Tensor):
        raise PlanError(message(f"{type(model).__name__} returns no loss of its own", todo=_TODO))
    return loss.mean()


_TODO = "pass loss=, a function of model and batch that returns a scalar"


def _labels(arguments: Mapping[str, Any]) -> torch.Tensor:
    ids: torch.Tensor = arguments["input_ids"]
    mask = arguments.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.shape == ids.shape:
        return ids.masked_fill(mask.eq(0), IGNORED)
    return ids.clone()
