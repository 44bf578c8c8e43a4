"""``shearfx.construct``: the smaller model a plan describes, as an fx graph or in the original class."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import fx, nn

from shearfx.analysis import trace
from shearfx.architectures import shapes
from shearfx.attributes import settle
from shearfx.errors import PlanError, TraceError, message
from shearfx.fewer_layers import is_full, without
from shearfx.graph import Graph
from shearfx.module_form import construct_module
from shearfx.passes.subnetwork import ConstructSubnetwork
from shearfx.pruning_plan import PruningPlan, masks_of
from shearfx.slicing import cut_named

Form = Literal["module", "fx"]


def construct(
    model: nn.Module, plan: PruningPlan, *, form: Form = "module", consume: bool = False, graph: Graph | None = None
) -> nn.Module:
    """The smaller model: parameters sliced, compensated where a norm needs it, nothing else changed.

    Args:
        model: the model that the plan was made for; left as it was unless ``consume``. Where whole layers go first, the
            full one, or the one without them.
        plan: what stays.
        form: ``"module"`` for the original class with its attributes adjusted, ``"fx"`` for the rewritten graph, a
            ``torch.fx.GraphModule`` called with the traced tensor arguments by name.
        consume: the model may be used up, so that at most one extra copy of one parameter exists at a time.
        graph: the analysis of this model, if there is one; the fx form traces again without it.

    Raises:
        PlanError: the plan does not fit the model, cuts what the original class cannot express, or asks for the graph
            of a model that writes into its buffers.
    """
    if is_full(model, plan):
        model, graph = without(model, plan.layers), None
    plan.check_fits(shapes(model), type(model).__name__)
    if form == "module":
        if graph is not None and "form" not in plan.options:
            plan = settle(model, graph, plan)
        return construct_module(model, plan, consume=consume)
    if form != "fx":
        raise PlanError(message(f"there is no form {form!r}", todo='choose form="module" or form="fx"'))
    return construct_graph(model, plan, graph)


def construct_graph(model: nn.Module, plan: PruningPlan, graph: Graph | None = None) -> fx.GraphModule:
    """The fx form. Tensors that the plan does not touch are shared with the model, not copied."""
    graph = graph or analysis_of(model, plan)
    if graph.traced.changed:
        raise PlanError(
            message(
                f"the graph would not change {', '.join(graph.traced.changed[:3])} as the model does at every call",
                where=type(model).__name__,
                todo='choose form="module", or register as buffers only what the call leaves as it is',
            )
        )
    tensors = {
        name: cut_named(name, tensor.detach(), plan).requires_grad_(tensor.requires_grad)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    for tensor in graph.traced.tensors.values():
        for alias in tensor.aliases[1:]:
            tensors[alias] = tensors[tensor.aliases[0]]
    return ConstructSubnetwork(masks_of(graph, plan)).build(graph, tensors)


_ANALYSES: weakref.WeakKeyDictionary[nn.Module, Graph] = weakref.WeakKeyDictionary()


def remember(model: nn.Module, graph: Graph) -> None:
    """Keep the analysis of a model as long as the model lives, so that it is not traced again."""
    _ANALYSES[model] = graph


def analysis_of(model: nn.Module, plan: PruningPlan) -> Graph:
    """The analysis of the call that the plan was made for: remembered, or traced again from the plan's record of it."""
    graph = _ANALYSES.get(model)
    if graph is not None and graph.traced.call == plan.call:
        return graph
    graph = trace(model, **example_call(model, plan))
    _ANALYSES[model] = graph
    return graph


def example_call(model: nn.Module, plan: PruningPlan, open_sizes: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Arguments like those of the traced call; numbers in them are zero, open dims have ``open_sizes``.

    Args:
        model: whose device they are on.
        plan: holds the record of the call.
        open_sizes: by symbol; by default 3, 4, ..., or the example's where the model's code asked for open sizes.

    Raises:
        TraceError: the plan's record of the call cannot be turned back into arguments.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    arguments: dict[str, Any] = {}
    for name, value in plan.call.items():
        if not isinstance(value, dict):
            arguments[name] = value
            continue
        dtype = getattr(torch, str(value.get("dtype")), None)
        if not isinstance(dtype, torch.dtype):
            what = f"the plan's record of argument {name!r} is damaged"
            raise TraceError(message(what, todo="pass graph=trace(...)"))
        symbols: dict[str, int] = {}
        usual = value.get("example")
        shape = [
            s if isinstance(s, int)
            else symbols.setdefault(s, (open_sizes or {}).get(s, usual[i] if usual else 3 + len(symbols)))
            for i, s in enumerate(value["shape"])
        ]  # fmt: skip
        make = torch.ones if not dtype.is_floating_point else torch.zeros
        arguments[name] = make(shape, dtype=dtype, device=device)
    return arguments
