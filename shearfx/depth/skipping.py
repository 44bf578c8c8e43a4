"""A live model with layers that are passed by, for a while: the stream goes on as it came."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree


@contextlib.contextmanager
def skipping(model: nn.Module, paths: Iterable[str]) -> Iterator[None]:
    """For the while, each layer hands on the stream as it came: what the model computes without them.

    The layers still run, so that this saves no time; what else they return, such as keys and values, stays theirs.

    Args:
        model: left as it was.
        paths: of layers that :func:`shearfx.depth.find_layers` found.
    """
    hooks = [model.get_submodule(path).register_forward_hook(_past, with_kwargs=True) for path in paths]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def stream_of(values: Any) -> Tensor:
    """The stream among the arguments or results of a layer: the first floating tensor."""
    return next(t for t in pytree.tree_leaves(values) if isinstance(t, Tensor) and t.is_floating_point())


def _past(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    leaves, spec = pytree.tree_flatten(output)
    leaving = stream_of(output)
    at = next(i for i, leaf in enumerate(leaves) if leaf is leaving)
    leaves[at] = stream_of((args, kwargs))
    return pytree.tree_unflatten(leaves, spec)
