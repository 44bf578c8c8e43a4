"""The bench on which node groups are measured: a model with gates on it, batch after batch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from shearfx.errors import PlanError, message
from shearfx.gating import Gates
from shearfx.gradients import Loss
from shearfx.graph import Graph
from shearfx.knowledge.judging import Judge, Result, Sums
from shearfx.knowledge.steps import Steps
from shearfx.knowledge.trials import Trial
from shearfx.selection import Tied
from shearfx.tracing import evaluation

NOT_WANTED = "reuse=False"
CHECKS = 6
"""Passes to find the layers and check them, at most."""


@dataclass(frozen=True)
class Cost:
    """What an analysis takes, known after the first forward passes."""

    passes: int
    """Measurements: batches times node groups times ratios (those that shut the same structures count once)."""
    batches: int
    layers: int
    """Of the model, as far as they are run one by one; 0 where there are none."""
    reused: float
    """Share of the passes' layers that need not be run."""
    reference: int
    """Further full passes, at most: of the full model, and to find and check what can be reused."""
    seconds: float
    """About, by the time that the full model took for the first batch."""
    recorded: int
    """Bytes of activations that are held while a batch is measured; the full model's logits come on top."""
    note: str
    """Why nothing is reused; empty where something is."""

    def __str__(self) -> str:
        of = (
            f" of {self.layers} layers, {self.reused:.0%} of them reused"
            if self.layers
            else f", all full ({self.note})"
        )
        held = f", {self.recorded / 2**20:.0f} MiB of activations held" if self.recorded else ""
        return f"{self.passes} passes{of}, about {self.seconds:.0f} s{held}"


Announce = Callable[[Cost], None]


class Bench:
    """A live model under gates, all open, in evaluation mode. Make it by :func:`bench`."""

    def __init__(self, gates: Gates, judge: Judge, reuse: bool) -> None:
        self.gates, self.judge = gates, judge
        self.steps = Steps(gates.model)
        if not reuse:
            self.steps.give_up(NOT_WANTED)
        self.seconds = 0.0
        """The last full pass took."""
        self.layers = 0
        self.run_layers = self.all_layers = 0
        """How many layers were run in measurements, and would have been without reuse."""

    def full(self, batch: Any) -> Result:
        """The full model; its activations are kept for :meth:`measure` on the same batch."""
        begun = time.perf_counter()
        if self.steps.modules:
            result: Result = self.steps.record(lambda: self.judge.run(batch), self.gates.places)
        else:
            result = self.judge.run(batch)
        self._wait()
        self.seconds = time.perf_counter() - begun
        return result

    def measure(self, batch: Any, trial: Trial, full: Result) -> Sums:
        """One node group shut; the gates stand open again afterwards."""
        start = self.steps.start(g.name for g in trial.groups)
        self.all_layers += len(self.steps)
        self.run_layers += len(self.steps) - self.steps.saved(start)
        return self.judge.sums(batch, self._shut(batch, trial, start), full)

    def prepare(self, batch: Any, tied: Sequence[Tied]) -> Result:
        """Find the layers, and check on a batch that starting in the middle gives the same, bit for bit.

        Checked with a group shut, at the first start that node groups have; then with none shut, at the last, the
        middle and the first: in this order, whatever the shut pass left behind in the model shows, as the layers that
        would overwrite it do not run.

        Returns:
            What the full model returned; its activations are kept, as by :meth:`full`.
        """
        if self.steps.reason != NOT_WANTED:
            self.steps.find(lambda: self.judge.run(batch))
            self.layers = len(self.steps)
        full = self.full(batch)
        starts: dict[int, Tied] = {}
        for one in tied:
            start = self.steps.start(g.name for g in one.groups)
            if self.steps.saved(start):
                starts.setdefault(start, one)
        if not starts:
            if self.steps.modules:
                self.steps.give_up("no layer comes before the node groups")
            return full
        ordered = sorted(starts)
        trial = _half(starts[ordered[0]])
        if not self._shut(batch, trial, 0).same(self._shut(batch, trial, ordered[0])):
            self.steps.give_up(f"starting at layer {ordered[0]} does not give the same with a group shut")
            return full
        for start in dict.fromkeys((ordered[-1], ordered[len(ordered) // 2], ordered[0])):
            if not self._resumed(batch, start).same(full):
                self.steps.give_up(f"starting at layer {start} does not give the same")
                break
        return full

    def cost(self, batches: Sequence[Any], trials: Sequence[Trial]) -> Cost:
        """After :meth:`prepare` or :meth:`full` on the first of the batches, of measuring these trials."""
        sizes = [_numbers(batch) for batch in batches]
        time_of_all = self.seconds * sum(sizes) / max(sizes[0], 1)
        starts = [self.steps.start(g.name for g in trial.groups) for trial in trials]
        saved = sum(self.steps.saved(start) for start in starts)
        reused = saved / (len(self.steps) * len(trials)) if self.steps.modules and trials else 0.0
        return Cost(
            len(trials) * len(batches),
            len(batches),
            len(self.steps),
            reused,
            len(batches) + (0 if self.steps.reason == NOT_WANTED else CHECKS),
            time_of_all * (1 + len(trials) * (1 - reused)),
            self.steps.recorded_bytes,
            self.steps.reason,
        )

    def _shut(self, batch: Any, trial: Trial, start: int) -> Result:
        self.gates.set(trial.closed)
        try:
            return self._resumed(batch, start)
        finally:
            self.gates.set(trial.opened)

    def _resumed(self, batch: Any, start: int) -> Result:
        if not start:
            return self.judge.run(batch)
        result: Result = self.steps.resume(lambda: self.judge.run(batch), start)
        return result

    def _wait(self) -> None:
        if self.judge.device.type == "cuda":
            torch.cuda.synchronize(self.judge.device)


@contextlib.contextmanager
def bench(
    graph: Graph, model: nn.Module, tied: Sequence[Tied], loss: Loss | None, kl: bool, reuse: bool
) -> Iterator[Bench]:
    """For the while, the model is under gates and in evaluation mode; then it is what it was, bit for bit.

    Raises:
        PlanError: the model is on the meta device, or a group cannot be gated.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise PlanError(message("the analysis runs the model, which is on the meta device", todo="load the weights"))
    gates = Gates(graph, model, [group for one in tied for group in one.groups])
    # not inference_mode: its tensors do not tell whether they were changed in place
    with torch.inference_mode(False), torch.no_grad(), evaluation(model):
        made = Bench(gates, Judge(model, loss, kl), reuse)
        try:
            gates.attach()
            yield made
        finally:
            made.steps.forget()
            gates.detach()


def _half(one: Tied) -> Trial:
    gone = tuple(tuple(range(max(1, group.size // 2))) for group in one.groups)
    return Trial("", 0.5, one.groups, gone, 0.0)


def _numbers(batch: Any) -> int:
    leaves = pytree.tree_leaves(batch)
    return max((leaf.numel() for leaf in leaves if isinstance(leaf, torch.Tensor)), default=1)
