"""Dynamic knowledge recovery: train on what was lost most, round by round, until nothing more comes back.

Source: LoRAShear, Algorithm 5 (section 3.5).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from shearfx.data import Examples
from shearfx.errors import TrainingError, message
from shearfx.training.judging import losses_of
from shearfx.training.loop import Loop, Metrics
from shearfx.training.losses import Teacher, causal_loss
from shearfx.training.sampling import Mixture


@dataclass(frozen=True)
class Stage:
    """Sources of one kind, recovered together: pretraining first, then instructions (Algorithm 5, line 2)."""

    name: str
    train: tuple[Examples, ...]
    validation: tuple[Examples, ...]
    """A uniform sample of every source (line 3), by the same names."""


@dataclass
class Round:
    """What one round found and did."""

    stage: str
    number: int
    step: int
    losses: dict[str, float]
    """Validation loss of every source, nats a token, at the round's start."""
    degradation: dict[str, float]
    """How much that is above the full model's."""
    weights: dict[str, float] = field(default_factory=dict)
    """Shares in which the sources were drawn in this round."""


def weights_of(degradation: Mapping[str, float], balance: float) -> dict[str, float]:
    """Shares of the sources in the next subset: by degradation, with a floor against overfitting (line 6).

    Args:
        degradation: validation loss above the full model's, by source; what is below counts as none.
        balance: the share that is spread evenly; 1 is uniform recovery.

    >>> weights_of({"a": 0.3, "b": 0.1, "c": -0.2}, balance=0.3)
    {'a': 0.625, 'b': 0.275, 'c': 0.1}
    """
    lost = {name: max(0.0, value) for name, value in degradation.items()}
    total = sum(lost.values())
    if total == 0:
        return dict.fromkeys(lost, 1 / len(lost))
    return {name: round(balance / len(lost) + (1 - balance) * value / total, 12) for name, value in lost.items()}


@dataclass
class Recovery:
    """Trains what requires gradients of a cut model until the full model's losses come no nearer.

    Args:
        model: the cut model, with adapters or without; what requires gradients is trained.
        optimizer: makes a new optimiser for each stage.
        stages: in order.
        reference: validation loss of the full model by source, so that it need not stay in memory.
        steps: at most so many in all, shared out by the stages' numbers of windows.
        rounds: how often a stage measures degradation and chooses anew.
        balance: see :func:`weights_of`.
        tolerance: converged when over ``patience`` rounds the mean degradation falls by less than this share of what it
            was at the stage's start (the paper names no test).
        teacher, distill: the full model's word for every token, and its share in the loss.
        batch_size, accumulate, clip, warm: of the loop.
        seed: of the draws.
        checkpoint: folder; a stage that was cut off goes on from it.
        every: seconds between checkpoints.
        deadline: when it has to end, by ``time.monotonic()``; stages share what is left as they share the steps.
        on_step, on_round: told as it goes.
        progress: told the steps that are done, those before a stop among them, and all.
    """

    model: nn.Module
    optimizer: Callable[[], torch.optim.Optimizer]
    stages: Sequence[Stage]
    reference: Mapping[str, float]
    steps: int
    rounds: int = 4
    balance: float = 0.2
    tolerance: float = 0.01
    patience: int = 2
    teacher: Teacher | None = None
    distill: float = 0.0
    batch_size: int = 4
    accumulate: int = 1
    clip: float = 1.0
    warm: int = 5
    seed: int = 0
    checkpoint: Path | None = None
    every: float = 60.0
    deadline: float | None = None
    on_step: Callable[[Metrics], None] | None = None
    progress: Callable[[int, int], None] | None = None
    on_round: Callable[[Round], None] | None = None
    history: list[Round] = field(default_factory=list)

    def run(self) -> list[Round]:
        """Recover, stage after stage.

        Returns:
            All rounds, and one more for the end of every stage.

        Raises:
            TrainingError: a source without a reference, or training diverges.
        """
        names = [source.name for stage in self.stages for source in stage.validation]
        missing = [name for name in names if name not in self.reference]
        if missing or not names:
            raise TrainingError(message(f"no loss of the full model is known for {', '.join(missing) or 'any source'}"))
        windows = [sum(len(source) for source in stage.train) for stage in self.stages]
        for number, stage in enumerate(self.stages):
            share = round(self.steps * sum(windows[: number + 1]) / sum(windows))
            before = round(self.steps * sum(windows[:number]) / sum(windows))
            if share > before:
                self._stage(number, stage, share - before, before, self._end(windows[number:]))
        return self.history

    def _end(self, windows: Sequence[int]) -> float | None:
        """When the first of the stages that are left has to end."""
        now = time.monotonic()
        return None if self.deadline is None else now + (self.deadline - now) * windows[0] / sum(windows)

    def _stage(self, number: int, stage: Stage, steps: int, before: int, end: float | None) -> None:
        def told(metrics: Metrics) -> None:
            if self.on_step is not None:
                self.on_step({"stage": stage.name, **metrics})
            if self.progress is not None:
                self.progress(before + int(metrics["step"]), self.steps - steps + loop.steps)

        place = None if self.checkpoint is None else self.checkpoint / f"{number}-{stage.name}"
        mixture = Mixture(stage.train, self.batch_size, seed=self.seed + number)
        mine: list[Round] = []
        loop = Loop(
            self.model, self.optimizer(), mixture,
            lambda model, batch: causal_loss(model, batch, self.teacher, self.distill), steps,
            accumulate=self.accumulate, clip=self.clip,
            warm=self.warm, on_step=told, checkpoint=place, every=self.every, deadline=end,
            extra=lambda: {"rounds": [asdict(one) for one in mine]},
        )  # fmt: skip
        extra = loop.resume()
        if extra is not None:
            mine += [Round(**one) for one in extra["rounds"]]
        each = max(1, -(-steps // max(1, self.rounds)))
        running = loop.run()
        while loop.step < loop.steps:
            if loop.step % each == 0 and (not mine or mine[-1].step != loop.step):
                mine.append(self._judge(stage, len(mine), loop.step))
                if self._converged(mine):
                    break
                mine[-1].weights = weights_of(mine[-1].degradation, self.balance)
                mixture.reweight(mine[-1].weights)
                self._tell(mine[-1])
            next(running)
        if mine[-1].step != loop.step or mine[-1].weights:
            mine.append(self._judge(stage, len(mine), loop.step))
        self._tell(mine[-1])
        if place is not None:
            loop.save()
        self.history += mine

    def _tell(self, found: Round) -> None:
        if self.on_round is not None:
            self.on_round(found)

    def _judge(self, stage: Stage, number: int, step: int) -> Round:
        losses = losses_of(self.model, stage.validation, self.batch_size)
        return Round(stage.name, number, step, losses, {n: loss - self.reference[n] for n, loss in losses.items()})

    def _converged(self, rounds: Sequence[Round]) -> bool:
        if len(rounds) <= self.patience:
            return False
        means = [sum(one.degradation.values()) / len(one.degradation) for one in rounds]
        return means[-1 - self.patience] - means[-1] < self.tolerance * abs(means[0])
