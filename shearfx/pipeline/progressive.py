"""Progressive pruning with adapters on a working copy: LHSPG in the pipeline's own loop.

Source: LoRAShear, Algorithm 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shearfx.config import ShearConfig
from shearfx.live_adapters import adapters_of
from shearfx.low_rank import LowRank
from shearfx.optim import LHSPG
from shearfx.optim.choosing import Redundant
from shearfx.optim.scoring import ACCUMULATED
from shearfx.optim.standing_in import StandingIn
from shearfx.pipeline.adapting import adapting
from shearfx.pipeline.diary import Diary
from shearfx.pipeline.scoring_data import ScoringData, call_loss
from shearfx.pipeline.study import Study
from shearfx.pipeline.subject import Subject
from shearfx.run_directory import RunDirectory
from shearfx.saliency import Saliency, find
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
    scoring = _scoring(study, model)
    fitted = study.batches(config.fitting_windows, config.seed + 3)
    fitting = [{"input_ids": ids} for ids in fitted] if config.compensation != "none" else None
    proxy: str | Saliency = config.saliency
    if proxy not in ACCUMULATED:
        proxy = find(config.saliency)
        proxy.fitting, proxy.memory = fitted, memory
    with adapting(config, model) as wrapped:
        optimizer = LHSPG(
            subject.graph, wrapped, target=subject.amount, unit=subject.unit, warmup=steps - periods * length,
            periods=periods, period_length=length, saliency=proxy, half_space_eps=config.half_space_eps,
            penalty=config.penalty, strength=config.strength, carrier=config.carrier,
            merge="period" if config.merge == "period" else "never", merge_moments=config.merge_moments,
            merge_warmup=config.merge_warmup, lr=study.lr, weight_decay=config.weight_decay, tied=tied,
            floor=config.floor, round_to=config.round_to, data=scoring, loss=call_loss, compensate=fitting,
            seed=config.seed,
        )  # fmt: skip
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


def _scoring(study: Study, model: nn.Module) -> Callable[[int], Iterable[Any]] | None:
    """What each period's scores are computed on; nothing where training itself brings them, which did no worse than
    passes with labels drawn from the full model's word (SmolLM2, 20%, 41 k tokens: 4.250 nats against 4.272)."""
    if study.config.saliency in ACCUMULATED:
        return None
    return ScoringData(study, model, find(study.config.saliency), study.config.periods).of


def _inner_teacher(wrapped: Any, optimizer: LHSPG) -> Teacher:
    """The full model inside the one that is trained: gates open, adapters off; no second copy in memory."""

    def ask(ids: Tensor) -> Tensor:
        with torch.no_grad(), optimizer.gates.opened(), wrapped.disable_adapter():
            logits: Tensor = wrapped(input_ids=ids, use_cache=False).logits
        return logits

    return ask
