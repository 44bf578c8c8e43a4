"""Structures that fade in the weights themselves, as Algorithm 4 is printed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from shearfx.errors import PlanError, message
from shearfx.optim.carriers import Carrier
from shearfx.optim.choosing import Redundant
from shearfx.optim.fading import Rule
from shearfx.optim.redundant_slices import Find, Slices


class WeightCarrier(Carrier):
    """The slices of the weights fade: ``x_g <- [x + gamma B A]_g - lambda_g x_g / ||x_g||``, or zero.

    What LoRA learnt for a fading structure in a step then lives in the slices, so that its rows of B and columns of A
    are cleared each step. Without an adapter ``d`` is what the optimiser's step changed.

    Source: LoRAShear, Algorithm 4, lines 7 to 9, and equation (2).
    """

    def __init__(self, find: Find, rule: Rule) -> None:
        super().__init__(find, rule)
        self.fallen: dict[str, Tensor] = {}
        """Which of the fading structures are zero already: group to bool ``[n]``."""
        self.gone: Redundant = {}
        """What fell in earlier periods."""
        self.dead: list[Slices] = []

    def prepare(self, structures: Mapping[str, Tensor]) -> None:
        """See :class:`Carrier`: torch needs nothing."""

    def start(self, fading: Mapping[str, Tensor]) -> None:
        """See :class:`Carrier`.

        Raises:
            PlanError: a weight is quantised.
        """
        super().start(fading)
        for one in self.slices:
            if not one.parameter.is_floating_point():
                what = f"{one.name} is kept as {one.parameter.dtype}, which nothing can be subtracted from"
                raise PlanError(message(what, todo='pass carrier="gates"'))
        self.fallen = {name: torch.zeros(len(gone), dtype=torch.bool) for name, gone in self.fading.items()}

    def before(self) -> None:
        """See :class:`Carrier`."""
        for one in self.slices:
            one.remember()

    @torch.no_grad()
    def fade(self, left: int) -> None:
        """See :class:`Carrier`. Groups that share a weight fade one after the other."""
        read = [(one, *one.sums()) for one in self.slices] if self.rule.looks and left > 1 else []
        squares = self.sums((one, square) for one, square, _ in read)
        inner = self.sums((one, product) for one, _, product in read)
        factors = {}
        for name, fallen in self.fallen.items():
            norm = squares[name].sqrt()
            factor = self.rule.factor(left, norm, torch.ones_like(norm))
            # a structure that has fallen before is never tested again
            fallen |= self.rule.falls(factor, inner[name], norm, left)
            factors[name] = factor
        for one in self.slices:
            one.replace(factors[one.group])
            one.clear()
        for one in self.slices:
            one.zero(self.fallen[one.group])

    @torch.no_grad()
    def keep(self) -> None:
        """See :class:`Carrier`: moments that an optimiser kept would move rows of B and trained weights again."""
        for one in self.dead:
            one.clear()
            if one.trained:
                one.zero()

    @torch.no_grad()
    def renew(self) -> None:
        """Weights were computed anew: they are zero again where structures are gone."""
        for one in self.dead:
            one.zero()

    def finish(self) -> None:
        """See :class:`Carrier`."""
        self.gone = self.zeros
        for one in self.slices:
            one.before = None
        self.dead += self.slices
        super().finish()
        self.fallen = {}

    @property
    def zeros(self) -> Redundant:
        """See :class:`Carrier`."""
        found = {name: set(gone) for name, gone in self.gone.items()}
        for name, fallen in self.fallen.items():
            found.setdefault(name, set()).update(self.fading[name][fallen.cpu()].tolist())
        return {name: sorted(gone) for name, gone in found.items() if gone}

    def state_dict(self) -> dict[str, Any]:
        """What is fading, and the fading slices of weights that are frozen: a checkpoint of what was trained has not
        got them."""
        return {
            "fading": {name: gone.clone() for name, gone in self.fading.items()},
            "fallen": {name: fallen.cpu().clone() for name, fallen in self.fallen.items()},
            "slices": {one.key: one.taken().cpu() for one in self.slices if not one.trained},
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any], redundant: Redundant) -> None:
        """See :class:`Carrier`.

        Raises:
            PlanError: structures are zero in this model that the state has not picked.
        """
        for name, here in self.zeros.items():
            if not set(here) <= set(redundant.get(name, ())):
                what = f"{name} has lost structures since the state was saved, and their weights are not in it"
                raise PlanError(message(what, todo="load the base's weights again, and make a new LHSPG"))
        fading = {name: torch.as_tensor(gone).cpu().long() for name, gone in state["fading"].items()}
        still = {name: set(gone.tolist()) for name, gone in fading.items()}
        self.gone = {}
        for name, picked in redundant.items():
            gone = [i for i in picked if i not in still.get(name, ())]
            if gone:
                self.gone[name] = gone
        self.dead = self.find({name: torch.tensor(gone) for name, gone in self.gone.items()})
        self.renew()
        self.start(fading)
        self.fallen = {name: torch.as_tensor(fallen).cpu().bool() for name, fallen in state["fallen"].items()}
        for one in self.slices:
            if one.key in state["slices"]:
                one.put(torch.as_tensor(state["slices"][one.key]))
