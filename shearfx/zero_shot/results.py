"""Tasks answered by a model: accuracies with their standard errors."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from shearfx.inference import check_tokenizer
from shearfx.zero_shot.answer_file import AnswerFile
from shearfx.zero_shot.answers import Answer, Progress, answers
from shearfx.zero_shot.line_file import LineFile
from shearfx.zero_shot.tasks import Item, Task
from shearfx.zero_shot.whose import whose


@dataclass(frozen=True)
class TaskResult:
    """How a model does on a task. Accuracies are shares; their errors standard errors of the mean over items."""

    name: str
    items: int
    available: int
    """Items of the file."""
    chance: float
    acc: float
    """Share of items whose right continuation is the likeliest (ties: the first), or was guessed word for word."""
    acc_stderr: float
    acc_norm: float | None
    """The same per character of the continuation, without the blank in front of it; None where there is no choice."""
    acc_norm_stderr: float | None
    perplexity: float | None
    """exp of the mean negative log-likelihood of what was to be guessed; None where there is a choice."""
    right: tuple[bool, ...]
    """Item by item, what ``acc`` is the mean of."""
    right_norm: tuple[bool, ...] | None
    """Item by item, what ``acc_norm`` is the mean of."""
    merged: int = 0
    """Items in which a token lies across the border of context and continuation."""

    def to_record(self) -> dict[str, Any]:
        """As JSON, without the single items."""
        own = {name: value for name, value in vars(self).items() if not name.startswith("right")}
        return {name: value for name, value in own.items() if value is not None}

    def __str__(self) -> str:
        parts = [f"acc {self.acc:.3f} ±{self.acc_stderr:.3f}"]
        if self.acc_norm is not None:
            parts.append(f"acc_norm {self.acc_norm:.3f} ±{self.acc_norm_stderr:.3f}")
        if self.perplexity is not None:
            parts.append(f"perplexity {self.perplexity:.1f}")
        if self.merged:
            parts.append(
                f"in {self.merged} items a token across the border of context and answer counts as the answer's"
            )
        of = f"{self.items} items" if self.items == self.available else f"first {self.items} of {self.available} items"
        return f"{self.name}: {', '.join(parts)} ({of}, chance {self.chance:.3f})"


def zero_shot(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    tasks: Sequence[Task],
    *,
    batch_tokens: int = 2048,
    cache: Path | LineFile | None = None,
    progress: Progress | None = None,
) -> list[TaskResult]:
    """Answer tasks: summed log-probabilities of continuations, as lm-evaluation-harness scores multiple choice.

    Args:
        model: a causal language model; in eval mode for the while.
        tokenizer: its own.
        tasks: see :func:`shearfx.zero_shot.read_task`.
        batch_tokens: tokens that are read at a time, padding included.
        cache: file that answers are kept in as they are found; what is in it is not computed again.
        progress: called with tokens read and tokens in all, of all tasks.

    Raises:
        DataError: a continuation without tokens, or with more than the model has positions, with its file and line; a
            cache that cannot be used, or belongs to another model.
        ShearError: no tokenizer, a model that cannot be called, or logits that are not finite.
    """
    tokenizer = check_tokenizer(tokenizer)
    kept = AnswerFile(LineFile(cache, whose(model, tokenizer)) if isinstance(cache, Path) else cache)
    items = {(task.name, item.fingerprint): item for task in tasks for item in task.items}
    missing = [(key, item) for key, item in items.items() if key not in kept]
    owners = [(key, choice) for key, item in missing for choice in range(len(item.contexts))]
    pairs = [pair for _, item in missing for pair in item.pairs]
    places = [item.where or f"task {task}, item {item.fingerprint}" for (task, _), item in missing for _ in item.pairs]
    found: dict[tuple[str, str], dict[int, Answer]] = {key: {} for key, _ in missing}
    for index, answer in answers(model, tokenizer, pairs, places, batch_tokens=batch_tokens, progress=progress):
        key, choice = owners[index]
        found[key][choice] = answer
        if len(found[key]) == len(items[key].contexts):
            kept[key] = [found[key][i] for i in range(len(items[key].contexts))]
    return [result_of(task, [kept[task.name, item.fingerprint] for item in task.items]) for task in tasks]


def result_of(task: Task, found: Sequence[Sequence[Answer]]) -> TaskResult:
    """What answers to all choices of all items come to."""
    of = (task.name, len(task.items), task.available, task.chance)
    merged = sum(any(answer.merged for answer in answers) for answers in found)
    if task.guessed:
        right = tuple(answer.greedy for (answer,) in found)
        loss = -statistics.fmean(answer.log_likelihood for (answer,) in found)
        return TaskResult(*of, *mean_of(right), None, None, math.exp(min(loss, 700.0)), right, None, merged)
    asked = list(zip(task.items, found, strict=True))
    right = tuple(_best(item, answers, per_character=False) == item.gold for item, answers in asked)
    norm = tuple(_best(item, answers, per_character=True) == item.gold for item, answers in asked)
    return TaskResult(*of, *mean_of(right), *mean_of(norm), None, right, norm, merged)


def _best(item: Item, found: Sequence[Answer], *, per_character: bool) -> int:
    def score(choice: int) -> float:
        likelihood = found[choice].log_likelihood
        return likelihood / len(item.continuations[choice].removeprefix(" ")) if per_character else likelihood

    return max(range(len(found)), key=score)


def mean_of(values: Sequence[bool]) -> tuple[float, float]:
    """Mean and its standard error, of the share of items that are right."""
    error = statistics.stdev(map(float, values)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return statistics.fmean(values), error
