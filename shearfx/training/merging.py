"""What adapters learnt, added to the weights of another copy of the model: full size or cut, in its own precision."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from shearfx.adapters import base_name
from shearfx.low_rank import LowRank, spans, wider
from shearfx.pruning_plan import PruningPlan


@torch.no_grad()
def merge_into(target: nn.Module, adapters: Mapping[str, LowRank], plan: PruningPlan | None = None) -> int:
    """Add ``scaling * BA`` of every adapter to the weight of the same name in another model.

    A model trained in bfloat16 is so merged into float32 weights, where the small displacement is not rounded away.

    Args:
        target: without adapters; changed in place.
        adapters: of the trained model (see :func:`shearfx.live_adapters.adapters_of`); left as they are.
        plan: where the target is what this plan made of the trained model's base: rows and columns are cut alike.

    Returns:
        How many weights were changed.
    """
    own = dict(target.named_parameters(remove_duplicate=False))
    for one in adapters.values():
        name = base_name(one.name)
        assert name is not None
        a, b = one.cut({} if plan is None else plan.kept.get(name, {}))
        for rows, thin, thick in one.parts(own[name].data, a, b):
            _add(rows, thin, thick, one.scaling)
    return len(adapters)


def _add(rows: Tensor, a: Tensor, b: Tensor, scaling: float) -> None:
    """Add ``scaling * b a`` to a weight whose rows are outputs, a few rows at a time."""
    wide = torch.promote_types(wider(rows.dtype), wider(a.dtype))
    a, b = a.to(wide), b.to(wide)
    for start, stop in spans(len(rows), rows[0].numel()):
        part = rows[start:stop]
        delta = (b[start:stop] @ a).reshape(part.shape).to(part.device)
        part.copy_(part.double() + scaling * delta.double())
