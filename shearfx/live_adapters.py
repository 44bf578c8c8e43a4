"""The LoRA adapters on a live model: of layers, and of parameters that are no layer's weight."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from shearfx.errors import PlanError, message
from shearfx.low_rank import LowRank
from shearfx.stacked_low_rank import STACKED, StackedLowRank


def adapters_of(model: nn.Module) -> dict[str, LowRank]:
    """The active LoRA adapters of a live model, by the path of their layer; none for a model without.

    Raises:
        PlanError: an adapter is more than ``scaling * B @ A`` (DoRA, a bias), is merged already, or several are active
            at once.
    """
    found: dict[str, LowRank] = {}
    for path, name, module in active_adapters(model):
        base, scaling = module.get_base_layer(), float(module.scaling[name])
        if adapts_parameter(module):
            found[path] = _of_parameter(path, base, module, name, scaling)
        elif name in module.lora_embedding_A:
            a, b = module.lora_embedding_A[name], module.lora_embedding_B[name]
            found[path] = LowRank(path, base, a, b, scaling, transposed=True)
        else:
            reason = _no_product(module)
            if reason:
                raise PlanError(message(f"adapter {name!r} {reason[0]}", where=path, todo=reason[1]))
            turned = bool(getattr(module, "fan_in_fan_out", False))
            found[path] = LowRank(path, base, module.lora_A[name].weight, module.lora_B[name].weight, scaling, turned)
    return found


def _of_parameter(path: str, base: nn.Module, module: Any, name: str, scaling: float) -> LowRank:
    leaf, a, b = module.parameter_name, module.lora_A[name].weight, module.lora_B[name].weight
    if module.get_param().dim() != STACKED:
        return LowRank(path, base, a, b, scaling, transposed=False, leaf=leaf)
    return StackedLowRank(path, base, a, b, scaling, bool(getattr(base, "is_transposed", False)), leaf)


def adapts_parameter(module: nn.Module) -> bool:
    """Whether a layer of adapters adapts a parameter that is no layer's weight (PEFT's ``target_parameters``)."""
    return hasattr(module, "parameter_name") and hasattr(module, "get_param")


def adapted_in_place(model: nn.Module) -> set[int]:
    """Identities of the bare parameters of a model that carry adapters."""
    adapters: list[Any] = [module for module in model.modules() if adapts_parameter(module)]
    return {id(one.get_param()) for one in adapters}


def active_adapters(model: nn.Module) -> Iterator[tuple[str, str, Any]]:
    """The layers of a model that have an active LoRA adapter: path, the adapter's name, and the layer of PEFT's.

    Raises:
        PlanError: an adapter is more than ``scaling * B @ A``, is merged already, or several are active at once.
    """
    from peft.tuners.lora import LoraLayer

    for path, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        active = [name for name in module.active_adapters if name in module.scaling]
        if not active:
            continue
        if len(active) > 1:
            what = f"{len(active)} adapters are active at once: {', '.join(active)}"
            raise PlanError(message(what, where=path, todo="model.set_adapter(one of them)"))
        (name,) = active
        reason = _no_sum(module, name)
        if reason:
            raise PlanError(message(f"adapter {name!r} {reason[0]}", where=path, todo=reason[1]))
        yield path, name, module


def _no_sum(state: Any, name: str) -> tuple[str, str] | None:
    """Why an adapter is not the sum of a frozen weight and ``scaling * B @ A``, and what to do; None where it is."""
    if state.use_dora.get(name) or state.lora_variant.get(name) is not None:
        what = "rescales its base (DoRA or another variant), so it is no sum of W and BA"
        return what, "use a LoraConfig with use_dora=False"
    if state.lora_bias.get(name):
        return "has a bias of its own", "use a LoraConfig with lora_bias=False"
    if state.merged_adapters:
        return "is merged into its base", "call model.unmerge_adapter() first"
    if name not in state.lora_A and name not in state.lora_embedding_A:
        return "has no factors A and B", "use LoRA on linear layers, convolutions and embeddings"
    return None


def _no_product(module: Any) -> tuple[str, str] | None:
    """Why what an adapter of a layer adds to its weight is no product, and what to do; None where it is."""
    if getattr(module.get_base_layer(), "groups", 1) != 1:
        return "adapts a convolution with groups, whose update is no product", "leave it out of target_modules="
    if isinstance(module.get_base_layer(), nn.MultiheadAttention):
        return "adapts several weights at once (nn.MultiheadAttention)", "leave it out of target_modules="
    return None


def experts_of(model: nn.Module) -> list[str]:
    """Names of the parameters that hold a matrix for each expert."""
    return [
        f"{path}.{name}"
        for path, module in model.named_modules() if hasattr(module, "num_experts")
        for name, parameter in module.named_parameters(recurse=False) if parameter.dim() == STACKED
    ]  # fmt: skip
