"""What widths that are multiples cost in loss and save in time: SmolLM2, cut once by Fisher information, not recovered.

    python -m benchmarks.aligned [--data ../shared] [--ratios 0.2 0.5] [--multiples 1 16 32]

Speeds in bfloat16, medians of five rounds in which all models take turns; run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

import shearfx
from benchmarks import record
from benchmarks.texts import c4_parts
from shearfx.data import open_source, pack
from shearfx.demo import smollm2_path
from shearfx.models import load_model
from shearfx.speed import by_turns
from shearfx.training import losses_of

WINDOWS, SCORED = 24, 8
COLUMNS = ("ratio", "multiples of", "removed", "WikiText-2", "C4", "prefill", "decode")


def main() -> None:
    """Cut, judge and time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared"))
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.5])
    parser.add_argument("--multiples", type=int, nargs="+", default=[1, 16, 32])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    full = load_model(str(smollm2_path()))
    with tempfile.TemporaryDirectory() as folder:
        train, judge = c4_parts(options.data, Path(folder))
        wikitext = options.data / "data" / "text" / "wikitext2_test_raw_first_half.txt"
        texts = {name: pack(open_source(str(place), kind="pretrain"), full.tokenizer, sequence_length=256, min_tokens=0,
                            max_tokens=100_000)
                 for name, place in (("WikiText-2", wikitext), ("C4", judge), ("train", train))}  # fmt: skip
    data = list(texts.pop("train").ids[:SCORED].split(4))
    judges = {name: examples.take(range(WINDOWS)) for name, examples in texts.items()}
    graph = shearfx.trace(full.module, *full.args, **full.kwargs)
    models, rows = [copy.deepcopy(full.module).to(torch.bfloat16)], [{"ratio": 0.0, "multiples of": "", "removed": ""}]
    for ratio, multiple in itertools.product(options.ratios, options.multiples):
        plan = shearfx.plan(graph, ratio, "fisher", full.module, data=data, loss=_loss, kinds=("ffn", "heads"),
                            round_to=multiple)  # fmt: skip
        models.append(shearfx.construct(full.module, plan).to(torch.bfloat16))
        rows.append({"ratio": ratio, "multiples of": str(multiple), "removed": f"{plan.achieved:.2%}"})
    for row, model in zip(rows, models, strict=True):
        found = losses_of(model, list(judges.values()))
        row |= {name: f"{found[examples.name]:.3f}" for name, examples in judges.items()}
    rounds = by_turns(models, 5)
    for row, one in zip(rows, rounds, strict=True):
        for what in ("prefill", "decode"):
            times = [getattr(a, what) / getattr(b, what) for a, b in zip(one, rounds[0], strict=True)]
            row[what] = f"{statistics.median(times):.2f}"
    text = (f"Nats a token on {WINDOWS} windows of 256; speed as a multiple of the full model's ({rounds[0][0]}); "
            f"Fisher information from {SCORED} windows of C4, one cut, nothing fitted or trained.\n\n")  # fmt: skip
    record.keep("aligned", "Widths that are multiples", text + record.table(rows, COLUMNS), rows)


def _loss(model: Any, ids: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
    return found


if __name__ == "__main__":
    main()
