"""What stands in for structures where they are read: a linear combination of those that stay, as their gates shut.

A layer that reads ``x`` gets ``c x_R + (1 - c) P x_S`` in the place of the fading ``x_R``, ``c`` being their gates and
``P = H_RS (H_SS + ridge)^-1``, ``H = sum of x x^T``. At ``c = 1`` that is the model as it was, at 0 the least-squares
compensation ``W_S + W_R P`` of the layer, whatever its weights are kept as; adapters on it are compensated alike.

Source: of its own; the fit is that of ``shearfx.compensation`` (SparseGPT, arXiv 2301.00774, equation 2), made by
inputs instead of weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class StandIn:
    """At one place: which inputs are replaced, and by what."""

    gone: Tensor
    """LongTensor ``[R]``."""
    kept: Tensor
    """LongTensor ``[S]``; no input is in both."""
    factor: Tensor
    """``P``, float32 (or float64) ``[R, S]``."""

    def apply(self, x: Tensor, gate: Tensor) -> Tensor:
        """Add what stands in for the replaced inputs.

        Args:
            x: ``[..., inputs]``, gated.
            gate: of each input, ``[inputs]``.
        """
        gone, kept = self.gone.to(x.device), self.kept.to(x.device)
        read = torch.nn.functional.linear(x.index_select(-1, kept), self.factor.to(x.device, x.dtype))
        return x.index_add(-1, gone, (1 - gate[gone]) * read)

    def come_in(self, x: Tensor, gate: Tensor) -> Tensor:
        """:meth:`apply` in place, without gradients.

        Returns:
            What the replaced inputs were, ``[..., R]``.
        """
        gone, kept = self.gone.to(x.device), self.kept.to(x.device)
        before = x.index_select(-1, gone)
        read = torch.nn.functional.linear(x.index_select(-1, kept), self.factor.to(x.device, x.dtype))
        x.index_add_(-1, gone, (1 - gate[gone]) * read)
        return before

    def turn_back(self, gradient: Tensor, gate: Tensor) -> None:
        """From the gradient by what :meth:`apply` gives to that by its ``x``, in place."""
        gone, kept = self.gone.to(gradient.device), self.kept.to(gradient.device)
        read = (1 - gate[gone]) * gradient.index_select(-1, gone)
        gradient.index_add_(-1, kept, read @ self.factor.to(gradient.device, gradient.dtype))

    def after(self, earlier: StandIn | None) -> StandIn:
        """This one, and one whose kept inputs it has replaced some of, as one."""
        if earlier is None or not len(earlier.gone):
            return self
        place = torch.full((int(torch.cat([earlier.kept, self.kept, self.gone]).max()) + 1,), -1)
        place[earlier.kept] = torch.arange(len(earlier.kept))
        passed = earlier.factor[:, place[self.kept]] + earlier.factor[:, place[self.gone]] @ self.factor
        return StandIn(torch.cat([earlier.gone, self.gone]), self.kept, torch.cat([passed, self.factor]))

    def state_dict(self) -> dict[str, Tensor]:
        """All of it."""
        return {"gone": self.gone, "kept": self.kept, "factor": self.factor}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> StandIn:
        """What :meth:`state_dict` returned."""
        return cls(state["gone"].cpu().long(), state["kept"].cpu().long(), state["factor"].cpu())


def fit(moments: Tensor, gone: Tensor, kept: Tensor, ridge: float) -> StandIn:
    """The linear combination of kept inputs that comes closest to the others.

    Args:
        moments: ``sum of x x^T``, ``[inputs, inputs]``.
        gone, kept: LongTensors of inputs.
        ridge: share of the mean of the diagonal, which pulls towards standing in by nothing.
    """
    here = moments.double()
    at, to = gone.to(here.device), kept.to(here.device)
    damped = here[to][:, to]
    diagonal = damped.diagonal()
    diagonal += ridge * diagonal.mean().clamp(min=1e-12)
    factor = torch.linalg.solve(damped, here[to][:, at]).T
    return StandIn(gone, kept, factor.to("cpu", moments.dtype).contiguous())
