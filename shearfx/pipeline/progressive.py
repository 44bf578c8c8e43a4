"""Progressive pruning with adapters on a working copy: LHSPG in the pipeline's own loop.

Source: LoRAShear, Algorithm 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shearfx.config import ShearConfig
from shearfx.gating.gates import Gates
from shearfx.graph import Graph
from shearfx.live_adapters import adapters_of
from shearfx.low_rank import LowRank
from shearfx.optim import LHSPG
from shearfx.optim.choosing import Redundant
from shearfx.optim.scoring import ACCUMULATED, BY_GATES
from shearfx.optim.standing_in import StandingIn
from shearfx.pipeline.adapting import adapting
from shearfx.pipeline.diary import Diary
from shearfx.pipeline.scoring_data import ScoringData, call_loss
from shearfx.pipeline.study import Study
from shearfx.pipeline.subject import Subject
from shearfx.run_directory import RunDirectory
from shearfx.saliency import Saliency, find
from shearfx.saliency.fisher import unseen_by
from shearfx.selection import Tied
from shearfx.training import Loop, Mixture
from shearfx.training.losses import Teacher


@dataclass(frozen=True)
class Outcome:
    """What progressive pruning found."""

    redundant: Redundant
    learnt: dict[str, LowRank]
    """What adapters learnt, beside the weights."""
    stand_ins: StandingIn | None
    """What stands in for what is redundant where it was read."""


def prune_progressively(
    study: Study, subject: Subject, model: nn.Module, tied: list[Tied], steps: int, folder: RunDirectory, memory: int
) -> Outcome:
    """Train adapters on a model while structures fade to zero; the model is left without them.

    Args:
        study: data and loss.
        subject: the analysis of the model, and how much of it is to go.
        model: in the training dtype; its weights change only where the configuration's ``carrier`` or ``merge`` say so.
        tied: what may be cut.
        steps: optimiser steps, warm-up and periods together.
        folder: of the run; a checkpoint in it is gone on with, a finished one read.
        memory: bytes that a saliency may take beside the model.
    """
    config = study.config
    periods, length = lengths(steps, config)
    if periods < config.periods:
        study.teller.note(f"caution: {steps} steps for LHSPG are fewer than its {config.periods} periods")
    fitted = study.batches(config.fitting_windows, config.seed + 3)
    fitting = [{"input_ids": ids} for ids in fitted] if config.compensation != "none" else None
    with adapting(config, model) as wrapped:
        proxy: str | Saliency = config.saliency
        scoring = None
        if not _brought(config.saliency, subject.graph, wrapped, tied):
            proxy = find(config.saliency)
            proxy.fitting, proxy.memory = fitted, memory
            scoring = ScoringData(study, model, proxy, config.periods).of
        optimizer = LHSPG(
            subject.graph, wrapped, target=subject.amount, unit=subject.unit, warmup=steps - periods * length,
            periods=periods, period_length=length, saliency=proxy, half_space_eps=config.half_space_eps,
            penalty=config.penalty, strength=config.strength, carrier=config.carrier,
            merge="period" if config.merge == "period" else "never", merge_moments=config.merge_moments,
            merge_warmup=config.merge_warmup, lr=study.lr, weight_decay=config.weight_decay, tied=tied,
            floor=config.floor, round_to=config.round_to, data=scoring, loss=call_loss, compensate=fitting,
            seed=config.seed,
        )  # fmt: skip
        if optimizer.stand_ins is not None and optimizer.stand_ins.alone:
            alone = optimizer.stand_ins.alone
            study.teller.note(f"{len(alone)} groups fade uncompensated, as no linear layer reads them: {alone[0]}, ...")
        teacher = _inner_teacher(wrapped, optimizer) if config.distill > 0 else None
        mixture = Mixture([*study.train["pretrain"], *study.train["instruct"]], config.batch_size, seed=config.seed)
        diary = Diary(optimizer, folder)
        loop = Loop(
            wrapped, optimizer, mixture, lambda m, b: study.loss(m, b, teacher), optimizer.schedule.steps,
            accumulate=config.accumulate, checkpoint=folder.path / "state" / "prune", least=1.0,
            every=config.checkpoint_seconds, on_step=diary.step,
        )  # fmt: skip
        loop.resume()
        wrapped.train()
        with study.teller.step("progressive pruning (Algorithm 4)") as progress:
            for metrics in loop.run():
                progress(metrics["step"], loop.steps, diary.line(metrics["loss"]))
        loop.save()  # what adapters learnt is needed for the cut, should the run stop before it
        wrapped.eval()
        optimizer.detach()
        diary.periods()
        return Outcome(optimizer.redundant, adapters_of(wrapped), optimizer.stand_ins)


def lengths(steps: int, config: ShearConfig) -> tuple[int, int]:
    """Periods, and the steps of each, in so many steps: what does not divide is warm-up; fewer periods than are asked
    for where there are fewer steps."""
    periods = min(config.periods, steps)
    return periods, max(1, (steps - round(config.warmup * steps)) // periods)


def _brought(saliency: str, graph: Graph, wrapped: nn.Module, tied: Sequence[Tied]) -> bool:
    """Whether training itself brings the scores, which did no worse than passes with labels drawn from the full model's
    word (SmolLM2, 20%, 41 k tokens: 4.250 nats against 4.272). Of frozen weights that no module's input stands for it
    brings no derivatives."""
    if saliency not in BY_GATES:
        return saliency in ACCUMULATED
    gates = Gates(graph, wrapped, [g for one in tied for g in one.groups])
    return not unseen_by(gates, weights=False) or bool(unseen_by(gates))  # what is seen in no way is refused at once


def _inner_teacher(wrapped: Any, optimizer: LHSPG) -> Teacher:
    """The full model inside the one that is trained: gates open, adapters off; no second copy in memory."""

    def ask(ids: Tensor) -> Tensor:
        with torch.no_grad(), optimizer.gates.opened(), wrapped.disable_adapter():
            logits: Tensor = wrapped(input_ids=ids, use_cache=False).logits
        return logits

    return ask
