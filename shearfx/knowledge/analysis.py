"""The analysis itself: every node group shut alone, at every ratio, on every batch."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

import shearfx.saliency as saliencies
from shearfx.errors import PlanError, message
from shearfx.gradients import Loss
from shearfx.graph import Graph
from shearfx.knowledge import cache as caching
from shearfx.knowledge.bench import Announce, Cost, bench
from shearfx.knowledge.cache import Cache, Key
from shearfx.knowledge.distribution import KnowledgeDistribution, Row, checked_gamma, perplexity_of
from shearfx.knowledge.judging import Judge, Sums
from shearfx.knowledge.trials import Shut, Trial, check_request, choose, distinct, layer_of, name_of, trials_of
from shearfx.saliency import Progress, Saliency, Scores
from shearfx.selection import Tied


def knowledge_distribution(
    graph: Graph,
    model: nn.Module,
    data: Iterable[Any],
    *,
    tied: Sequence[Tied],
    scores: Scores | None = None,
    saliency: str | Saliency = "fisher",
    ratios: Collection[float] = (0.5,),
    loss: Loss | None = None,
    gamma: float | str | None = "auto",
    kl: bool = True,
    reuse: bool = True,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    announce: Announce | None = None,
    progress: Progress | None = None,
) -> KnowledgeDistribution:
    """Measure how much the model loses with each node group.

    Node groups are shut by gates on the live model, one at a time; nothing is copied, cut or rebuilt, and the model is
    restored bit for bit, also after an exception or an interrupt. What comes before a node group computes the same as
    in the full model: layers there return what they returned for it. That this gives the same, bit for bit, is checked
    on the first batch, and otherwise everything is run (the result's ``note`` says why).

    Memory, beside the model's own forward pass: for one batch at a time the output of every layer,
    ``layers * tokens * width`` numbers (none with ``reuse=False``), and the full model's logits,
    ``tokens * vocabulary`` (none with ``kl=False``).

    Args:
        graph: the analysis of the model, or of its base without adapters.
        model: the live model, with PEFT adapters or without.
        data: the batches of D_eval: token ids int64 ``[batch, tokens]``, or the model's arguments by name
            (``labels``, if any, are predicted, -100 left out; for an encoder-decoder they belong to
            ``decoder_input_ids``, unshifted). Anything that ``loss`` takes. Held in memory.
        tied: the node groups, see :func:`shearfx.selection.select`.
        scores: which structures are the least salient, by name of group; else ``saliency`` is computed on ``data``.
        saliency: a registered name or a saliency.
        ratios: shares of structures that are shut (the paper's P).
        loss: from model and batch to a scalar in nats; weighted with the batch's sequences. Default: cross entropy of
            the next token, over all predicted tokens alike.
        gamma: what :meth:`KnowledgeDistribution.unprunable` takes by default.
        kl: also measure KL(full || shut) of what the model returns as logits.
        reuse: whether activations may be reused.
        seed: for saliencies that draw.
        cache: a file that every measurement is appended to. If it is there already, and of the same model, data and
            request, the analysis goes on where it stopped; of another one, it is refused.
        announce: called with the cost before measurements begin.
        progress: called with measurements done and in all.

    Raises:
        PlanError: nothing to measure, ratios, gamma or scores that make no sense, a group that cannot be gated, data
            that the model or the loss does not take, or a full model whose loss is not finite.
        CheckpointError: the cache cannot be used.

    Source: LoRAShear, Algorithm 3.
    """
    batches = checked_batches(data)
    asked = tuple(float(ratio) for ratio in ratios)
    check_request(tied, asked)
    checked_gamma(gamma)
    request: dict[str, Any] = {
        "model": caching.of_model(model),
        "data": caching.of_data(batches),
        "node groups": [[[g.name, g.size] for g in one.groups] for one in tied],
        "ratios": list(asked),
        "loss": "next token" if loss is None else getattr(loss, "__qualname__", type(loss).__name__),
        "kl": kl,
    }
    shut: Shut | None = None
    named = isinstance(saliency, str) and scores is None
    if named:
        request["saliency"] = [saliency, seed]
    else:
        given = scores if scores is not None else _scores(graph, model, batches, tied, saliency, loss, seed)
        shut = choose(tied, given, asked)
        request["saliency"] = caching.of_choice(shut)
    known = Cache(cache, request)
    if shut is None:
        shut = known.shut or choose(tied, _scores(graph, model, batches, tied, saliency, loss, seed), asked)
    known.begin(shut)
    trials = trials_of(graph, tied, asked, shut)
    measured = distinct(trials)
    total = len(measured) * len(batches)
    todo = [[t for t in measured if (b, t.name, t.ratio) not in known.sums] for b in range(len(batches))]
    done = total - sum(map(len, todo))
    with bench(graph, model, tied, loss, kl, reuse) as on:
        first = True
        for b, batch in enumerate(batches):
            if not todo[b] and (b, "", 0.0) in known.sums:
                continue
            full = on.prepare(batch, tied) if first else on.full(batch)
            if first and announce is not None:
                announce(on.cost(batches[b:], measured))
            first = False
            if (b, "", 0.0) not in known.sums:
                sums = on.judge.sums(batch, full, None)
                if not math.isfinite(sums.loss) or not sums.weight:
                    what = f"the full model's loss of batch {b} is {sums.loss} over {sums.weight:g} tokens"
                    raise PlanError(message(what, todo="check the model and the data"))
                known.add((b, "", 0.0), sums)
            for trial in todo[b]:
                known.add((b, trial.name, trial.ratio), on.measure(batch, trial, full))
                done += 1
                if progress is not None:
                    progress(done, total)
            on.steps.forget()
        reused = 1 - on.run_layers / on.all_layers if on.all_layers else 0.0
        note = on.steps.reason
    return _distribution(tied, trials, measured, known.sums, len(batches), asked, gamma, reused, note)


def estimate(
    graph: Graph,
    model: nn.Module,
    data: Iterable[Any],
    *,
    tied: Sequence[Tied],
    ratios: Collection[float] = (0.5,),
    loss: Loss | None = None,
    kl: bool = True,
    reuse: bool = True,
) -> Cost:
    """What :func:`knowledge_distribution` would take, from a few passes over the first batch. Without scoring.

    Raises:
        PlanError: as there.
    """
    batches = checked_batches(data)
    check_request(tied, tuple(ratios))
    # how many structures go does not depend on which
    scores = {group.name: torch.zeros(group.size) for one in tied for group in one.groups}
    trials = trials_of(graph, tied, tuple(ratios), choose(tied, scores, tuple(ratios)))
    with bench(graph, model, tied, loss, kl, reuse) as on:
        on.prepare(batches[0], tied)
        return on.cost(batches, distinct(trials))


def checked_batches(data: Iterable[Any]) -> list[Any]:
    """The batches.

    Raises:
        PlanError: there are none.
    """
    if data is None or isinstance(data, (Mapping, torch.Tensor, str)):
        raise PlanError(message(f"data= is one {type(data).__name__}, not batches", todo="pass a list of batches"))
    batches = list(data)
    if not batches:
        raise PlanError(message("the data to evaluate on has no batches", todo="pass at least one"))
    return batches


def _scores(
    graph: Graph,
    model: nn.Module,
    batches: list[Any],
    tied: Sequence[Tied],
    saliency: str | Saliency,
    loss: Loss | None,
    seed: int,
) -> Scores:
    groups = [group for one in tied for group in one.groups]
    judge = Judge(model, loss, False)

    def mean(model: nn.Module, batch: Any) -> torch.Tensor:
        return judge.differentiable(batch)

    found = saliencies.find(saliency)
    return found.score(graph, model, groups=groups, data=batches, loss=loss or mean, seed=seed)


def _distribution(
    tied: Sequence[Tied],
    trials: Sequence[Trial],
    measured: Sequence[Trial],
    sums: Mapping[Key, Sums],
    batches: int,
    ratios: tuple[float, ...],
    gamma: float | str | None,
    reused: float,
    note: str,
) -> KnowledgeDistribution:
    of = {name_of(one): one for one in tied}
    ratio_of = {(trial.name, trial.gone): trial.ratio for trial in measured}
    full, weight, _ = _means([sums[b, "", 0.0] for b in range(batches)])
    rows = []
    for trial in trials:
        one = of[trial.name]
        ratio = ratio_of[trial.name, trial.gone]
        loss, _, kl = _means([sums[b, trial.name, ratio] for b in range(batches)])
        perplexity, reference = perplexity_of(loss), perplexity_of(full)
        deviation = perplexity - reference if math.isfinite(perplexity) else math.inf
        rows.append(
            Row(
                name=trial.name,
                groups=tuple(g.name for g in one.groups),
                kind=one.kind,
                layer=layer_of(one),
                ratio=trial.ratio,
                shut=sum(map(len, trial.gone)),
                of=sum(g.size for g in one.groups),
                share=trial.share,
                loss=loss,
                perplexity=perplexity,
                deviation=deviation,
                relative=math.expm1(loss - full) if loss - full < 700 else math.inf,
                kl=kl,
            )
        )
    return KnowledgeDistribution(tuple(rows), full, weight, batches, ratios, gamma, reused, note)


def _means(parts: Sequence[Sums]) -> tuple[float, float, float | None]:
    """Mean loss, its weight, mean KL, added up in the order of batches; what is not finite is inf."""
    weight = sum(part.weight for part in parts)
    positions = sum(part.positions for part in parts)
    loss = sum(part.loss for part in parts) / weight
    kl = sum(part.kl for part in parts) / positions if positions else None
    return _or_inf(loss), weight, None if kl is None else _or_inf(kl)


def _or_inf(value: float) -> float:
    return value if math.isfinite(value) else math.inf
