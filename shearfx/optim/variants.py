"""AdamW and SGD as something else's inner optimiser, which shares its groups and state."""

from __future__ import annotations

from typing import Any, Literal

import torch

from shearfx.cuda import choosing
from shearfx.cuda.updating import Updating

Variant = Literal["adamw", "sgd"]


class Wrapping(torch.optim.Optimizer):
    """An optimiser whose steps are those of a variant: schedulers, scalers and checkpoints see one optimiser.

    Args:
        params: as for any optimiser.
        variant: ``"adamw"`` or ``"sgd"``.
        kernels: see :class:`shearfx.optim.LHSPG`.
        options: of the variant, the defaults of groups that say nothing else.
    """

    def __init__(self, params: Any, variant: Variant, kernels: choosing.Kernels = "auto", **options: Any) -> None:
        super().__init__(params, {})
        kind: Any = torch.optim.AdamW if variant == "adamw" else torch.optim.SGD
        self.inner: torch.optim.Optimizer = kind(self.param_groups, **options)
        self.defaults = self.inner.defaults
        self.variant: Variant = variant
        self.kernels: choosing.Kernels = kernels
        self._updating: Updating | None = None

    def advance(self) -> None:
        """One step of the variant."""
        # loading a state puts new lists in place
        self.inner.param_groups, self.inner.state = self.param_groups, self.state
        updating = self._kernels()
        if updating is not None:
            updating.step(self.param_groups, self.state)
        else:
            self.inner.step()

    def _kernels(self) -> Updating | None:
        """What steps all parameters at once; None where that is torch's to do."""
        first = next((p for group in self.param_groups for p in group["params"]), None)
        where = None if first is None else choosing.launcher(first.device, self.kernels)
        if where is None:
            return None
        if self._updating is None or self._updating.launcher is not where:
            self._updating = Updating(where, self.variant)
        why = self._updating.unfit(self.param_groups)
        if why is not None:
            choosing.refuse(why, self.kernels)
            return None
        return self._updating
