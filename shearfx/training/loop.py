"""The training loop: accumulation, a schedule of learning rates, a guard against NaN, checkpoints, progress."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from shearfx.atomic import put_back
from shearfx.errors import TrainingError, message
from shearfx.training.state_files import read_state, write_state

Metrics = dict[str, Any]


class Batches(Protocol):
    """Where batches come from; its state is part of a checkpoint."""

    def next(self) -> Any:
        """The next microbatch."""

    def state_dict(self) -> dict[str, Any]:
        """Where it is."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""


@dataclass
class Loop:
    """Trains what an optimiser trains, step by step.

    Args:
        model: the live model.
        optimizer: any ``torch.optim.Optimizer``; its learning rates are the peaks of the schedule.
        batches: where microbatches come from.
        loss: from model and microbatch to a scalar, the mean over what counts.
        steps: how many steps.
        accumulate: microbatches of a step.
        clip: the largest norm of all gradients together (0: no limit).
        warm: steps over which the learning rate rises.
        least: the share of the peak that the cosine ends at.
        on_step: told the metrics of every step.
        checkpoint: folder for the state; resumed from if it exists.
        every: seconds between checkpoints.
        deadline: when it has to end, by ``time.monotonic()``; where steps take longer than was thought, there are
            fewer, and the schedule ends with them.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Batches
    loss: Callable[[nn.Module, Any], Tensor]
    steps: int
    accumulate: int = 1
    clip: float = 1.0
    warm: int = 5
    least: float = 0.1
    on_step: Callable[[Metrics], None] | None = None
    checkpoint: Path | None = None
    every: float = 60.0
    deadline: float | None = None
    step: int = 0
    """Steps taken."""
    extra: Callable[[], dict[str, Any]] = dict
    """Further state to keep with a checkpoint."""
    _asked: int = 0
    """Steps, were there no deadline."""
    _peaks: list[float] = field(default_factory=list)
    _saved: float = 0.0

    def __post_init__(self) -> None:
        self._asked = self.steps
        self._peaks = [float(group["lr"]) for group in self.optimizer.param_groups]

    def run(self) -> Iterator[Metrics]:
        """Train; yields the metrics of every step, after it.

        Raises:
            TrainingError: a loss or gradient is not finite; the last checkpoint is what is left, or the step before.
        """
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._saved = begun = time.monotonic()
        first = self.step
        while self.step < self.steps:
            start = time.monotonic()
            due = self.checkpoint is not None and start - self._saved >= self.every
            good = self._state() if due else None  # if it is: what this step's loss and gradients will show
            self._set_rate()
            total = 0.0
            for _ in range(self.accumulate):
                loss = self.loss(self.model, self.batches.next()) / self.accumulate
                total += float(loss.detach())
                if not math.isfinite(total):
                    raise self._diverged(f"the loss of step {self.step} is {total}")
                loss.backward()
            norm = float(torch.nn.utils.clip_grad_norm_(trained, self.clip or math.inf))
            if not math.isfinite(norm):
                raise self._diverged(f"a gradient of step {self.step} is not finite")
            if good is not None:
                self._write(good)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            if self.deadline is not None:
                each = max(time.monotonic() - begun, 1e-6) / (self.step - first)  # clocks have ticks
                self.steps = min(self._asked, self.step + max(0, int((self.deadline - time.monotonic()) / each)))
            metrics = {
                "step": self.step, "loss": total, "norm": norm, "lr": self.optimizer.param_groups[0]["lr"],
                "seconds": time.monotonic() - start,
            }  # fmt: skip
            if self.on_step is not None:
                self.on_step(metrics)
            yield metrics

    def _set_rate(self) -> None:
        rising = min(1.0, (self.step + 1) / max(self.warm, 1))
        falling = self.least + (1 - self.least) * 0.5 * (1 + math.cos(math.pi * self.step / max(self.steps, 1)))
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * rising * falling

    def _diverged(self, what: str) -> TrainingError:
        where = f"step {self.step} of {self.steps}, learning rate {self.optimizer.param_groups[0]['lr']:g}"
        kept = f"; the state of an earlier step is in {self.checkpoint}" if self._kept() else ""
        return TrainingError(message(what + kept, where=where, todo="lower the learning rate, or check the data"))

    def _kept(self) -> bool:
        return self.checkpoint is not None and put_back(self.checkpoint) and (self.checkpoint / "state.json").is_file()

    def save(self) -> None:
        """Write a checkpoint."""
        self._write(self._state())

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds; its tensors are those of the run, until the optimiser steps."""
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        steps = self._asked if self.step < self.steps else self.steps  # what ended in time is not gone on with
        return {
            "step": self.step, "steps": steps, "trained": trained,
            "optimizer": self.optimizer.state_dict(), "batches": self.batches.state_dict(),
            "random": torch.get_rng_state(), "random_gpu": self._gpu_random(), "extra": self.extra(),
        }  # fmt: skip

    def _write(self, state: Mapping[str, Any]) -> None:
        assert self.checkpoint is not None
        write_state(self.checkpoint, state)
        self._saved = time.monotonic()

    def resume(self) -> dict[str, Any] | None:
        """Go on from the checkpoint, if there is one, at the learning rates of the optimiser as it was passed.

        Returns:
            The checkpoint's further state; None where there is none.

        Raises:
            CheckpointError: it is damaged.
            TrainingError: it is of another model.
        """
        if not self._kept():
            return None
        assert self.checkpoint is not None
        state = read_state(self.checkpoint)
        own = dict(self.model.named_parameters())
        for name, value in state["trained"].items():
            if name not in own or own[name].shape != value.shape:
                todo = "remove it, or resume with the model and options of that run"
                raise TrainingError(message(f"the checkpoint trains {name}, which this model does not have so",
                                            where=str(self.checkpoint), todo=todo))  # fmt: skip
        with torch.no_grad():
            for name, value in state["trained"].items():
                own[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.batches.load_state_dict(state["batches"])
        self.step, self.steps = int(state["step"]), int(state["steps"])
        self._asked = self.steps
        torch.set_rng_state(state["random"])
        if state.get("random_gpu") is not None and self._device.type == "cuda":
            torch.cuda.set_rng_state(state["random_gpu"], self._device)
        extra: dict[str, Any] = state["extra"]
        return extra

    @property
    def _device(self) -> torch.device:
        """Of what is trained."""
        return next((p.device for group in self.optimizer.param_groups for p in group["params"]), torch.device("cpu"))

    def _gpu_random(self) -> Tensor | None:
        """Where dropout on the GPU that trains draws from."""
        return torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None
