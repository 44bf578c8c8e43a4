"""Cutting a LoRA adapter by itself: by a plan for the wrapped model, or by one for its base alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from shearfx.adapters import PREFIX, adapter_name, is_wrapped
from shearfx.errors import CheckpointError, PlanError, message
from shearfx.pruning_plan import PruningPlan
from shearfx.slicing import cut_named, cut_tensor

__all__ = ["AdapterCut", "adapter_cuts"]

_TODO = "apply the plan to an adapter of the model it was made for"


@dataclass(frozen=True)
class AdapterCut:
    """What happens to one tensor of an adapter's files.

    Either it is the tensor that the plan knows as ``name``, or ``kept`` says for its dims which indices stay.
    """

    plan: PruningPlan
    name: str = ""
    kept: Mapping[int, torch.Tensor] | None = None

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """The smaller tensor."""
        if self.kept is None:
            return cut_named(self.name, tensor, self.plan)
        return cut_tensor(tensor, self.kept).contiguous()

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape after the cut."""
        kept = self.plan.kept.get(self.name, {}) if self.kept is None else self.kept
        return tuple(len(kept[axis]) if axis in kept else size for axis, size in enumerate(shape))


def adapter_cuts(plan: PruningPlan, shapes: Mapping[str, tuple[int, ...]], config: Any) -> dict[str, AdapterCut]:
    """For each tensor of an adapter's files: how it is cut.

    Args:
        plan: for the wrapped model (with this adapter on it) or for its base.
        shapes: of the tensors in the files.
        config: the adapter's ``LoraConfig``.

    Raises:
        PlanError: the adapter is none of this model's.
        CheckpointError: the adapter is of a kind that cannot be cut by a plan for its base.
    """
    cuts = _by_name(plan, shapes) if is_wrapped(plan) else {key: _by_base(plan, key, shapes, config) for key in shapes}
    for key, cut in cuts.items():
        if cut.kept is None and plan.shapes[cut.name] != shapes[key]:
            what = f"{key} has shape {shapes[key]}; the plan was made for {plan.shapes[cut.name]}"
            raise PlanError(message(what, todo=_TODO))
    return cuts


def _by_name(plan: PruningPlan, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, AdapterCut]:
    names = {part for name in plan.shapes if "lora_" in name for part in name.split(".")}
    for adapter in sorted(names):
        inverse = {short: n for n in plan.shapes if (short := adapter_name(n, adapter)) is not None}
        if shapes.keys() <= inverse.keys():
            return {key: AdapterCut(plan, inverse[key]) for key in shapes}
    raise PlanError(message("the plan was made for a model without this adapter", todo=_TODO))


def _by_base(plan: PruningPlan, key: str, shapes: Mapping[str, tuple[int, ...]], config: Any) -> AdapterCut:
    name = key.removeprefix(PREFIX)
    if name in plan.shapes:  # a layer that was trained whole
        return AdapterCut(plan, name)
    path, _, rest = name.partition(".lora_")
    weight = f"{path}.weight"
    if weight not in plan.shapes and getattr(config, "target_parameters", None):
        what = f"{key} is of a parameter of no layer, and its file does not say of which"
        todo = "merge it first, or cut the live model: LHSPG.construct('keep')"
        raise CheckpointError(message(what, todo=todo))
    if weight not in plan.shapes:
        raise PlanError(message(f"the plan knows no {weight}, which the adapter's {key} belongs to", todo=_TODO))
    factor = rest.split(".")[0]
    if config.use_dora or factor not in ("A", "B", "embedding_A", "embedding_B"):
        todo = "make the plan for the model with the adapter on it"
        what = f"{key} is more than the two factors of LoRA, which a plan for the base does not know how to cut"
        raise CheckpointError(message(what, todo=todo))
    # A weight is [out, in], and [in, out] in an embedding and in transformers' Conv1D.
    swapped = factor.startswith("embedding") or bool(config.fan_in_fan_out)
    reads = factor.endswith("A")
    theirs, own = int(reads) ^ int(swapped), int(reads)
    if plan.shapes[weight][theirs] != shapes[key][own]:
        what = f"{key} has shape {shapes[key]}, which does not fit {weight} of shape {plan.shapes[weight]}"
        raise PlanError(message(what, todo=_TODO))
    kept = plan.kept.get(weight, {})
    return AdapterCut(plan, weight, {own: kept[theirs]} if theirs in kept else {})
