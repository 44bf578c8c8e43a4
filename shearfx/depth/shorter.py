"""A shorter model as a folder: for a Hugging Face model an ordinary one with fewer layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from shearfx.analysis import trace
from shearfx.architectures import shapes
from shearfx.checkpoints import save
from shearfx.dropping import drop_layers
from shearfx.errors import ShearError, message
from shearfx.evaluation import parameter_count
from shearfx.graph import Graph
from shearfx.pruning_plan import fingerprint, of_cuts


def write_shorter(
    model: nn.Module,
    graph: Graph,
    paths: Sequence[str],
    out: Path,
    *,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    overwrite: bool = False,
) -> nn.Module:
    """Drop layers and write what is left; the plan beside the weights says which went.

    Args:
        model, graph, paths: as of :func:`shearfx.depth.drop_layers`.
        out: the folder.
        args, kwargs: of an example call.
        tokenizer, overwrite: as of :func:`shearfx.save`.

    Returns:
        The shorter model, which shares its tensors with the full one.

    Raises:
        ShearError: it is no model of transformers, a layer cannot go, or the folder cannot be written.
    """
    if not isinstance(model, PreTrainedModel):
        todo = "use shearfx.depth.drop_layers in Python, and save it as you save the full model"
        raise ShearError(message(f"{type(model).__name__} is no Hugging Face class", where="layers", todo=todo))
    small = drop_layers(model, graph, paths)
    share = 1 - parameter_count(small).total / parameter_count(model).total
    short = trace(small, *args, **(kwargs or {}))
    plan = of_cuts(short, {}, layers=tuple(paths), layers_share=share, full=fingerprint(shapes(model)))
    save(small, plan, out, tokenizer=tokenizer, overwrite=overwrite)
    return small
