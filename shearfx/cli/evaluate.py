"""``shearfx eval``: the perplexity of a language model on a text."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from shearfx.cli.console import AsJson, Debug, talking
from shearfx.cli.opening import Device, Dtype, Model, Original, open_model, read_text

__all__ = ["evaluate"]


def evaluate(
    model: Model,
    text: Annotated[Path, typer.Option(help="Text file, UTF-8.", show_default=False)],
    sequence_length: Annotated[
        int | None, typer.Option(help="Tokens per window; 1024, or as many as the model has.", show_default=False)
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens between windows; they do not overlap by default.", show_default=False)
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Use only the first tokens of the text.")] = None,
    batch_size: Annotated[int, typer.Option(help="Windows at a time.")] = 1,
    original: Original = None,
    dtype: Dtype = None,
    device: Device = "cpu",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure the perplexity of MODEL on a text, and say under which conditions."""
    with talking(as_json, debug) as talk:
        content = read_text(text)
        loaded = open_model(talk, model, originals=original, dtype=dtype, device=device)
        from shearfx.evaluation import parameter_count, perplexity

        with talk.step("measuring perplexity") as progress:
            measured = perplexity(
                loaded.module,
                loaded.tokenizer,
                content,
                sequence_length=sequence_length,
                stride=stride,
                max_tokens=max_tokens,
                batch_size=batch_size,
                progress=progress,
            )
        parameters = parameter_count(loaded.module).total
        data = {"model": model, "text": str(text), "parameters": parameters, **asdict(measured)}
        data["perplexity"] = data.pop("value")

        def show(out: Console) -> None:
            out.print(f"{measured}\non {text}, {model}, {parameters:,} parameters", markup=False, soft_wrap=True)

        talk.result(data, show)
