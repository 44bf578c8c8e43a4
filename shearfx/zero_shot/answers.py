"""How likely a model finds continuations of contexts: many at a time, none computed twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedTokenizerBase

from shearfx.errors import DataError, ShearError, message
from shearfx.inference import bos_of, device_of, evaluating, logits_of, positions

Pair = tuple[str, str]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Answer:
    """What a model makes of one continuation."""

    log_likelihood: float
    """Natural logarithm, summed over the continuation's tokens."""
    greedy: bool
    """Whether it is what the model would have written."""
    merged: bool = False
    """Whether a token lies across the border of context and continuation: it counts as the continuation's."""


@dataclass(frozen=True)
class Request:
    """Token ids of a context and a continuation, cut on the left to what the model has positions for."""

    read: tuple[int, ...]
    """What the model reads: all but the last token."""
    predicted: tuple[int, ...]
    """The continuation."""
    merged: bool = False
    """Whether the first of these tokens begins in the context."""


def answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    places: Sequence[str] | None = None,
    *,
    batch_tokens: int = 2048,
    progress: Progress | None = None,
) -> Iterator[tuple[int, Answer]]:
    """Yield (number of the pair, answer) as they are found; long ones first.

    Context and continuation are tokenised together and split where the context ends, as lm-evaluation-harness does;
    blanks at the end of a context count as the continuation's. A token that lies across that border is the
    continuation's too (the harness would score a text with this token left out, or said twice). Where the tokenizer
    puts a beginning-of-sequence token before text, it stands there; an empty context is that token, or the
    end-of-sequence one. Log-probabilities are taken in float32 and summed in float64. Texts that begin alike as far as
    one of them is read are read once.

    Args:
        model: a causal language model.
        tokenizer: its own.
        pairs: contexts and continuations.
        places: where each of them stands, for errors: file and line.
        batch_tokens: tokens that are read at a time, padding included (one text at least).
        progress: called with tokens read and tokens in all.

    Raises:
        DataError: a continuation has no tokens, or more than the model has positions.
        ShearError: the model cannot be called, or returns what is not finite.
    """
    limit, places = positions(model), places or [""] * len(pairs)
    requests = [encode(tokenizer, *pair, limit, place) for pair, place in zip(pairs, places, strict=True)]
    units = _units(requests)
    total, done = sum(len(read) for read, _ in units), 0
    with evaluating(model):
        for batch in _batches(units, batch_tokens):
            yield from _answered(model, batch, requests)
            done += sum(len(read) for read, _ in batch)
            if progress is not None:
                progress(done, total)


def encode(
    tokenizer: PreTrainedTokenizerBase, context: str, continuation: str, limit: int | None, where: str = ""
) -> Request:
    """Token ids of a pair.

    Args:
        tokenizer: as a model's.
        context: what is given.
        continuation: what is judged.
        limit: positions of the model.
        where: where the pair stands, for errors.

    Raises:
        DataError: the continuation has no tokens, or more than there are positions.
    """
    given = context.rstrip()
    continuation = context[len(given) :] + continuation

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    alone, joined, start = ids(given) if given else [], ids(given + continuation), bos_of(tokenizer)
    pairs = zip(alone, joined, strict=False)
    common = next((n for n, (one, other) in enumerate(pairs) if one != other), min(len(alone), len(joined)))
    before, after = joined[:common], joined[common:]
    if not before:
        start = start or [i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if isinstance(i, int)][:1]
    whole = start + before + after
    if not after or len(after) == len(whole):
        why = "has no tokens" if not after else "follows on nothing: the tokenizer has no token to begin with"
        what, todo = f"the continuation {_brief(continuation)} {why}", "change that item, or leave it out"
        raise DataError(message(what, where=where or "tokenizer", todo=todo))
    if limit is not None and len(after) > limit:
        what = f"a continuation has {len(after)} tokens, the model {limit} positions: {_brief(continuation)}"
        todo = "make that continuation shorter, or leave the item out"
        raise DataError(message(what, where=where, todo=todo))
    read = whole[:-1] if limit is None else whole[-limit - 1 : -1]
    return Request(tuple(read), tuple(after), common < len(alone))


def _brief(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


Unit = tuple[tuple[int, ...], list[int]]
"""Token ids that are read, and the requests that they answer: each one's own ids are their beginning."""


def _units(requests: Sequence[Request]) -> list[Unit]:
    """What has to be read; the longest first.

    A causal model says of a beginning what it says of that text alone.
    """
    order = sorted(range(len(requests)), key=lambda i: requests[i].read, reverse=True)
    units: list[Unit] = []
    for i in order:  # in this order, whatever begins with a text comes right before it
        read = requests[i].read
        if units and units[-1][0][: len(read)] == read:
            units[-1][1].append(i)
        else:
            units.append((read, [i]))
    return sorted(units, key=lambda unit: -len(unit[0]))


def _batches(units: Sequence[Unit], tokens: int) -> Iterator[list[Unit]]:
    """Neighbours in length, as many as the tokens allow."""
    start = 0
    while start < len(units):
        size = max(1, tokens // len(units[start][0]))
        yield list(units[start : start + size])
        start += size


def _answered(model: nn.Module, batch: Sequence[Unit], requests: Sequence[Request]) -> Iterable[tuple[int, Answer]]:
    longest = len(batch[0][0])
    # Padding stands on the right, where a causal model does not see it.
    ids = torch.tensor([[*read, *[0] * (longest - len(read))] for read, _ in batch], device=device_of(model))
    first = min(len(requests[i].read) - len(requests[i].predicted) for _, of in batch for i in of)
    logits = logits_of(model, ids, last=longest - first)
    for row, (_, of) in enumerate(batch):
        for i in of:
            request = requests[i]
            end = len(request.read) - first
            scores = logits[row, end - len(request.predicted) : end].float()
            target = torch.tensor(request.predicted, device=scores.device)
            likelihood = -float(F.cross_entropy(scores, target, reduction="none").double().sum())
            if likelihood != likelihood or likelihood == float("inf"):
                what, todo = "the model's logits are not finite", "check its weights, or use float32"
                raise ShearError(message(what, where=type(model).__name__, todo=todo))
            yield i, Answer(likelihood, bool((scores.argmax(-1) == target).all()), request.merged)
