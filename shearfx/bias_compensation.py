"""Compensation by biases at the cut: the layers that read what goes get what they read of it on average, as a bias.

A layer that reads a cut group computes ``y = W x``; without the removed inputs ``R`` it gives
``W_S x_S + W_R mean(x_R)``, so its mean output over the calibration data stays. What does not vary is replaced whole,
which is what FLAP's saliency ranks by. Linear layers without a bias get one, which the configuration of a model cannot
state: :func:`shearfx.save` writes down which, and :func:`shearfx.load` makes them.

Source: FLAP (An et al. 2023, arXiv 2312.11983), "baseline bias compensation".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from shearfx.compensation import LinearReaders, Run, is_turned
from shearfx.errors import CheckpointError, PlanError, message
from shearfx.gating.moments import feature_moments
from shearfx.gating.sites import base_layer
from shearfx.graph import Graph
from shearfx.live_adapters import adapters_of
from shearfx.low_rank import plain_weight
from shearfx.pruning_plan import PruningPlan


def compensate_bias(
    graph: Graph, model: nn.Module, small: nn.Module, plan: PruningPlan, batches: Iterable[Any], run: Run
) -> int:
    """Give the layers that read what was cut, in the small model, the bias that keeps their mean output.

    Args:
        graph: the analysis of the model.
        model: the full model; left as it was.
        small: what :func:`shearfx.construct` made of it, in the original class; changed in place.
        plan: the plan it was made with.
        batches: calibration data, read once.
        run: calls a model on a batch.

    Returns:
        The number of layers that were changed.

    Raises:
        PlanError: no linear layer reads what was cut, or the small model is an fx graph, which adds no bias.
    """
    found = shifted(graph, model, plan, batches, run)
    put_biases(small, {path: bias_as_cut(bias, plan, path, is_turned(model, path)) for path, bias in found.items()})
    return len(found)


@torch.no_grad()
def shifted(graph: Graph, model: nn.Module, plan: PruningPlan, batches: Iterable[Any], run: Run) -> dict[str, Tensor]:
    """By path of each linear layer that reads what is cut: the bias that keeps its mean output, all rows ``[out]``.

    Keeps two numbers for each input of a layer. Args, errors: as of :func:`compensate_bias`.
    """
    readers = LinearReaders(graph, model, plan)
    if not readers.kept:
        todo = "leave out compensation"
        raise PlanError(message("no linear layer reads what the plan cuts", where="compensation", todo=todo))
    with feature_moments(readers.sites) as seen:
        for batch in batches:
            run(model, batch)
    adapters = adapters_of(model)
    found: dict[str, Tensor] = {}
    for path, kept in readers.kept.items():
        if path in seen:
            layer: Any = base_layer(model.get_submodule(path))
            weight, turned = plain_weight(layer), is_turned(model, path)
            gone = torch.ones(len(seen[path].mean), dtype=torch.bool).index_fill_(0, kept, False).nonzero().flatten()
            columns = (weight.T if turned else weight)[:, gone.to(weight.device)].double()
            if path in adapters:
                one = adapters[path]
                columns = columns + one.product(0 if one.transposed else 1, gone.to(one.a.device)).T.to(columns)
            shift = columns @ seen[path].mean[gone].to(columns)
            found[path] = (shift if layer.bias is None else layer.bias.double() + shift).to(weight.dtype)
    return found


def bias_as_cut(bias: Tensor, plan: PruningPlan, path: str, turned: bool) -> Tensor:
    """A layer's bias without the rows that a plan cuts, on the CPU.

    Args:
        bias: ``[out]``.
        plan: what stays of rows.
        path: of the layer, in the plan.
        turned: whether the layer keeps its weight as ``[in, out]``.
    """
    rows = plan.kept.get(f"{path}.weight", {}).get(1 if turned else 0)
    return (bias if rows is None else bias[rows.to(bias.device)]).cpu()


@torch.no_grad()
def put_biases(small: nn.Module, biases: Mapping[str, Tensor]) -> None:
    """Give layers of a cut model their biases, in place, by path.

    Raises:
        PlanError: a layer has no bias and can have none (in an fx graph).
    """
    for path, new in biases.items():
        layer: Any = base_layer(small.get_submodule(path))
        if getattr(layer, "bias", None) is not None:
            layer.bias.copy_(new.to(layer.bias.device, layer.bias.dtype))
        elif isinstance(layer, (nn.Linear, Conv1D)):
            layer.bias = nn.Parameter(new.to(layer.weight.device, layer.weight.dtype), layer.weight.requires_grad)
        else:
            what = f"the layer has no bias, and a {type(small).__name__} adds none"
            raise PlanError(message(what, where=path, todo='construct the small model with form="module"'))


# -- in a folder -------------------------------------------------------------------------------------------


def added_biases(small: nn.Module, plan: PruningPlan) -> list[str]:
    """Paths of linear layers that have a bias which the plan's model did not have, and lost inputs by the plan."""
    return [
        path for path, module in small.named_modules()
        if isinstance(module, nn.Linear) and module.bias is not None and f"{path}.bias" not in plan.shapes
        and 1 in plan.kept.get(f"{path}.weight", {})
    ]  # fmt: skip


def options_with(options: Mapping[str, Any], added: Sequence[str]) -> dict[str, Any]:
    """A plan's options, saying that these layers got a bias, whatever they said before."""
    others = {name: value for name, value in options.items() if name != "biases"}
    return others | ({"biases": list(added)} if added else {})


def add_biases(small: nn.Module, plan: PruningPlan) -> nn.Module:
    """Make the biases that a folder's plan says were added, without numbers, in place.

    Raises:
        CheckpointError: the plan names a layer that is not there, no linear one, or has a bias.
    """
    paths = plan.options.get("biases", [])
    layers = dict(small.named_modules())
    for path in paths if isinstance(paths, list) else [paths]:
        layer = layers.get(path) if isinstance(path, str) else None
        if not isinstance(layer, nn.Linear) or layer.bias is not None:
            what = f"the plan says that {path!r} got a bias, and the model has no linear layer without one there"
            raise CheckpointError(message(what, todo="use the files and the plan of one model"))
        layer.bias = nn.Parameter(layer.weight.new_empty(layer.out_features), layer.weight.requires_grad)
    return small
