"""A model with adapters for a while, and adapters that are kept beside the model that they belong to."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from shearfx.adapters import ADAPTER_CONFIG, adapter_json, adapter_name, base_name
from shearfx.atomic import replace_folder, write_text
from shearfx.config import ShearConfig
from shearfx.errors import PlanError, message
from shearfx.live_adapters import adapters_of, experts_of
from shearfx.low_rank import LowRank
from shearfx.pruning_plan import PruningPlan
from shearfx.tensor_files import describe, write_tensors

Factors = dict[str, dict[str, Tensor]]
"""By path of the adapter's layer: ``a`` ``[rank, in]`` and ``b`` ``[out, rank]``, of fused experts side by side."""


@contextlib.contextmanager
def adapting(
    config: ShearConfig, model: nn.Module, start: Mapping[str, Mapping[str, Tensor]] | None = None
) -> Iterator[Any]:
    """The model with adapters for the while; afterwards it is what it was, but for what was merged into it.

    Args:
        config: says which adapters.
        model: everything of its own is frozen.
        start: what the adapters begin from; by default from nothing.

    Raises:
        PlanError: no layer of the model has the names that ``targets`` asks for.
    """
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    modes = {module: module.training for module in model.modules()}
    hooks = {module: set(module._forward_hooks) for module in model.modules()}
    wrapped = _wrapped(config, model)
    try:
        if start is not None:
            _begin_from(wrapped, start)
        yield wrapped
    finally:
        if config.gradient_checkpointing:
            with _quiet():
                wrapped.gradient_checkpointing_disable()
        wrapped.unload()
        for module, mode in modes.items():
            module.training = mode
            for key in set(module._forward_hooks) - hooks[module]:  # transformers forgets some that it made for PEFT
                del module._forward_hooks[key]
        for name, parameter in model.named_parameters():  # PEFT froze them
            parameter.requires_grad_(wanted[name])


def _wrapped(config: ShearConfig, model: nn.Module) -> Any:
    from peft import LoraConfig, get_peft_model

    if config.gradient_checkpointing and not getattr(model, "supports_gradient_checkpointing", False):
        what = f"a {type(model).__name__} cannot recompute its activations"
        raise PlanError(message(what, where="gradient_checkpointing", todo="set it to false"))
    everywhere = config.targets == ("all-linear",)
    targets = "all-linear" if everywhere else list(config.targets)
    # PEFT adapts the experts of some architectures by itself; with dropout of none
    experts = sorted({".".join(name.split(".")[-2:]) for name in experts_of(model)})
    bare = experts if everywhere and config.dropout == 0 else []
    left_out = [path for path, module in model.named_modules() if _weightless(module) or _gives_more(module)]
    settings = LoraConfig(r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout,
                          target_modules=targets, exclude_modules=left_out or None, target_parameters=bare or None,
                          task_type="CAUSAL_LM")  # fmt: skip
    torch.manual_seed(config.seed)
    try:
        with _quiet():
            wrapped: Any = get_peft_model(cast(Any, model), settings)
    except ValueError as error:
        what = f"no adapters fit a {type(model).__name__}: {' '.join(str(error).split())}"
        todo = "name layers that the model has, by the end of their path, or all-linear"
        raise PlanError(message(what, where=f"targets: {', '.join(config.targets)}", todo=todo)) from error
    if config.gradient_checkpointing:
        wrapped.enable_input_require_grads()
        with _quiet():
            wrapped.gradient_checkpointing_enable()
    return wrapped


def _weightless(module: nn.Module) -> bool:
    """Whether there is nothing to learn."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and not weight.numel()


@torch.no_grad()
def _gives_more(module: nn.Module) -> bool:
    """Whether a class of linear layers gives more than what comes out, as some routers do: PEFT adapts only that."""
    if type(module) is nn.Linear or not isinstance(module, nn.Linear) or not module.weight.is_floating_point():
        return False
    try:
        return not isinstance(module(module.weight.new_zeros(1, 1, module.in_features)), Tensor)
    except Exception:  # of a class of anyone's: it takes something else
        return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of names that transformers is about to change: PEFT asks by them too. None of ranks that PEFT sets
    for experts and then does not find."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys", RuntimeWarning)
        yield


def cut_factors(learnt: Mapping[str, LowRank], plan: PruningPlan) -> Factors:
    """What adapters of a full model learnt, for the model that a plan makes of it: rows of B and columns of A go."""
    found: Factors = {}
    for path, one in learnt.items():
        a, b = one.cut(plan.kept.get(base_name(one.name) or "", {}))
        found[path] = {"a": a.clone(), "b": b.clone()}
    return found


@torch.no_grad()
def _begin_from(wrapped: Any, start: Mapping[str, Mapping[str, Tensor]]) -> None:
    for path, one in adapters_of(wrapped).items():
        one.a.copy_(start[path]["a"])
        one.b.copy_(start[path]["b"])


def write_adapter(wrapped: Any, folder: Path, base: Path) -> None:
    """Write the adapter of a model as PEFT lays it out, whole or not at all.

    Args:
        wrapped: the model with its adapter.
        folder: for the adapter alone; what lies there is replaced.
        base: where the model without it lies.
    """
    ((name, settings),) = wrapped.peft_config.items()
    settings = copy.copy(settings)
    settings.base_model_name_or_path = str(base.absolute())
    tensors = {
        short: p.detach() for full, p in wrapped.named_parameters() if (short := adapter_name(full, name)) is not None
    }
    with replace_folder(folder) as new:
        write_text(new / ADAPTER_CONFIG, adapter_json(settings))
        write_tensors(new, {n: describe(t) for n, t in tensors.items()}, tensors.__getitem__, stem="adapter_model")


def with_adapter(base: nn.Module, folder: Path) -> nn.Module:
    """A model with the adapter in a folder, in evaluation mode."""
    from peft import PeftModel

    wrapped: nn.Module = PeftModel.from_pretrained(cast(Any, base), str(folder))
    return wrapped.eval()


@contextlib.contextmanager
def adapted(base: nn.Module, folder: Path) -> Iterator[nn.Module]:
    """The same for a while."""
    wrapped: Any = with_adapter(base, folder)
    try:
        yield wrapped
    finally:
        wrapped.unload()
