"""When LHSPG does what: warm-up, then periods of equal length, then nothing more.

Source: LoRAShear, Algorithm 4, lines 1 to 9.
"""

from __future__ import annotations

from dataclasses import dataclass

from shearfx.errors import PlanError, message


@dataclass(frozen=True)
class Moment:
    """What a step of the optimiser is in the schedule."""

    period: int
    """-1 in the warm-up, the number of periods once all are over."""
    step: int
    """Within the warm-up or the period, from 0."""


@dataclass(frozen=True)
class Schedule:
    """``warmup`` steps of plain training, then ``periods`` times ``period_length`` steps.

    Raises:
        PlanError: a number is negative, or a period has no step.
    """

    warmup: int
    periods: int
    period_length: int

    def __post_init__(self) -> None:
        for name, least in (("warmup", 0), ("periods", 1), ("period_length", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                what = f"{name}={value!r} is no whole number of at least {least}"
                raise PlanError(message(what, where="LHSPG(...)", todo="count optimiser steps"))

    @property
    def steps(self) -> int:
        """Steps until every redundant structure is gone."""
        return self.warmup + self.periods * self.period_length

    def at(self, step: int) -> Moment:
        """What the given step (from 0) is.

        >>> schedule = Schedule(warmup=2, periods=2, period_length=3)
        >>> [(m.period, m.step) for m in map(schedule.at, range(9))]
        [(-1, 0), (-1, 1), (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]
        """
        if step < self.warmup:
            return Moment(-1, step)
        period, within = divmod(step - self.warmup, self.period_length)
        return Moment(period, within) if period < self.periods else Moment(self.periods, step - self.steps)

    def share(self, period: int) -> tuple[int, int]:
        """How much of the target is redundant after a period, as a fraction: remainders are spread, none are lost."""
        return period + 1, self.periods
