"""What adapters learnt, added to the weights of another copy of the model: full size or cut, in its own precision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from shearfx.adapted_parameters import AdaptedParameter
from shearfx.adapters import base_name
from shearfx.low_rank import LowRank, spans, wider
from shearfx.pruning_plan import PruningPlan


@torch.no_grad()
def merge_into(
    target: nn.Module,
    adapters: Mapping[str, LowRank],
    plan: PruningPlan | None = None,
    parameters: Iterable[AdaptedParameter] = (),
) -> int:
    """Add ``scaling * BA`` of every adapter to the weight of the same name in another model.

    A model trained in bfloat16 is so merged into float32 weights, where the small displacement is not rounded away.

    Args:
        target: without adapters; changed in place.
        adapters: of the trained model (see :func:`shearfx.low_rank.adapters_of`); left as they are.
        plan: where the target is what this plan made of the trained model's base: rows and columns are cut alike.
        parameters: of a target of the trained model's own shapes, what was learnt on bare parameters.

    Returns:
        How many weights were changed.
    """
    own = dict(target.named_parameters(remove_duplicate=False))
    done = 0
    for one in adapters.values():
        name = base_name(f"{one.path}.base_layer.weight")
        assert name is not None
        _add_cut(own[name], one, {} if plan is None else plan.kept.get(name, {}))
        done += 1
    for bare in parameters:
        name = base_name(bare.name)
        assert name is not None
        for weight, a, b in bare.parts(own[name].data):
            _add(weight, a, b, bare.scaling)
        done += 1
    return done


def _add_cut(weight: nn.Parameter, one: LowRank, kept: Mapping[int, Tensor]) -> None:
    a, b = one.a.detach(), one.b.detach().flatten(1)
    for dim, index in kept.items():
        at = index.to(a.device)
        if one.side(dim) == "out":
            b = b[at]
        else:
            a = a.index_select(1, at)
    _add(weight.data.T if one.transposed else weight.data, a.flatten(1), b, one.scaling)


def _add(rows: Tensor, a: Tensor, b: Tensor, scaling: float) -> None:
    """Add ``scaling * b a`` to a weight whose rows are outputs, a few rows at a time."""
    wide = torch.promote_types(wider(rows.dtype), wider(a.dtype))
    a, b = a.to(wide), b.to(wide)
    for start, stop in spans(len(rows), rows[0].numel()):
        part = rows[start:stop]
        delta = (b[start:stop] @ a).reshape(part.shape).to(part.device)
        part.copy_(part.double() + scaling * delta.double())
