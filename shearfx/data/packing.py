"""Sources as windows of token ids with labels, ready to learn from and to judge by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from shearfx.data.documents import Source
from shearfx.data.prompts import Template, choose
from shearfx.data.records import Kind
from shearfx.data.windows import IGNORED, Tally, dialogue_windows, text_windows
from shearfx.errors import DataError, message

__all__ = ["IGNORED", "Examples", "Tally", "hold_out", "pack"]

MIN_TOKENS = 64  # the paper keeps paragraphs of more tokens than this

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, eq=False)
class Examples:
    """Windows of one source, ready to learn from or to judge by.

    Windows hold several documents, and nothing keeps them from attending to earlier ones.  Padding is at the end
    of a window, where a causal model lets nothing attend to it, so no attention mask is needed.
    """

    name: str
    kind: Kind
    ids: Tensor  # [windows, sequence_length], int64
    labels: Tensor  # the same shape, int64: the id itself, or IGNORED (-100) at prompts and padding; not shifted
    tally: Tally = field(default_factory=Tally)  # of the whole source, also for a part of its windows
    documents: Tensor | None = None  # [windows, 2], int64: the first and the last document of text that a window holds

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> int:
        """How many tokens a causal model is asked to predict: labels that count, but for the first of a window."""
        return int((self.labels[:, 1:] != IGNORED).sum())

    def take(self, windows: Tensor | Sequence[int]) -> Examples:
        """Return some of the windows, by their indices, in the order asked for."""
        at = torch.as_tensor(windows, dtype=torch.int64)
        ids = self.ids[at]
        labels = ids if self.labels is self.ids else self.labels[at]
        return replace(self, ids=ids, labels=labels, documents=None if self.documents is None else self.documents[at])

    def __str__(self) -> str:
        size = f"{len(self)} windows of {self.ids.shape[1]}, {self.tokens} tokens to predict"
        return f"{self.name} ({self.kind}): {size}; {self.tally}"


def pack(
    source: Source,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    sequence_length: int,
    max_tokens: int | None = None,
    min_tokens: int = MIN_TOKENS,
    template: Template = "auto",
    progress: Progress | None = None,
) -> Examples:
    """Clean, tokenise and cut a source into windows of ``sequence_length`` tokens.

    Pretraining text: irregular characters are removed (:func:`~shearfx.data.text_cleaning.clean_text`) and only
    paragraphs of more than ``min_tokens`` tokens stay (0: all); paragraphs are what blank lines separate, or lines in a
    document without blank lines.  Each document begins with the beginning-of-sequence token if the tokenizer itself
    puts one there, and ends with the end-of-sequence token if there is one; one after the other they are cut into
    windows without gaps or padding.  All tokens are labels.  What does not fill the last window is left out.

    Instructions: characters are cleaned alike, and every dialogue is written out in the ``template``: ``"chat"``, the
    tokenizer's own; ``"alpaca"``; ``"auto"``, the first if there is one.  Labels are what the assistant says and the
    end-of-sequence token (appended if the template does not end with it); prompts are not learned.  A dialogue longer
    than a window loses its end; if no answer begins within the window, it is left out.  Whole dialogues fill windows,
    first fit among a few open ones; the rest is padding.

    ``max_tokens`` bounds the windows, padding counted: the first ``max_tokens // sequence_length`` that fill up.
    ``progress`` is called with (tokens so far, ``max_tokens``).  The same source and options give the same windows.
    What the tokenizer takes for special tokens in a text stays special.

    Source: LoRAShear, section 5.

    Raises:
        DataError: no tokenizer, lengths out of range, a source that is too short for one window or of no use, or
            whatever reading it raises.
    """
    where = f"pack, source {source.name!r} from {source.where}"
    if tokenizer is None:
        todo = "put the tokenizer's files beside the weights, or pass a tokenizer"
        raise DataError(message("there is no tokenizer to read the source with", where=where, todo=todo))
    if sequence_length < 2 or min_tokens < 0 or (max_tokens is not None and max_tokens < sequence_length):
        what = f"sequence_length={sequence_length}, max_tokens={max_tokens}, min_tokens={min_tokens} is out of range"
        todo = "use windows of at least 2 tokens, max_tokens for at least one window, and min_tokens from 0"
        raise DataError(message(what, where=where, todo=todo))
    limit = None if max_tokens is None else max_tokens // sequence_length

    def report(tokens: int) -> None:
        if progress is not None:
            progress(tokens if max_tokens is None else min(tokens, max_tokens), max_tokens)

    if source.kind == "pretrain":
        ids, documents, tally = text_windows(
            source, tokenizer, length=sequence_length, limit=limit, min_tokens=min_tokens, report=report
        )
        if not len(ids):
            raise _too_short(tally, sequence_length, min_tokens, where)
        return Examples(source.name, source.kind, ids, ids, tally, documents)
    chosen = choose(template, tokenizer)
    ids, labels, tally = dialogue_windows(
        source, tokenizer, template=chosen, length=sequence_length, limit=limit, report=report
    )
    if not len(ids):
        what = f"none of the {tally.documents} dialogues has an answer that begins within {sequence_length} tokens"
        todo = "use longer windows, or check that the answers are not empty"
        raise DataError(message(what, where=where, todo=todo))
    return Examples(source.name, source.kind, ids, labels, tally)


def _too_short(tally: Tally, length: int, min_tokens: int, where: str) -> DataError:
    what = f"the source has {tally.left_over} tokens, too few for one window of {length}"
    todo = "give a longer source, or use shorter windows"
    if tally.short:
        what += (
            f": {tally.short} of its {tally.paragraphs} paragraphs have no more than {min_tokens} tokens and were left "
            f"out (the longest of all has {tally.longest})"
        )
        todo = "use min_tokens=0 to keep all paragraphs, or give a longer source, or use shorter windows"
    return DataError(message(what, where=where, todo=todo))


def hold_out(examples: Examples, count: int, *, seed: int, where: str = "") -> tuple[Examples, Examples]:
    """Split into (to learn from, to judge by): ``count`` windows drawn uniformly without replacement are held out.

    Both keep the order of the windows; ``where`` they come from is for the error. What shares a document of text with a
    window that is held out is left out: it holds the rest of what is judged by. Of a source of few documents, where
    half of the others would go, only the windows on both sides are; where that is half of them too, nothing is.

    Source: LoRAShear, Algorithm 5 (a uniform validation set from every source).

    Raises:
        DataError: ``count`` is not between 1 and one less than there are windows.
    """
    if not 1 <= count < len(examples):
        what = f"{count} of {len(examples)} windows cannot be held out: both sides need at least one"
        todo = "hold out fewer, make windows shorter, or give a longer source"
        raise DataError(message(what, where=where or f"source {examples.name!r}", todo=todo))
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    held = order[:count].sort().values
    others = torch.ones(len(examples), dtype=torch.bool)
    others[held] = False
    beside = torch.zeros_like(others)
    beside[(held - 1).clamp(min=0)] = beside[(held + 1).clamp(max=len(examples) - 1)] = True
    near = [beside] if examples.documents is None else [_sharing(examples.documents, held), beside]
    for shared in near if examples.kind == "pretrain" else ():
        apart = others & ~shared
        if 2 * int(apart.sum()) >= len(examples) - count:
            others = apart
            break
    return examples.take(others.nonzero().flatten()), examples.take(held)


def _sharing(documents: Tensor, held: Tensor) -> Tensor:
    """Which windows share a document with one of those that are held, ``[windows]``."""
    marked = torch.zeros(int(documents.max()) + 2, dtype=torch.int64)
    marked.index_add_(0, documents[held, 0], torch.ones(len(held), dtype=torch.int64))
    marked.index_add_(0, documents[held, 1] + 1, -torch.ones(len(held), dtype=torch.int64))
    before = torch.cat([marked.new_zeros(1), (marked.cumsum(0) > 0).cumsum(0)])  # documents of held windows before each
    return before[documents[:, 1] + 1] > before[documents[:, 0]]
