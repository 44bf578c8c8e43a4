"""Filling windows of token ids: text as one stream cut without gaps, dialogues laid side by side."""

from __future__ import annotations

import itertools
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from shearfx.data.prompts import Chosen, Segment, render
from shearfx.data.records import Dialogue, Document, Message, Text
from shearfx.data.text_cleaning import clean_text, paragraphs

__all__ = ["IGNORED", "Tally", "dialogue_windows", "text_windows"]

IGNORED = -100  # the label of a position that is not to be learned, as torch's cross entropy and transformers have it
BATCH = 1 << 18  # characters that are tokenised together
DIALOGUES = 64  # that are tokenised together
OPEN_WINDOWS = 32  # that a dialogue may still go into; more would fill them better and mix the order more

Report = Callable[[int], None]


@dataclass(frozen=True)
class Tally:
    """What became of a source's documents, as far as they were read."""

    documents: int = 0
    unused: int = 0  # documents without a kept paragraph; dialogues without an answer that begins within a window
    paragraphs: int = 0  # in the documents; 0 if they were not looked at one by one
    short: int = 0  # paragraphs left out because they have too few tokens
    longest: int = 0  # tokens of the longest paragraph, left out or not
    truncated: int = 0  # dialogues whose end was cut off because they are longer than a window
    left_over: int = 0  # tokens at the end of the text that fill no window

    def __str__(self) -> str:
        parts = [
            (self.documents, f"{self.documents} documents"),
            (self.unused, f"{self.unused} of them unused"),
            (self.short, f"{self.short} of {self.paragraphs} paragraphs too short"),
            (self.truncated, f"{self.truncated} cut off at the end of a window"),
            (self.left_over, f"{self.left_over} tokens left over"),
        ]
        return ", ".join(text for count, text in parts if count)


def text_windows(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    limit: int | None,
    min_tokens: int,
    report: Report,
) -> tuple[Tensor, Tensor, Tally]:
    """Clean and tokenise texts, join them, and cut.

    Returns:
        Ids ``[windows, length]``, int64; the numbers of the first and the last document of each window
        ``[windows, 2]``, int64; what became of the documents.

    At most ``limit`` windows; documents beyond them are not read (but for those tokenised together).  There may be
    no window at all; ``left_over`` then counts all tokens.
    """
    begin, end = _begin(tokenizer), _end(tokenizer)
    counts: Counter[str] = Counter()
    stream, begins = array("i"), array("q")
    inside = False  # a document that has tokens in the stream and may go on
    for batch in _batches(documents):
        texts = _cleaned(batch, tokenizer, min_tokens, counts)
        joined = [text + "\n\n" if part.continues else text for part, text in zip(batch, texts, strict=True)]
        encoded = _encode(tokenizer, joined)
        for part, text, ids in zip(batch, texts, encoded, strict=True):
            if text:
                if not inside:
                    begins.append(len(stream))
                stream.extend(ids if inside else begin + ids)
                inside = True
            if not part.continues:
                counts["documents"] += 1
                counts["unused"] += not inside
                stream.extend(end if inside else [])
                inside = False
        report(len(stream))
        if limit is not None and len(stream) >= limit * length:
            break
    count = len(stream) // length
    if limit is None or count < limit:
        counts["left_over"] = len(stream) - count * length
    kept = count if limit is None else min(count, limit)
    windows = torch.tensor(stream[: kept * length], dtype=torch.int64).view(kept, length)
    ends = torch.arange(kept)[:, None] * length + torch.tensor([0, length - 1])
    inside_of = torch.searchsorted(torch.tensor(begins, dtype=torch.int64), ends, right=True) - 1
    return windows, inside_of, Tally(**counts)


def _batches(documents: Iterable[Document]) -> Iterator[list[Text]]:
    batch: list[Text] = []
    size = 0
    for document in documents:
        if isinstance(document, Text):
            batch.append(document)
            size += len(document.text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _cleaned(batch: list[Text], tokenizer: PreTrainedTokenizerBase, min_tokens: int, counts: Counter[str]) -> list[str]:
    """Clean texts and leave out their short paragraphs; "" where none is left."""
    texts = [clean_text(part.text) for part in batch]
    if min_tokens == 0:
        return texts
    split = [paragraphs(text) for text in texts]
    sizes = [len(ids) for ids in _encode(tokenizer, [part for parts, _ in split for part in parts])]
    counts["paragraphs"] += len(sizes)
    counts["short"] += sum(size <= min_tokens for size in sizes)
    counts["longest"] = max([counts["longest"], *sizes])
    each = iter(sizes)
    return [between.join([part for part in parts if next(each) > min_tokens]) for parts, between in split]


def dialogue_windows(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: Chosen,
    length: int,
    limit: int | None,
    report: Report,
) -> tuple[Tensor, Tensor, Tally]:
    """Write dialogues out and lay them into windows, first fit: (ids, labels ``[windows, length]``, int64; tally)."""
    pad = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else next(iter(_end(tokenizer)), 0)
    counts: Counter[str] = Counter()
    filled: list[_Window] = []
    open_windows: list[_Window] = []
    for new in _encoded(documents, tokenizer, template):
        counts["documents"] += 1
        learned = [label != IGNORED for label in new.labels]
        if not any(learned[:length]):
            counts["unused"] += 1
            continue
        counts["truncated"] += len(new.ids) > length
        fitting = (window for window in open_windows if len(window.ids) + len(new.ids) <= length)
        if window := next(fitting, None):
            window.ids.extend(new.ids)
            window.labels.extend(new.labels)
            continue
        open_windows.append(_Window(new.ids[:length], new.labels[:length]))
        if len(open_windows) > OPEN_WINDOWS:
            fullest = max(open_windows, key=lambda window: len(window.ids))
            open_windows.remove(fullest)
            filled.append(fullest)
        report(len(filled) * length + sum(len(window.ids) for window in open_windows))
        if limit is not None and len(filled) >= limit:
            break
    windows = [*filled, *open_windows][:limit]
    ids = torch.full((len(windows), length), pad, dtype=torch.int64)
    labels = torch.full_like(ids, IGNORED)
    for row, window in enumerate(windows):
        ids[row, : len(window.ids)] = torch.tensor(window.ids)
        labels[row, : len(window.ids)] = torch.tensor(window.labels)
    return ids, labels, Tally(**counts)


@dataclass(frozen=True, eq=False)  # a window is itself, not what it holds, when it leaves the open ones
class _Window:
    ids: list[int]
    labels: list[int]


def _encoded(documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, template: Chosen) -> Iterator[_Window]:
    """Write dialogues out and tokenise them, some at a time, which is several times as fast as one by one."""
    begin = [] if template == "chat" else _begin(tokenizer)  # chat templates write it themselves
    dialogues = (document for document in documents if isinstance(document, Dialogue))
    while batch := list(itertools.islice(dialogues, DIALOGUES)):
        written = [render(_clean(dialogue), template, tokenizer) for dialogue in batch]
        so_far = [itertools.accumulate(text for text, _ in segments) for segments in written]
        encoded = iter(_encode(tokenizer, list(itertools.chain.from_iterable(so_far))))
        for segments in written:
            yield _labelled(segments, list(itertools.islice(encoded, len(segments))), tokenizer, begin)


def _clean(dialogue: Dialogue) -> Dialogue:
    turns = tuple(Message(turn.role, clean_text(turn.content)) for turn in dialogue.messages)
    return Dialogue(turns, clean_text(dialogue.input), dialogue.where)


def _labelled(
    segments: list[Segment], so_far: list[list[int]], tokenizer: PreTrainedTokenizerBase, begin: list[int]
) -> _Window:
    """Put segments together from the token ids of the text up to the end of each.

    So what is learned begins exactly where the prompt's tokens end, and its tokens are those that a model that goes
    on from the prompt would write.  Where tokens run across the boundary, a segment is tokenised by itself.
    """
    ids, labels = list[int](), list[int]()
    for (text, learned), whole in zip(segments, so_far, strict=True):
        new = whole[len(ids) :] if whole[: len(ids)] == ids else _encode(tokenizer, [text])[0]
        ids += new
        labels += new if learned else [IGNORED] * len(new)
    end = _end(tokenizer) if segments else []
    if ids[-1:] != end:
        ids += end
        labels += end
    return _Window([*begin, *ids], [*[IGNORED] * len(begin), *labels])


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return list(tokenizer(texts, add_special_tokens=False, verbose=False).input_ids) if texts else []


def _begin(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the beginning-of-sequence id in a list if the tokenizer itself puts it before text, else nothing."""
    bos = tokenizer.bos_token_id
    return [bos] if isinstance(bos, int) and list(tokenizer("a").input_ids)[:1] == [bos] else []


def _end(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    eos = tokenizer.eos_token_id
    return [eos] if isinstance(eos, int) else []
