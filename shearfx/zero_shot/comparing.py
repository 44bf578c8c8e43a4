"""How much of one model's score another one keeps, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from shearfx.errors import DataError, message


@dataclass(frozen=True)
class Kept:
    """Share of the mean accuracy over tasks that is kept, and the middle 95% of its paired bootstrap."""

    raw: float
    raw_interval: tuple[float, float]
    above_chance: float
    """Share of what the mean is above that of blind choice."""
    above_chance_interval: tuple[float, float]


def kept(
    before: Mapping[str, Sequence[bool]],
    after: Mapping[str, Sequence[bool]],
    chance: Mapping[str, float],
    *,
    draws: int = 2000,
    seed: int = 0,
) -> Kept:
    """Compare two models on the same items.

    Items are drawn again within each task, the same ones for both models, so that what is hard for both does not
    count as noise (Efron and Tibshirani 1993, chapter 8, on pairs). Draws that leave the first model nothing to keep
    are left out of the intervals.

    Args:
        before: whether each item was right, by task: the model to compare with.
        after: the same for the other model, on the same items.
        chance: expected accuracy of blind choice, by task.
        draws: of the bootstrap.
        seed: of it.

    Raises:
        DataError: no task, other tasks or numbers of items, or a model to compare with that is not above chance.
    """
    if not before or {n: len(v) for n, v in before.items()} != {n: len(v) for n, v in after.items()}:
        raise DataError(message("the two models answered other items", todo="give both the same tasks and limits"))
    names, generator = sorted(before), torch.Generator().manual_seed(seed)
    means = torch.zeros(2, draws + 1, dtype=torch.float64)  # the last column: the items themselves
    for name in names:
        both = torch.tensor([list(before[name]), list(after[name])], dtype=torch.float64)
        drawn = torch.randint(both.shape[1], (draws, both.shape[1]), generator=generator)
        means[:, :-1] += both[:, drawn].mean(-1) / len(names)
        means[:, -1] += both.mean(-1) / len(names)
    blind = sum(chance[name] for name in names) / len(names)
    if float(means[0, -1]) <= blind:
        what = f"the model to compare with has {float(means[0, -1]):.3f}, blind choice {blind:.3f}"
        raise DataError(message(what, todo="compare on tasks that carry signal"))
    raw, above = means[1] / means[0], (means[1] - blind) / (means[0] - blind)
    return Kept(float(raw[-1]), _interval(raw[:-1]), float(above[-1]), _interval(above[:-1][means[0, :-1] > blind]))


def _interval(values: torch.Tensor) -> tuple[float, float]:
    values = values[values.isfinite()]
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
