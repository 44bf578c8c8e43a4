"""AdamW and SGD as something else's inner optimiser, which shares its groups and state."""

from __future__ import annotations

from typing import Any, Literal

import torch

Variant = Literal["adamw", "sgd"]


class Wrapping(torch.optim.Optimizer):
    """An optimiser whose steps are those of a variant: schedulers, scalers and checkpoints see one optimiser.

    Args:
        params: as for any optimiser.
        variant: ``"adamw"`` or ``"sgd"``.
        options: of the variant, the defaults of groups that say nothing else.
    """

    def __init__(self, params: Any, variant: Variant, **options: Any) -> None:
        super().__init__(params, {})
        kind: Any = torch.optim.AdamW if variant == "adamw" else torch.optim.SGD
        self.inner: torch.optim.Optimizer = kind(self.param_groups, **options)
        self.defaults = self.inner.defaults

    def advance(self) -> None:
        """One step of the variant."""
        # loading a state puts new lists in place
        self.inner.param_groups, self.inner.state = self.param_groups, self.state
        self.inner.step()
