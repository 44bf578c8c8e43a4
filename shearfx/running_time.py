"""How long a model runs, and what its parameters and layers contribute to that: a unit of budgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from shearfx.errors import PlanError, message

Currency = Literal["params", "flops", "structures"]
"""What a budget counts, where it is not a :class:`RunningTime`."""

FEMTOSECONDS = 10**12
"""In a millisecond: budgets count whole numbers, and a number of a weight takes picoseconds of a large model's time."""


@dataclass(frozen=True)
class RunningTime:
    """The time of one run of a model on the machine where it was measured (see :func:`shearfx.measure_time`)."""

    total: float
    """Milliseconds of a run of the whole model."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """By name of parameter: milliseconds that each number in it takes, with all that is done to what it gives."""
    layers: Mapping[str, float] = field(default_factory=dict)
    """By path: milliseconds that a layer takes."""
    what: str = ""
    """What was run, and how it was timed."""

    def __str__(self) -> str:
        return f"{self.total:.1f} ms ({self.what})"

    def to_record(self) -> dict[str, Any]:
        """As JSON holds it; ``RunningTime(**record)`` reads it."""
        return asdict(self)

    def of_total(self, total: float) -> RunningTime:
        """The same shares of another total: what two measurements disagree on is the machine's noise."""
        scale = total / self.total
        return RunningTime(
            total,
            {name: one * scale for name, one in self.rates.items()},
            {path: one * scale for path, one in self.layers.items()},
            self.what,
        )


def unit_name(unit: str | RunningTime) -> str:
    """What a budget counts, as plans record it.

    Raises:
        PlanError: ``"milliseconds"`` in place of a measurement.
    """
    if unit == "milliseconds":
        todo = "pass unit=shearfx.measure_time(graph, model)"
        raise PlanError(message("time has to be measured before it can be spent", where="unit=", todo=todo))
    return "milliseconds" if isinstance(unit, RunningTime) else unit


def amount_text(amount: float, unit: Currency | RunningTime) -> str:
    """An amount for a person.

    >>> amount_text(12_345, "params"), amount_text(25 * FEMTOSECONDS // 10, RunningTime(10.0))
    ('12,345 parameters', '2.5 ms')
    """
    if isinstance(unit, RunningTime):
        return f"{amount / FEMTOSECONDS:,.1f} ms"
    return f"{amount:,.0f} {'parameters' if unit == 'params' else 'operations' if unit == 'flops' else unit}"
