"""The smaller model that a live one has become when a period ends, adapters merged into it or kept on it.

Source: LoRAShear, section 3.4; what is constructed computes what the gated model computes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import fx, nn

from shearfx.adapter_cuts import adapter_cuts
from shearfx.adapters import base_name, configs_of, is_wrapped, wrap
from shearfx.attributes import settle
from shearfx.construction import construct
from shearfx.errors import PlanError, message
from shearfx.graph import Graph
from shearfx.live_adapters import adapters_of, adapts_parameter
from shearfx.low_rank import LowRank
from shearfx.optim.options import check_writable
from shearfx.optim.standing_in import StandingIn
from shearfx.pruning_plan import PruningPlan
from shearfx.training.merging import merge_into

Form = Literal["module", "fx"]
Adapter = Literal["merge", "keep"]


def without_adapters(model: nn.Module) -> nn.Module:
    """The base as it would be without adapters: other modules, the same tensors. Any other model is itself."""
    if not configs_of(model):
        return model
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    bare: nn.Module = copy.deepcopy(model, shared).unload()  # type: ignore[operator]
    return bare


def expressed(graph: Graph, model: nn.Module, plan: PruningPlan, form: Form) -> PruningPlan:
    """The plan for a form: for the model's own class with the attributes that change.

    Raises:
        PlanError: the class cannot hold the cut.
    """
    if form == "fx":
        plan.options["form"] = "fx"
        return plan
    return settle(model if is_wrapped(plan) else without_adapters(model), graph, plan)


def compact(
    graph: Graph, model: nn.Module, adapters: Mapping[str, LowRank], plan: PruningPlan, form: Form, adapter: Adapter,
    stand_ins: StandingIn | None,
) -> nn.Module:  # fmt: skip
    """Cut a live model, which stays as it is. There must be no gates or hooks on it.

    Args:
        graph: the analysis of the model, or of its base without adapters.
        model: the live model.
        adapters: its adapters by path.
        plan: what stays, for this form.
        form: the model's own class, or the fx graph.
        adapter: ``"merge"`` adds what was learnt to the smaller weights, in their dtype; ``"keep"`` leaves it beside
            them, a PEFT model as before.
        stand_ins: what to fold into the weights that read what is cut.

    Raises:
        PlanError: the base is quantised, or its form cannot hold adapters beside it.
    """
    if adapter not in ("merge", "keep"):
        raise PlanError(message(f"there is no adapter={adapter!r}", todo="choose 'merge' or 'keep'"))
    if any(not one.weight.is_floating_point() for one in adapters.values()):
        todo = "cut the base as it was before: construct(base, optimizer.plan()), then training.merging.merge_into"
        raise PlanError(message("the base is quantised, and its numbers cannot be cut", todo=todo))
    keep = bool(adapters) and adapter == "keep"
    if keep and form == "fx":
        raise PlanError(message("PEFT puts adapters on modules, which a graph has none of", todo="merge the adapter"))
    if adapters and not keep:
        check_writable(model, adapters)
    if is_wrapped(plan):
        small: Any = construct(model, plan, form=form, graph=graph)
        if stand_ins is not None:
            stand_ins.fold(small, plan)
        if keep or not adapters:
            return small  # type: ignore[no-any-return]
        if isinstance(small, fx.GraphModule):
            what = "the graph is that of the model with adapters, which stay in it"
            raise PlanError(message(what, todo='analyse the base, or choose form="module"'))
        return small.merge_and_unload()  # type: ignore[no-any-return]
    small = construct(without_adapters(model), plan, form=form, graph=graph)
    if form == "fx":
        small = copy.deepcopy(small)  # what is not cut it shares with the model, which trains on
    if stand_ins is not None:
        stand_ins.fold(small, plan)
    if keep:
        return _with_adapter(small, model, adapters, plan)
    merge_into(small, adapters, plan)
    return small  # type: ignore[no-any-return]


@torch.no_grad()
def _with_adapter(small: nn.Module, model: Any, adapters: Mapping[str, LowRank], plan: PruningPlan) -> nn.Module:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    (active,) = model.active_adapters
    config = configs_of(model)[active]
    wrapped: Any = wrap(small, {active: copy.deepcopy(config)})
    tensors = get_peft_model_state_dict(model, adapter_name=active, save_embedding_layers=False)
    # parameters of no layer are known by the live model, not by the names of their factors
    bare = {path: one for path, one in adapters.items() if adapts_parameter(model.get_submodule(path))}
    tensors = {name: t for name, t in tensors.items() if name.partition(".lora_")[0] not in bare}
    cuts = adapter_cuts(plan, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, config)
    cut = {name: cuts[name](tensor.detach()) for name, tensor in tensors.items()}
    set_peft_model_state_dict(wrapped, cut, adapter_name=active)
    now = adapters_of(wrapped)
    for path, one in bare.items():
        a, b = one.cut(plan.kept.get(base_name(one.name) or "", {}))
        now[path].a.copy_(a)
        now[path].b.copy_(b)
    return wrapped  # type: ignore[no-any-return]
