"""Structures that fade in the weights themselves, by kernels: a few launches a step, whatever the number of layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from shearfx.cuda import choosing
from shearfx.cuda.stepping import Clearing, Step
from shearfx.optim.fading import Rule
from shearfx.optim.reading import Addresses, addresses, lines_of, prepared, stacked
from shearfx.optim.redundant_slices import Find, Slices
from shearfx.optim.weight_carrier import WeightCarrier


class KernelWeightCarrier(WeightCarrier):
    """The same as :class:`WeightCarrier`, to which it leaves what kernels cannot take: weights that are trained
    themselves, and all of them where there is no card.

    Args:
        find, rule: see :class:`shearfx.optim.carriers.Carrier`.
        kernels: see :class:`shearfx.optim.LHSPG`.
    """

    def __init__(self, find: Find, rule: Rule, kernels: choosing.Kernels) -> None:
        super().__init__(find, rule)
        self.kernels: choosing.Kernels = kernels
        self._planned_for: Addresses | None = None
        self._step: Step | None = None
        self._rest: list[Slices] = []
        self._own_fallen: dict[str, Tensor] | None = None
        self._clearing: tuple[Addresses, list[Clearing], list[Slices]] | None = None

    def prepare(self, structures: Mapping[str, Tensor]) -> None:
        """See :class:`shearfx.optim.carriers.Carrier`."""
        prepared(self.find(structures), self.kernels, steps=True)

    def start(self, fading: Mapping[str, Tensor]) -> None:
        """See :class:`shearfx.optim.carriers.Carrier`."""
        super().start(fading)
        # a state that was loaded may have found other slices of the same weights
        self._planned_for, self._clearing = None, None

    def finish(self) -> None:
        """See :class:`shearfx.optim.carriers.Carrier`."""
        super().finish()
        self._step, self._planned_for, self._clearing = None, None, None

    def _plan(self) -> None:
        """Tables of what the period's slices are and where they lie, unless they are made and still right."""
        now = addresses(self.slices)
        if now == self._planned_for:
            return
        lines = {i: lines_of(one) for i, one in enumerate(self.slices) if not one.trained}
        found = choosing.fitting(lines, self.kernels, steps=True)
        self._planned_for, self._step, self._own_fallen = now, None, None
        if len(found) > 1:
            choosing.refuse("the weights of a structure are on several devices", self.kernels)
        if len(found) != 1:
            return
        ((where, numbers),) = found.items()
        at, offsets = 0, {}
        for name, gone in self.fading.items():
            offsets[name], at = at, at + len(gone)
        slots = [self.slices[i].slot + offsets[self.slices[i].group] for i in numbers]
        self._step = Step(where, [lines[i] for i in numbers], slots, at)
        self._rest = [one for i, one in enumerate(self.slices) if i not in set(numbers)]

    @torch.no_grad()
    def fade(self, left: int) -> None:
        """See :class:`shearfx.optim.carriers.Carrier`."""
        self._plan()
        if self._step is None:
            super().fade(left)
            return
        step, device = self._step, self._step.launcher.device
        if self.fallen is not self._own_fallen:  # a period begins, or a state was loaded
            step.fallen.copy_(stacked([self.fallen[name] for name in self.fading], device))
        more = None
        if self._rest and self.rule.looks and left > 1:
            read = [(one, *one.sums()) for one in self._rest]
            squares = self.sums((one, square) for one, square, _ in read)
            inner = self.sums((one, product) for one, _, product in read)
            more = stacked(list(squares.values()), device), stacked(list(inner.values()), device)
        step.run(
            left,
            constant=self.rule.penalty == "constant",
            strength=self.rule.strength,
            epsilon=self.rule.epsilon,
            more=more,
        )
        sizes = [len(gone) for gone in self.fading.values()]
        # its own, as the step goes on writing to what it has
        self.fallen = dict(zip(self.fading, step.fallen.bool().split(sizes), strict=True))
        self._own_fallen = self.fallen
        if self._rest:
            factors = dict(zip(self.fading, step.factors.cpu().split(sizes), strict=True))
            for one in self._rest:
                one.replace(factors[one.group])
                one.clear()
                one.zero(self.fallen[one.group].cpu())

    @torch.no_grad()
    def keep(self) -> None:
        """See :class:`shearfx.optim.carriers.Carrier`."""
        now = addresses(self.dead)
        if self._clearing is None or self._clearing[0] != now:
            lines = {i: lines_of(one) for i, one in enumerate(self.dead) if not one.trained}
            found = choosing.fitting(lines, self.kernels)
            taken = {i for numbers in found.values() for i in numbers}
            cleared = [Clearing.of(where, [lines[i] for i in numbers]) for where, numbers in found.items()]
            self._clearing = now, cleared, [one for i, one in enumerate(self.dead) if i not in taken]
        _, clearings, rest = self._clearing
        for clearing in clearings:
            clearing.run()
        for one in rest:
            one.clear()
            if one.trained:
                one.zero()
