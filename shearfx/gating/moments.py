"""Second moments of activations, gathered while a model runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from shearfx.gating.sites import GateSite


@contextlib.contextmanager
def second_moments(sites: Iterable[GateSite]) -> Iterator[dict[str, Tensor]]:
    """For the while, forward passes add ``sum of x x^T`` over all rows of what goes into some modules.

    Args:
        sites: inputs of modules, whose last axis is gated.

    Yields:
        By path of the module: float32 ``[inputs, inputs]``, once it has run.
    """
    sums: dict[str, Tensor] = {}

    def hook_of(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = (args[0] if args else next(iter(kwargs.values()))).detach()
            rows = x.reshape(-1, x.shape[-1]).float()
            if path not in sums:
                sums[path] = torch.zeros(rows.shape[1], rows.shape[1], device=rows.device)
            sums[path].addmm_(rows.T, rows)

        return hook

    hooks = [site.module.register_forward_pre_hook(hook_of(site.path), with_kwargs=True) for site in sites]
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()
