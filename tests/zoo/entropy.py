"""Mean attention entropy of any model, measured at its softmaxes.

A dispatch mode sees every softmax operator, so this needs neither `output_attentions` nor an eager implementation:
scaled-dot-product attention is made to run as its mathematical definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from tests.zoo.entry import Model

_SOFTMAX = {torch.ops.aten._softmax.default, torch.ops.aten._safe_softmax.default}


class _Watch(TorchDispatchMode):
    """Collects the mean relative entropy of each softmax over three or more dims (routers have two)."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[float] = []

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _SOFTMAX and result.ndim >= 3:
            self._record(result.movedim(args[1], -1).double())
        return result

    def _record(self, weights: Tensor) -> None:
        """`weights`: (..., queries, keys), rows that sum to one; rows with fewer than two visible keys are left out."""
        entropy = -torch.special.xlogy(weights, weights).sum(-1)
        visible = (weights > 1e-30).sum(-1)
        rows = visible > 1
        if rows.any():
            self.calls.append(float((entropy[rows] / visible[rows].double().log()).mean()))


@torch.no_grad()
def attention_entropies(model: Model) -> list[float]:
    """Entropy over its maximum (log of the number of visible keys), one mean per attention call of the forward."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused path shows no softmax
    try:
        watch = _Watch()
        with sdpa_kernel(SDPBackend.MATH), watch:
            model.module(*model.args, **model.kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return watch.calls


def attention_entropy(model: Model) -> float | None:
    """Mean over all attention calls; None without attention."""
    calls = attention_entropies(model)
    return sum(calls) / len(calls) if calls else None
