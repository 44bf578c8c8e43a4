"""What every stage is worth: the paper's recipe and the default, each with one thing switched off or changed.

    python -m benchmarks.ablations [--data ../shared] [--ratios 0.2 0.5] [--tokens 40000] [--seeds 0 1 2]
                                   [--methods ...]

On stories260k (a Llama of 0.26 M parameters), with two sources of text (TinyStories, WikiText-2 valid) and one of
instructions (Alpaca), so that recovery has something to choose from. Judged on the mean of two texts that are not
trained on: TinyStories valid and WikiText-2 test. Same tokens for all. Rows are kept in
``results/ablations_rows.json``; what is there is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import warnings
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.fading import Bench
from shearfx.data import open_source, pack

ROWS = record.RESULTS / "ablations_rows.json"
PAPER: dict[str, Any] = {"recipe": "paper", "min_tokens": 0}
METHODS: dict[str, dict[str, Any]] = {
    "plain cut at once": {"compensation": False, "distill": 0.0, "saliency": "fisher", "cuts": 1},
    "paper": PAPER,
    "paper, no knowledge analysis": PAPER | {"gamma": None},
    "paper, one period": PAPER | {"periods": 1},
    "paper, no half-space step": PAPER | {"half_space_eps": float("-inf")},
    "paper, merged at the end": PAPER | {"merge": "end"},
    "paper, uniform recovery": PAPER | {"balance": 1.0},
    "paper, instructions only": PAPER | {"pretrain": ()},
    "default": {},
    "default, knowledge analysis": {"gamma": 0.2},
    "default, one cut": {"cuts": 1},
    "default, no least squares": {"compensation": "none"},
    "default, no distillation": {"distill": 0.0},
    "default, uniform recovery": {"balance": 1.0},
    "default, instructions only": {"pretrain": ()},
    "default, fisher": {"saliency": "fisher"},
    "default, compensated_fisher": {"saliency": "compensated_fisher"},
    "default, taylor": {"saliency": "taylor"},
}
COLUMNS = ("ratio", "method", "cut", "recovered", "spread", "closed by the choice", "closed by recovery", "seeds")


class Ablations(Bench):
    """The same bench with three sources and two texts to judge by."""

    def __init__(self, data: Path) -> None:
        super().__init__("stories260k", data)
        text = data / "data" / "text"
        other = open_source(text / "wikitext2_test_raw_first_half.txt", kind="pretrain")
        packed = pack(other, self.loaded.tokenizer, sequence_length=256, min_tokens=0)
        self.judges.append(packed.take(range(48)))
        self.dense = self.loss(self.loaded.module)
        self.sources = {
            "pretrain": (str(self.train), str(text / "wikitext2_valid_tokens.txt")),
            "instruct": (str(data / "data" / "instruct" / "alpaca_1000.json"),),
        }

    def asked(self, method: str) -> dict[str, Any]:
        """Options of a method."""
        return self.sources | METHODS[method]


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared"))
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.5])
    parser.add_argument("--tokens", type=int, default=40_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows: dict[str, dict[str, Any]] = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    asked = itertools.product(options.seeds, options.ratios, options.methods)
    keyed = {f"{ratio} | {options.tokens} | {seed} | {method}": (ratio, seed, method) for seed, ratio, method in asked}
    todo = {key: what for key, what in keyed.items() if key not in rows}
    bench = Ablations(options.data) if todo else None
    for done, (key, (ratio, seed, method)) in enumerate(todo.items(), 1):
        assert bench is not None
        rows[key] = bench.run(ratio, options.tokens, seed, method)
        print(f"[{done}/{len(todo)}] {key}: {rows[key]['recovered']:.4f}", file=sys.stderr, flush=True)
        ROWS.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
    report(rows)


def report(rows: dict[str, dict[str, Any]]) -> None:
    """Means over seeds; shares of the gap between the dense model and the plain cut at once of the same seeds."""
    groups: dict[tuple[float, str], dict[int, dict[str, Any]]] = {}
    for row in rows.values():
        groups.setdefault((row["ratio"], row["method"]), {})[row["seed"]] = row
    table = []
    for (ratio, method), same in sorted(groups.items(), key=lambda g: (g[0][0], list(METHODS).index(g[0][1]))):
        found = [row["recovered"] for row in same.values()]
        bare = [groups[ratio, "plain cut at once"][seed]["cut"] for seed in same
                if seed in groups.get((ratio, "plain cut at once"), {})]  # fmt: skip
        line = {"ratio": ratio, "method": method, "seeds": len(same), "recovered": f"{statistics.fmean(found):.3f}",
                "cut": f"{statistics.fmean(r['cut'] for r in same.values()):.3f}",
                "spread": f"{max(found) - min(found):.3f}"}  # fmt: skip
        if len(bare) == len(same):
            gap = statistics.fmean(bare) - next(iter(same.values()))["dense"]
            cut = statistics.fmean(row["cut"] for row in same.values())
            line["closed by the choice"] = f"{(statistics.fmean(bare) - cut) / gap:.0%}"
            line["closed by recovery"] = f"{(cut - statistics.fmean(found)) / gap:.0%}"
        table.append(line)
    dense = next(iter(rows.values()))["dense"]
    text = (
        f"Mean loss on two texts in nats a token, 48 windows of 256 each; dense {dense:.3f}. The gap is that between "
        "the dense model and the plain cut at once by Fisher; `closed by the choice`: what the structures, and what "
        "was fitted or faded by the time of the cut, close of it; `closed by recovery`: the training after the cut.\n\n"
    )
    record.keep("ablations", "What every stage is worth", text + record.table(table, COLUMNS), list(rows.values()))


if __name__ == "__main__":
    main()
