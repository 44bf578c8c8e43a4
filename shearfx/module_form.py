"""The original class with sliced parameters and adjusted attributes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from shearfx.errors import PlanError, message
from shearfx.mirrors import mirror
from shearfx.overlay import float_attribute, write
from shearfx.pruning_plan import Compensation, PruningPlan
from shearfx.slicing import cut_named


def construct_module(model: nn.Module, plan: PruningPlan, *, consume: bool = False) -> nn.Module:
    """The smaller model in its own class: the same module tree, parameters sliced, attributes adjusted.

    Ties, dtypes, ``requires_grad``, training flags and hooks stay; gradients do not.

    Args:
        model: the model that the plan was made for; left as it was unless ``consume``.
        plan: what stays. Its attributes are solved for here if no one did (see ``shearfx.attributes``).
        consume: cut ``model`` itself and return it; each full tensor is freed as soon as its slice is made.

    Raises:
        PlanError: the plan names an attribute that the model does not have, or a norm's epsilon cannot be found.
    """
    if "form" not in plan.options:
        # Made by hand: nobody has shown yet that the class can hold it.
        from shearfx.attributes import settle
        from shearfx.construction import analysis_of

        plan = settle(model, analysis_of(model, plan), plan)
    epsilons = [(how, epsilon_of(model, how)) for how in plan.compensations]
    if consume:
        for name, tensor in _unique(model):
            full = tensor.detach()
            small = cut_named(name, full, plan)
            if small is not full:
                # In place, so that every alias and whoever else holds the parameter sees the smaller one.
                tensor.grad = None
                tensor.data = small
            del full, small
    else:
        # What is mapped in the memo is not copied by deepcopy: each tensor is copied once, at the size that it keeps.
        memo: dict[int, Any] = {}
        for name, tensor in _unique(model):
            small_or_none = _cut(name, tensor, plan)
            if small_or_none is not None:
                memo[id(tensor)] = small_or_none
        model = copy.deepcopy(model, memo)
    mirror(model, plan)
    for path, changes in plan.attributes.items():
        for attribute, value in changes.items():
            write(_module(model, path), attribute, value, path)
    for how, (path, attribute) in epsilons:
        write(_module(model, path), attribute, how.epsilon * how.before / how.after, path)
    return model


def epsilon_of(model: nn.Module, how: Compensation) -> tuple[str, str]:
    """Module path and name of the attribute in which the original class keeps a norm's epsilon.

    Raises:
        PlanError: there is none, so that this cut needs the fx form.
    """
    if how.attribute:
        return how.module, how.attribute
    for path in dict.fromkeys((how.module, how.weight.rpartition(".")[0])):
        name = float_attribute(_module(model, path), how.epsilon)
        if name is not None:
            return path, name
    raise PlanError(
        message(
            f"a norm over {how.before} dims would be cut to {how.after}, but the class keeps its epsilon of "
            f"{how.epsilon} in no attribute that could be corrected",
            where=how.module or how.weight,
            todo='choose form="fx", or leave this dim whole',
        )
    )


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise PlanError(
            message(f"the model has no module {path!r}, which the plan adjusts", todo="make the plan again")
        ) from None


def _unique(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _cut(name: str, tensor: torch.Tensor, plan: PruningPlan) -> torch.Tensor | None:
    """The smaller tensor with everything that the full one carries; None where nothing changes."""
    full = tensor.detach()
    small = cut_named(name, full, plan)
    if small is full:
        return None
    if isinstance(tensor, nn.Parameter):
        small = nn.Parameter(small, requires_grad=tensor.requires_grad)
    small.__dict__.update(tensor.__dict__)  # marks that libraries leave on tensors
    return small
