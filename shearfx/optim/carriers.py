"""What carries the fading of redundant structures: gates on the model, or the weights themselves.

Source: LoRAShear, Algorithm 4, lines 6 to 9.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from shearfx.cuda.choosing import Kernels
from shearfx.errors import PlanError, message
from shearfx.gating.gates import Gates
from shearfx.optim.choosing import Redundant
from shearfx.optim.fading import Rule
from shearfx.optim.reading import Reader, prepared
from shearfx.optim.redundant_slices import Find, Slices


class Carrier(ABC):
    """Fades the structures of one period after the other.

    Args:
        find: from structures to the slices of weights that they own.
        rule: how they fade.
    """

    def __init__(self, find: Find, rule: Rule) -> None:
        self.find, self.rule = find, rule
        self.fading: dict[str, Tensor] = {}
        """The structures of the running period: group to LongTensor."""
        self.slices: list[Slices] = []

    @abstractmethod
    def prepare(self, structures: Mapping[str, Tensor]) -> None:
        """Before training: whatever can be had ready, or refused, of all that may fade (group to LongTensor).

        Raises:
            PlanError: kernels were asked for by name, and they cannot take these structures.
        """

    def start(self, fading: Mapping[str, Tensor]) -> None:
        """A period begins, with these structures (group to LongTensor)."""
        self.fading = dict(fading)
        self.slices = self.find(self.fading)

    def before(self) -> None:
        """The optimiser is about to step."""
        for one in self.slices if self.rule.looks else ():
            one.remember()

    @abstractmethod
    def fade(self, left: int) -> None:
        """Lines 7 and 8: the trial iterate of every fading structure, and its half-space test.

        Args:
            left: steps left in the period, this one included; at 1 all are zero afterwards.
        """

    @abstractmethod
    def keep(self) -> None:
        """The optimiser has stepped: what fell in earlier periods is still zero."""

    def finish(self) -> None:
        """The period is over: the adapters' own slices of what is gone are zero, rows of B and columns of A."""
        for one in self.slices:
            one.clear()
        self.fading, self.slices = {}, []

    @property
    @abstractmethod
    def zeros(self) -> Redundant:
        """The structures that are exactly zero now, by group."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs beside the trained parameters."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any], redundant: Redundant) -> None:
        """Go on where a run stopped.

        Args:
            state: of :meth:`state_dict`.
            redundant: all that was picked, by group.
        """

    def sums(self, pairs: Iterable[tuple[Slices, Tensor]]) -> dict[str, Tensor]:
        """Numbers per slice, added up per fading structure: group to ``[n]``."""
        found: dict[str, Tensor] = {}
        for one, values in pairs:
            if one.group not in found:
                found[one.group] = values.new_zeros(len(self.fading[one.group]))
            found[one.group].index_add_(0, one.slot, values.to(found[one.group]))
        return {name: found.get(name, torch.zeros(len(gone))) for name, gone in self.fading.items()}


class GateCarrier(Carrier):
    """Structures fade by their gates: the weights, frozen, quantised or shared, are never written."""

    def __init__(self, gates: Gates, find: Find, rule: Rule, kernels: Kernels = "auto") -> None:
        super().__init__(find, rule)
        self.gates, self._reader = gates, Reader(kernels)
        self._frozen: dict[str, Tensor] = {}
        for place in gates.places.weights:
            if place.parameter.requires_grad:
                what = f"{place.group} is gated in a parameter itself, which is trained: gates would undo the training"
                todo = 'pass carrier="weights", freeze the parameter, or leave the group out'
                raise PlanError(message(what, where="LHSPG(...)", todo=todo))

    def prepare(self, structures: Mapping[str, Tensor]) -> None:
        """See :class:`Carrier`."""
        if self.rule.looks:
            prepared(self.find(structures), self._reader.kernels, steps=False)

    def start(self, fading: Mapping[str, Tensor]) -> None:
        """See :class:`Carrier`; how long frozen slices are is read once."""
        super().start(fading)
        if self.rule.looks:
            with self.gates.opened():
                frozen = [one for one in self.slices if not one.trained]
                self._frozen = self.sums(zip(frozen, self._reader.squares(frozen), strict=True))

    @torch.no_grad()
    def fade(self, left: int) -> None:
        """See :class:`Carrier`. ``x`` is the gate times the weights, ``d`` the gate times what was learnt."""
        nothing = {name: torch.zeros(len(gone)) for name, gone in self.fading.items()}
        squares = inner = nothing
        if left > 1 and self.rule.looks:
            trained = [(one, *one.sums()) for one in self.slices if one.trained]
            also = self.sums((one, square) for one, square, _ in trained)
            squares = {name: self._frozen[name] + also[name] for name in self.fading}
            if self.rule.tests:
                rest = [one for one in self.slices if not one.trained]
                learnt = zip(rest, self._reader.learnt(rest), strict=True)
                inner = self.sums([*((one, product) for one, _, product in trained), *learnt])
        values = {}
        for name, gone in self.fading.items():
            value = self.gates.values[name].clone()
            gate, norm = value[gone], squares[name].sqrt()
            factor = self.rule.factor(left, norm, gate)
            fallen = self.rule.falls(factor, inner[name], norm, left)
            # a structure that has fallen before is never tested again
            value[gone] = torch.where(fallen | (gate == 0), 0.0, gate * factor).to(value)
            values[name] = value
        self.gates.set(values)

    def keep(self) -> None:
        """See :class:`Carrier`: a gate that is shut needs nothing."""

    @property
    def zeros(self) -> Redundant:
        """See :class:`Carrier`."""
        return self.gates.shut()

    def state_dict(self) -> dict[str, Any]:
        """The gates that are not open, and what is fading."""
        return {
            "gates": {name: value.clone() for name, value in self.gates.values.items() if bool((value != 1).any())},
            "fading": {name: gone.clone() for name, gone in self.fading.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], redundant: Redundant) -> None:
        """See :class:`Carrier`."""
        values = {name: torch.ones(g.size) for name, g in self.gates.groups.items()}
        values |= {name: torch.as_tensor(v).cpu().float() for name, v in state["gates"].items()}
        self.gates.set(values)
        self.start({name: torch.as_tensor(gone).cpu().long() for name, gone in state["fading"].items()})
