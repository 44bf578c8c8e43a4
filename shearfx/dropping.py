"""Layers dropped with proof: the shorter model computes what the graph computes where the stream passes them by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shearfx.architectures import named_tensors
from shearfx.comparison import TOLERANCE, compare, outputs_of
from shearfx.construction import construct_graph, example_call
from shearfx.errors import SoundnessError, message
from shearfx.fewer_layers import without
from shearfx.graph import Graph
from shearfx.layers import Layer, find_layers
from shearfx.precision import doubled, doubled_inputs
from shearfx.pruning_plan import of_cuts


def drop_layers(
    model: nn.Module, graph: Graph, paths: Sequence[str], *, call: Mapping[str, Any] | None = None
) -> nn.Module:
    """The model without some layers, checked in float64 against the graph in which the stream passes them by.

    A Hugging Face model comes back as its class builds it from a configuration with fewer layers, so that a cache, and
    whatever else goes by numbers of layers, is right; others as a copy with shorter lists, in which attributes that
    number the layers are numbered anew. Tensors are shared with the full model, not copied.

    Args:
        model: the full model; left as it was.
        graph: its analysis.
        paths: of the layers, as in :func:`shearfx.depth.find_layers`.
        call: arguments by name to check it with; by default of the sizes that were traced, drawn from a fixed seed.

    Raises:
        PlanError: a layer cannot go, or no configuration states what stays.
        SoundnessError: the smaller model computes something else than the graph without the layers.
    """
    layers = find_layers(graph).only(paths)
    small = without(model, paths)
    passed_by(model, graph, layers, small, dict(call) if call is not None else _drawn(model, graph))
    return small


def passed_by(
    model: nn.Module, graph: Graph, layers: Sequence[Layer], small: nn.Module, call: Mapping[str, Any]
) -> float:
    """How far the smaller model is from the graph in which the stream passes the layers by, in float64, relative to the
    largest number of an output. One copy in float64 exists at a time.

    Raises:
        SoundnessError: farther than rounding explains.
    """
    if any(tensor.is_meta for tensor in named_tensors(model).values()):
        return 0.0  # there is nothing to compute with
    inputs = doubled_inputs(call)
    expected = _expected(model, graph, layers, {name: inputs[name] for name in graph.traced.inputs})
    error = compare(expected, outputs_of(doubled(small), inputs, True), "shorter")
    if error > TOLERANCE:
        what = f"without the layers the class computes something else, off by {error:.2e} of its largest output"
        listed = ", ".join(layer.path for layer in layers[:3])
        raise SoundnessError(message(what, where=f"{type(model).__name__}, {listed}", todo="leave these layers in"))
    return error


def _expected(model: nn.Module, graph: Graph, layers: Sequence[Layer], inputs: Mapping[str, Any]) -> list[Tensor]:
    """What the graph gives where the stream passes the layers by."""
    past = construct_graph(model, of_cuts(graph, {}), graph)
    by_name = {node.name: node for node in past.graph.nodes}
    order = {name: i for i, name in enumerate(by_name)}
    # The last first: what enters a layer may be what leaves one before it that goes too.
    for layer in sorted(layers, key=lambda one: -order[one.leaves.name]):
        by_name[layer.leaves.name].replace_all_uses_with(by_name[layer.enters.name])
    past.graph.eliminate_dead_code()
    past.recompile()
    return outputs_of(doubled(past), inputs, True)


def _drawn(model: nn.Module, graph: Graph) -> dict[str, Any]:
    """Arguments like the traced ones: floating numbers normal, token ids zero or one."""
    generator = torch.Generator().manual_seed(0)
    call = example_call(model, of_cuts(graph, {}))
    for name, value in call.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            call[name] = torch.randn(value.shape, generator=generator).to(value.device, value.dtype)
        elif isinstance(value, Tensor) and name.endswith("input_ids"):
            call[name] = torch.randint(2, value.shape, generator=generator).to(value.device, value.dtype)
    return call
