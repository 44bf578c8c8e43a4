"""How good and how fast a causal language model is: perplexity, tokens per second, parameters.

Every result carries what is needed to read it: window length, tokens, tokenizer, dtype, device, repeats.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from shearfx.errors import ShearError, message
from shearfx.inference import (
    bos_of,
    check_tokenizer,
    device_of,
    dtype_name,
    evaluating,
    logits_of,
    positions,
    rows_at_once,
    tokenizer_name,
)
from shearfx.speed import Speed, generation_speed

__all__ = ["ParameterCount", "Perplexity", "Speed", "Windows", "generation_speed", "parameter_count", "perplexity"]

DEFAULT_SEQUENCE_LENGTH = 1024


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood per token, and the conditions under which it was measured."""

    value: float
    tokens: int  # predicted ones, over which the mean was taken
    sequence_length: int  # tokens per window, the beginning-of-sequence token included
    stride: int  # tokens from one window's start to the next
    documents: int
    bos: bool  # every window starts with the tokenizer's beginning-of-sequence token
    tokenizer: str
    dtype: str

    def __str__(self) -> str:
        windows = f"sequence {self.sequence_length}, stride {self.stride}, {'' if self.bos else 'no '}BOS"
        return f"perplexity {self.value:.2f} ({self.tokens} tokens, {windows}, {self.tokenizer}, {self.dtype})"


@dataclass(frozen=True)
class Windows:
    """Windows that a model reads at a time, and all that their losses depend on beside the model."""

    text: str  # digest of its token ids, document by document
    sequence_length: int
    stride: int
    max_tokens: int | None
    batch_size: int  # the order of sums within the model depends on it
    window: int  # number of the first one


@dataclass(frozen=True)
class ParameterCount:
    """Unique parameters: a tied weight counts once."""

    total: int
    without_embeddings: int  # without those that belong to an nn.Embedding, a tied output layer included


def parameter_count(model: nn.Module) -> ParameterCount:
    """Count the unique parameters of ``model``.

    >>> tied = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10, bias=False))
    >>> tied[1].weight = tied[0].weight
    >>> parameter_count(tied)
    ParameterCount(total=40, without_embeddings=0)
    """
    embeddings = {p for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    total = sum(p.numel() for p in model.parameters())
    return ParameterCount(total, total - sum(p.numel() for p in embeddings))


def perplexity(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    text: str | Sequence[str],
    *,
    sequence_length: int | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
    batch_size: int = 1,
    cache: MutableMapping[Windows, list[float]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Perplexity:
    """Measure the perplexity of a causal language model on ``text``, one string or a list of documents.

    Each document is tokenised without special tokens and cut into windows of ``sequence_length`` tokens (default:
    1024, or as many as the model has positions), a new one every ``stride`` tokens (default: windows that do not
    overlap).  Where the tokenizer puts a beginning-of-sequence token before text, every window starts with it, and
    all its tokens are predicted; else the first token of a window has nothing to be predicted from.  In
    overlapping windows only tokens that no earlier window predicted count.  ``max_tokens`` keeps the first tokens
    of the text.  Log-probabilities are taken in float32 and summed in float64.  The model is called with
    ``input_ids`` ``[batch, tokens]``, int64, in eval mode (which is restored); logits are its output's ``logits``,
    or its first tensor, ``[batch, tokens, vocabulary]``.

    Losses (of each window the sum, in nats) that are in ``cache`` are not computed again, and those that are computed
    go into it at once; it must be of the same model, as a :class:`shearfx.zero_shot.LossFile` is: what is cut off goes
    on there, and ends with the same number to the last bit.  ``progress`` is called with (windows done, windows in
    all).

    Raises:
        ShearError: no tokenizer, too little text, a length that the model or the text does not allow, ids outside
            the model's vocabulary, or logits that are not finite.
    """
    tokenizer = check_tokenizer(tokenizer)
    length = _window_length(model, sequence_length)
    bos = bos_of(tokenizer)
    step = length - len(bos) if stride is None else stride
    if not 1 <= step <= length - len(bos) or batch_size < 1:
        raise ShearError(
            message(
                f"stride {step} or batch size {batch_size} is out of range",
                where=f"perplexity, windows of {length} tokens, {len(bos)} of them for the beginning of sequence",
                todo=f"use a stride from 1 to {length - len(bos)} and a batch size of at least 1",
            )
        )
    documents = [text] if isinstance(text, str) else list(text)
    encoded = _encode(tokenizer, documents, max_tokens)
    windows = [window for ids in encoded for window in _windows(ids, bos, length, step)]
    if not windows:
        todo = "give a longer text, or a larger max_tokens"
        raise ShearError(message("the text has no token to predict", where="perplexity", todo=todo))

    total, tokens, done = 0.0, 0, 0
    digest = "" if cache is None else hashlib.sha256(json.dumps(encoded).encode()).hexdigest()[:16]
    with evaluating(model):
        for batch in _batches(windows, batch_size):
            key = Windows(digest, length, step, max_tokens, batch_size, done)
            losses = None if cache is None else cache.get(key)
            if losses is None:
                losses = _losses(model, batch)
                if not all(map(math.isfinite, losses)):
                    where = f"perplexity, window {done + len(batch)} of {len(windows)}"
                    todo = "check the model's weights, or use a dtype with a wider range (float32)"
                    raise ShearError(message("the model's logits are not finite", where=where, todo=todo))
                if cache is not None:
                    cache[key] = losses
            for loss, (window, first) in zip(losses, batch, strict=True):
                total += loss
                tokens += len(window) - first
            done += len(batch)
            if progress is not None:
                progress(done, len(windows))
    mean = total / tokens
    return Perplexity(
        value=math.exp(mean) if mean < 700 else math.inf,
        tokens=tokens,
        sequence_length=length,
        stride=step,
        documents=len(encoded),
        bos=bool(bos),
        tokenizer=tokenizer_name(tokenizer),
        dtype=dtype_name(model),
    )


def _window_length(model: nn.Module, asked: int | None) -> int:
    limit = positions(model)
    length = min(DEFAULT_SEQUENCE_LENGTH, limit or DEFAULT_SEQUENCE_LENGTH) if asked is None else asked
    if length < 2 or (limit is not None and length > limit):
        what = f"sequence_length {length} is out of range"
        raise ShearError(message(what, where=type(model).__name__, todo=f"use 2 to {limit or 'any number of'} tokens"))
    return length


def _encode(tokenizer: PreTrainedTokenizerBase, documents: list[str], max_tokens: int | None) -> list[list[int]]:
    """Tokenise document by document until ``max_tokens`` are reached."""
    encoded, left = [], math.inf if max_tokens is None else max_tokens
    for document in documents:
        if left <= 0:
            break
        ids = list(tokenizer(document, add_special_tokens=False, verbose=False).input_ids)
        encoded.append(ids if left == math.inf else ids[: int(left)])
        left -= len(encoded[-1])
    return encoded


def _windows(ids: list[int], bos: list[int], length: int, stride: int) -> Iterator[tuple[list[int], int]]:
    """Yield (token ids, position of the first one that counts) of every window that has any to predict.

    >>> list(_windows([5, 6, 7, 8, 9], [1], 3, 2))
    [([1, 5, 6], 1), ([1, 7, 8], 1), ([1, 9], 1)]
    >>> list(_windows([5, 6, 7, 8, 9], [], 3, 1))
    [([5, 6, 7], 1), ([6, 7, 8], 2), ([7, 8, 9], 2)]
    """
    body, end = length - len(bos), 0
    for begin in range(0, len(ids), stride):
        window = bos + ids[begin : begin + body]
        first = max(len(bos) + end - begin, 1)
        if first < len(window):
            yield window, first
        end = begin + body
        if end >= len(ids):
            return


def _batches(windows: list[tuple[list[int], int]], size: int) -> Iterator[list[tuple[list[int], int]]]:
    """Group neighbours of equal length, at most ``size`` at a time, so that nothing needs padding."""
    batch: list[tuple[list[int], int]] = []
    for window in windows:
        if batch and (len(batch) == size or len(batch[0][0]) != len(window[0])):
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def _losses(model: nn.Module, batch: list[tuple[list[int], int]]) -> list[float]:
    """Of each window the sum of -log p over the tokens that count, in nats."""
    ids = torch.tensor([window for window, _ in batch], device=device_of(model))
    logits = logits_of(model, ids)
    return [
        _negative_log_likelihood(logits[row, first - 1 : -1], ids[row, first:]) for row, (_, first) in enumerate(batch)
    ]


def _negative_log_likelihood(logits: Tensor, targets: Tensor) -> float:
    """Sum -log p(target) over logits ``[positions, vocabulary]`` and targets ``[positions]``, in nats."""
    total, most = torch.zeros((), dtype=torch.float64), rows_at_once(logits)
    for rows, ids in zip(logits.split(most), targets.split(most), strict=True):
        total += F.cross_entropy(rows.float(), ids, reduction="none").double().sum().cpu()
    return float(total)
