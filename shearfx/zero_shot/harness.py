"""The same tasks through lm-evaluation-harness, for whoever trusts no other judge: ``pip install shearfx[lm-eval]``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from shearfx.errors import ShearError, message
from shearfx.inference import check_tokenizer, evaluating, positions
from shearfx.zero_shot.answers import Answer, encode
from shearfx.zero_shot.results import TaskResult, mean_of, result_of
from shearfx.zero_shot.tasks import Item, Task


def harness_zero_shot(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase | None, tasks: Sequence[Task], *, batch_size: int = 8
) -> list[TaskResult]:
    """Answer tasks with ``lm_eval.simple_evaluate``; accuracies and perplexities are its own, item by item and in all.

    ``acc_norm`` is ours, of its log-probabilities, where it has none that means the same: where contexts are chosen (it
    divides by their length), and where some continuations begin with a blank and others do not (it counts that too).

    Args:
        model: a causal language model of transformers.
        tokenizer: its own.
        tasks: see :func:`shearfx.zero_shot.read_task`.
        batch_size: continuations at a time.

    Raises:
        DataError: a continuation that :func:`shearfx.zero_shot.zero_shot` refuses too.
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
    tokenizer = check_tokenizer(tokenizer)
    for task in tasks:  # the harness would stop at an assertion
        for item in task.items:
            for pair in item.pairs:
                encode(tokenizer, *pair, positions(model), item.where)
    with evaluating(model):
        judge = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        found = simple_evaluate(judge, tasks=[_task(task) for task in tasks], bootstrap_iters=0, log_samples=True)
    return [_result(task, found["samples"][task.name], found["results"][task.name]) for task in tasks]


def _task(task: Task) -> Any:
    """The task as the harness knows them."""
    import datasets
    from lm_eval.api.task import ConfigurableTask

    records, blank = [_record(item) for item in task.items], _blank(task)
    config: dict[str, Any] = {
        "task": task.name, "test_split": "test", "target_delimiter": blank or "", "num_fewshot": 0,
        "custom_dataset": lambda **_: datasets.DatasetDict(test=datasets.Dataset.from_list(records)),
    }  # fmt: skip
    metrics = ["acc"]
    if task.guessed:
        config |= {"output_type": "loglikelihood", "doc_to_text": lambda doc: doc["contexts"][0]}
        config |= {"doc_to_target": lambda doc: doc["continuations"][0]}
        metrics.append("perplexity")
    elif _contexts_chosen(task):  # the harness asks such tasks the other way round
        config |= {"output_type": "multiple_choice", "doc_to_text": lambda doc: doc["gold"]}
        config |= {"doc_to_choice": lambda doc: doc["contexts"], "doc_to_target": lambda doc: doc["continuations"][0]}
    else:
        config |= {"output_type": "multiple_choice", "doc_to_text": lambda doc: doc["contexts"][0]}
        config |= {"doc_to_choice": lambda doc: [one.removeprefix(blank or "") for one in doc["continuations"]]}
        config |= {"doc_to_target": lambda doc: doc["gold"]}
        metrics += [] if blank is None else ["acc_norm"]
    return ConfigurableTask(config=config | {"metric_list": [{"metric": name} for name in metrics]})


def _contexts_chosen(task: Task) -> bool:
    return any(len(set(item.contexts)) > 1 for item in task.items)


def _blank(task: Task) -> str | None:
    """What stands before every choice and does not count in its length; None where some have a blank, some not."""
    if task.guessed or _contexts_chosen(task):
        return ""  # the continuation as it is
    begins = {text.startswith(" ") for item in task.items for text in item.continuations}
    return None if len(begins) > 1 else " " * begins.pop()


def _record(item: Item) -> dict[str, Any]:
    return {"contexts": list(item.contexts), "continuations": list(item.continuations), "gold": item.gold}


def _result(task: Task, samples: Sequence[Any], summary: Mapping[str, Any]) -> TaskResult:
    """Our account of what the harness was told by the model, with its own verdicts.

    Args:
        task: what was asked.
        samples: what the harness says of each item, in any order.
        summary: what it says of the task.
    """
    of = {sample["doc_id"]: sample for sample in samples}
    said = [of[number] for number in range(len(task.items))]
    found = [[Answer(float(one), bool(greedy)) for one, greedy in sample["filtered_resps"]] for sample in said]
    result = result_of(task, found)
    right = tuple(bool(sample["acc"]) for sample in said)
    result = replace(result, acc=float(summary["acc,none"]), acc_stderr=mean_of(right)[1], right=right)
    if task.guessed:
        return replace(result, perplexity=float(summary["perplexity,none"]))
    if "acc_norm,none" in summary:
        norm = tuple(bool(sample["acc_norm"]) for sample in said)
        own = float(summary["acc_norm,none"])
        result = replace(result, acc_norm=own, acc_norm_stderr=mean_of(norm)[1], right_norm=norm)
    return result
