"""The same tasks through lm-evaluation-harness, for whoever trusts no other judge: ``pip install shearfx[lm-eval]``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from shearfx.errors import ShearError, message
from shearfx.inference import check_tokenizer, evaluating
from shearfx.zero_shot.answers import Answer
from shearfx.zero_shot.results import TaskResult, result_of
from shearfx.zero_shot.tasks import Item, Task


def harness_zero_shot(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase | None, tasks: Sequence[Task], *, batch_size: int = 8
) -> list[TaskResult]:
    """Answer tasks with ``lm_eval.simple_evaluate``.

    Args:
        model: a causal language model of transformers.
        tokenizer: its own.
        tasks: see :func:`shearfx.zero_shot.read_task`.
        batch_size: continuations at a time.

    Raises:
        ShearError: the harness is not installed, there is no tokenizer, or the model is none of transformers'.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        todo = "pip install 'shearfx[lm-eval]', or leave it out: shearfx scores the same way by itself"
        raise ShearError(message("lm-evaluation-harness is not installed", todo=todo)) from error
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        what = f"lm-evaluation-harness takes models of transformers, not {type(model).__name__}"
        raise ShearError(message(what, todo="leave it out: shearfx scores the same way by itself"))
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with evaluating(model):
        judge = HFLM(pretrained=model, tokenizer=check_tokenizer(tokenizer), batch_size=batch_size)
        found = simple_evaluate(judge, tasks=[_task(task) for task in tasks], bootstrap_iters=0, log_samples=True)
    return [result_of(task, _answers(task, found["samples"][task.name])) for task in tasks]


def _task(task: Task) -> Any:
    """The task as the harness knows them."""
    import datasets
    from lm_eval.api.task import ConfigurableTask

    records = [_record(item) for item in task.items]
    config: dict[str, Any] = {
        "task": task.name, "test_split": "test", "target_delimiter": "", "num_fewshot": 0,
        "custom_dataset": lambda **_: datasets.DatasetDict(test=datasets.Dataset.from_list(records)),
    }  # fmt: skip
    if task.guessed:
        config |= {"output_type": "loglikelihood", "doc_to_text": lambda doc: doc["contexts"][0]}
        config |= {"doc_to_target": lambda doc: doc["continuations"][0], "metric_list": [{"metric": "acc"}]}
    elif any(len(set(item.contexts)) > 1 for item in task.items):  # the harness asks such tasks the other way round
        config |= {"output_type": "multiple_choice", "doc_to_text": lambda doc: doc["gold"]}
        config |= {"doc_to_choice": lambda doc: doc["contexts"], "doc_to_target": lambda doc: doc["continuations"][0]}
        config |= {"metric_list": [{"metric": "acc"}]}
    else:
        config |= {"output_type": "multiple_choice", "doc_to_text": lambda doc: doc["contexts"][0]}
        config |= {"doc_to_choice": lambda doc: doc["continuations"], "doc_to_target": lambda doc: doc["gold"]}
        config |= {"metric_list": [{"metric": "acc"}]}
    return ConfigurableTask(config=config)


def _record(item: Item) -> dict[str, Any]:
    return {"contexts": list(item.contexts), "continuations": list(item.continuations), "gold": item.gold}


def _answers(task: Task, samples: Sequence[Any]) -> list[list[Answer]]:
    """What the model said, in the order of the items."""
    by_number = {sample["doc_id"]: sample["filtered_resps"] for sample in samples}
    found = []
    for number in range(len(task.items)):
        said = by_number[number]
        found.append([Answer(float(likelihood), bool(greedy)) for likelihood, greedy in said])
    return found
