"""Gradients for looking at, not for training: nothing of the model is different afterwards, also after an exception."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
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
