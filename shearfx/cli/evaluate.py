"""``shearfx eval``: how good a language model is on texts and zero-shot tasks, and what it costs to run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from shearfx.cli.console import AsJson, Debug, Talk, talking
from shearfx.cli.opening import Device, Dtype, Model, Original, open_model
from shearfx.cli.texts import read_words
from shearfx.errors import ShearError, message

if TYPE_CHECKING:
    from shearfx.models import LoadedModel
    from shearfx.zero_shot import LineFile

__all__ = ["evaluate"]


def evaluate(
    model: Model,
    text: Annotated[list[Path] | None, typer.Option(help="Text file, UTF-8; can be repeated.")] = None,
    tasks: Annotated[
        list[Path] | None,
        typer.Option(help="Zero-shot task as JSON lines, or a folder of them; can be repeated.", show_default=False),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first items of each task.", show_default=False)] = None,
    answers: Annotated[
        Path | None,
        typer.Option(
            help="Keep what is found in this file, window by window and item by item; go on with what is in it.",
            show_default=False,
        ),
    ] = None,
    harness: Annotated[bool, typer.Option(help="Score the tasks through lm-evaluation-harness.")] = False,
    speed: Annotated[bool, typer.Option(help="Time prefill and decode, count FLOPs and memory.")] = False,
    sequence_length: Annotated[
        int | None, typer.Option(help="Tokens per window; 1024, or as many as the model has.", show_default=False)
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens between windows; they do not overlap by default.", show_default=False)
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Use only the first tokens of a text.")] = None,
    batch_size: Annotated[int, typer.Option(help="Windows of a text at a time.")] = 1,
    batch_tokens: Annotated[int, typer.Option(help="Tokens of tasks at a time.", min=1)] = 2048,
    original: Original = None,
    dtype: Dtype = None,
    device: Device = "cpu",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure MODEL: perplexity on texts, accuracy on zero-shot tasks, speed, FLOPs and memory.

    A line of a task is {"query", "choices", "gold"}, {"contexts", "continuation", "gold"}, or {"text"}, whose last
    word is to be guessed. Summed log-probabilities are compared (acc), and those per character (acc_norm).

        shearfx eval small --text wiki.txt --tasks tasks/ --limit 200 --answers small.jsonl --speed
    """
    with talking(as_json, debug, "the same command" if answers else "") as talk:
        if not text and not tasks and not speed:
            what, todo = "there is nothing to measure", "pass --text FILE, --tasks FILE_OR_FOLDER or --speed"
            raise ShearError(message(what, where="shearfx eval", todo=todo))
        if harness and answers is not None:
            what = "lm-evaluation-harness keeps no answers"
            raise ShearError(message(what, where="--harness, --answers", todo="leave one of them out"))
        from shearfx.zero_shot import LossFile, read_tasks

        texts = {str(path): read_words(path) for path in text or ()}
        asked = read_tasks(tasks or (), limit) if tasks else []
        loaded = open_model(talk, model, originals=original, dtype=dtype, device=device)
        from shearfx.evaluation import parameter_count, perplexity

        _note_slow(talk, loaded)
        count = parameter_count(loaded.module)
        data: dict[str, Any] = {"model": model, "parameters": count.total,
                                "without_embeddings": count.without_embeddings}  # fmt: skip
        shown = [f"{model}: {count.total:,} parameters, {count.without_embeddings:,} without embeddings"]
        kept = None if answers is None or not (texts or asked) else _kept(loaded, answers)
        losses = None if kept is None else LossFile(kept)
        for name, content in texts.items():
            with talk.step(f"measuring perplexity on {name}") as progress:
                measured = perplexity(
                    loaded.module, loaded.tokenizer, content, sequence_length=sequence_length, stride=stride,
                    max_tokens=max_tokens, batch_size=batch_size, cache=losses, progress=progress,
                )  # fmt: skip
            found = {"text": name, **asdict(measured)}
            found["perplexity"] = found.pop("value")
            data.setdefault("texts", []).append(found)
            shown.append(f"{measured} on {name}")
        if asked:
            results = _tasks(talk, loaded, asked, batch_tokens, kept, harness)
            data["tasks"] = [result.to_record() for result in results]
            shown += map(str, results)
        if speed:
            found, lines = _speed(talk, loaded)
            data |= found
            shown += lines

        def show(out: Console) -> None:
            out.print("\n".join(shown), markup=False, soft_wrap=True)

        talk.result(data, show)


def _note_slow(talk: Talk, loaded: LoadedModel) -> None:
    """Say so before an hour is spent on what would take minutes."""
    from shearfx.inference import computes_bfloat16, device_of, dtype_name

    device = device_of(loaded.module)
    if dtype_name(loaded.module) == "bfloat16" and device.type == "cpu" and not computes_bfloat16(device):
        talk.note("this processor does not compute in bfloat16: --dtype float32 is several times as fast")


def _kept(loaded: LoadedModel, answers: Path) -> LineFile:
    from shearfx.inference import check_tokenizer
    from shearfx.zero_shot import LineFile, whose

    return LineFile(answers, whose(loaded.module, check_tokenizer(loaded.tokenizer)))


def _tasks(
    talk: Talk, loaded: LoadedModel, asked: Any, batch_tokens: int, kept: LineFile | None, harness: bool
) -> list[Any]:
    if harness:
        from shearfx.zero_shot.harness import harness_zero_shot

        with talk.step("answering zero-shot tasks through lm-evaluation-harness"):
            return harness_zero_shot(loaded.module, loaded.tokenizer, asked)
    from shearfx.zero_shot import zero_shot

    with talk.step("answering zero-shot tasks") as progress:
        return zero_shot(
            loaded.module, loaded.tokenizer, asked, batch_tokens=batch_tokens, cache=kept, progress=progress
        )


def _speed(talk: Talk, loaded: LoadedModel) -> tuple[dict[str, Any], list[str]]:
    from shearfx.inference_cost import inference_cost
    from shearfx.speed import generation_speed, lengths

    prompt, new = lengths([loaded.module])
    with talk.step("timing prefill and decode, counting operations and memory"):
        timed = generation_speed(loaded.module, prompt_tokens=prompt, new_tokens=new)
        cost = inference_cost(loaded.module, prompt_tokens=prompt, new_tokens=new)
    return {"speed": asdict(timed), "cost": asdict(cost)}, [str(timed), str(cost)]
