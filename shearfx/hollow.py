"""Models without weights: the module tree with empty tensors of the right sizes, for running code on shapes alone."""

from __future__ import annotations

import copy

import torch
from torch import nn

from shearfx.graph import Graph
from shearfx.mirrors import mirror
from shearfx.module_form import epsilon_of
from shearfx.overlay import write
from shearfx.pruning_plan import PruningPlan


def hollow(model: nn.Module, plan: PruningPlan | None = None, device: str = "", like: Graph | None = None) -> nn.Module:
    """A copy of the model with empty tensors, cut as the plan says, on a device (by default
    the CPU, or meta where the model is there).

    Memory for the tensors is asked for but never touched. What mirrors a parameter's shape is adjusted, as are the
    epsilons of compensated norms; the plan's other attributes are not.

    Args:
        like: take the dtypes of the tensors from this graph: a model may have been cast since it was traced, and code
            that casts inside shows other operators then.

    Raises:
        PlanError: a norm's epsilon cannot be found.
    """
    shapes = plan.shapes_after() if plan is not None else {}
    dtypes = {alias: t.dtype for t in like.tensors.values() for alias in t.aliases} if like is not None else {}
    memo: dict[int, torch.Tensor] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        shape = shapes.get(name, tuple(tensor.shape))
        where = device or ("meta" if tensor.is_meta else "cpu")
        empty = torch.empty(shape, dtype=dtypes.get(name, tensor.dtype), device=where)
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    small = copy.deepcopy(model, memo)
    small.eval()
    if plan is not None:
        mirror(small, plan)
        for how in plan.compensations:
            path, attribute = epsilon_of(small, how)
            write(small.get_submodule(path), attribute, how.epsilon * how.before / how.after, path)
    return small
