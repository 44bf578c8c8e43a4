"""Trained models cut by 10 and 20%: perplexity and speed before and after.

    python -m benchmarks.real_models [--data ../shared] [--models stories260k SmolLM2-135M] [--tokens 8192]

Each result is verified, saved, and loaded by a fresh process, which measures perplexity, and speed of the original
and the result by turns. Structures are scored by first-order Taylor on text that is not judged on. Nothing is trained
afterwards and no knowledge is moved: these are the bare cuts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import shearfx
from benchmarks import record
from shearfx.calibration import token_batches
from shearfx.construction import remember
from shearfx.demo import smollm2_path
from shearfx.evaluation import parameter_count, perplexity
from shearfx.models import load_model
from shearfx.speed import alternating

COLUMNS = (
    "model", "asked", "parameters", "removed", "error", "perplexity before", "perplexity after",
    "prefill before", "prefill after", "decode before", "decode after",
)  # fmt: skip
RATIOS = (0.1, 0.2)
WINDOW, BATCHES = 256, 16


@dataclass(frozen=True)
class Case:
    """A model, what is cut of it, the text its structures are scored on, and the text it is judged by."""

    name: str
    spec: str
    kinds: tuple[str, ...] | None
    scored_on: Path
    judged_by: Path


def cases(data: Path) -> list[Case]:
    """The models; texts lie in the shared folder, as its ``data/SOURCES.md`` describes."""
    text = data / "data" / "text"
    return [
        Case(
            "stories260k",
            str(data / "models" / "stories260k"),
            ("ffn",),
            text / "tinystories_train.jsonl",
            text / "tinystories_valid.jsonl",
        ),
        Case(
            "SmolLM2-135M",
            str(smollm2_path()),
            ("ffn",),
            text / "c4_validation_2k.parquet",
            text / "wikitext2_test_raw_first_half.txt",
        ),
    ]


def documents(path: Path, most: int = 400) -> list[str]:
    """The first documents of a text file (one), a jsonl or a parquet file with a column ``text``."""
    if path.suffix == ".parquet":
        from datasets import Dataset

        return [str(row["text"]) for row in Dataset.from_parquet(str(path)).select(range(most))]
    if path.suffix == ".jsonl":
        return [str(json.loads(line)["text"]) for line in path.read_text(encoding="utf-8").splitlines()[:most]]
    return [path.read_text(encoding="utf-8")]


def judge(spec: str, text: Path, tokens: int) -> dict[str, Any]:
    """Perplexity of a model, and how it was measured."""
    loaded = load_model(spec)
    measured = perplexity(loaded.module, loaded.tokenizer, documents(text), max_tokens=tokens, sequence_length=512)
    return asdict(measured)


def judge_result(original: str, folder: str, text: Path, tokens: int) -> dict[str, Any]:
    """What the fresh process measures: the result's perplexity, and both models' speed."""
    before, after = load_model(original).module, load_model(folder).module
    old, new = alternating(before, after)
    data = judge(folder, text, tokens) | {"speed": asdict(old[0])}
    for name, speeds in (("before", old), ("after", new)):
        for what in ("prefill", "decode"):
            data[f"{what} {name}"] = statistics.median(getattr(s, what) for s in speeds)
    return data


def measure(case: Case, tokens: int) -> list[dict[str, Any]]:
    """The rows of one model."""
    loaded = load_model(case.spec)
    model = loaded.module
    graph = shearfx.trace(model, *loaded.args, **loaded.kwargs)
    remember(model, graph)
    batches = token_batches(
        loaded.tokenizer, "\n\n".join(documents(case.scored_on)), sequence_length=WINDOW, batches=BATCHES
    )
    before = asdict(
        perplexity(model, loaded.tokenizer, documents(case.judged_by), max_tokens=tokens, sequence_length=512)
    )
    rows = []
    with tempfile.TemporaryDirectory() as place:
        original = Path(place) / "original"
        model.save_pretrained(original)  # type: ignore[operator]
        assert loaded.tokenizer is not None
        loaded.tokenizer.save_pretrained(original)
        for ratio in RATIOS:
            plan = shearfx.plan(graph, ratio, "taylor", model, data=batches, kinds=case.kinds)
            small = shearfx.construct(model, plan)
            folder = Path(place) / f"small-{ratio}"
            shearfx.save(small, plan, folder, tokenizer=loaded.tokenizer)
            error = shearfx.verify(model, plan, *loaded.args, **loaded.kwargs).max_relative_error
            options = ["--tokens", str(tokens), "--judge", str(original), str(folder), str(case.judged_by)]
            after = _fresh(options)
            rows.append(
                {
                    "model": case.name,
                    "asked": ratio,
                    "parameters": parameter_count(small).total,
                    "removed": plan.achieved,
                    "error": error,
                    "perplexity before": before["value"],
                    "perplexity after": after["value"],
                    **{key: value for key, value in after.items() if key.startswith(("prefill", "decode"))},
                    "conditions": {"judged": before, "speed": after["speed"], "kinds": case.kinds,
                                   "scored on": case.scored_on.name, "judged by": case.judged_by.name},
                }
            )  # fmt: skip
            print(record.table(rows[-1:], COLUMNS), flush=True)
    return rows


def _fresh(options: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.real_models", *options]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise SystemExit(f"the fresh process failed:\n{done.stderr}")
    data: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return data


def _earlier(name: str) -> list[dict[str, Any]]:
    """Rows of the last run, for models that this one leaves out."""
    file = record.RESULTS / "real_models.json"
    data = json.loads(file.read_text(encoding="utf-8"))["data"] if file.is_file() else []
    return [row for row in data if row["model"] == name]


def notes(rows: list[dict[str, Any]]) -> str:
    """How the figures were measured."""
    lines = []
    for row in {r["model"]: r for r in rows}.values():
        about, judged, speed = row["conditions"], row["conditions"]["judged"], row["conditions"]["speed"]
        lines.append(
            f"- {row['model']}: {', '.join(about['kinds'] or ('default kinds',))} cut by taylor on {BATCHES} windows "
            f"of {WINDOW} tokens of {about['scored on']}; perplexity on {about['judged by']}, {judged['tokens']} "
            f"tokens, sequence {judged['sequence_length']}, {judged['tokenizer']}, {judged['dtype']}; speed in "
            f"tokens/s, batch 1, {speed['prompt_tokens']} + {speed['new_tokens']} tokens, medians of 5 rounds by "
            f"turns, {speed['threads']} threads"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared"), help="folder with models/ and data/text/")
    parser.add_argument("--models", nargs="*")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens to judge by")
    parser.add_argument("--judge", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.judge:
        original, folder, text = options.judge
        print(json.dumps(judge_result(original, folder, Path(text), options.tokens)))
        return
    torch.manual_seed(0)
    rows = []
    for case in cases(options.data):
        again = not options.models or case.name in options.models
        rows += measure(case, options.tokens) if again else _earlier(case.name)
    text = f"{record.table(rows, COLUMNS)}\n\n{notes(rows)}"
    print(text)
    record.keep("real_models", "Trained models, cut and not recovered", text, rows)


if __name__ == "__main__":
    main()
