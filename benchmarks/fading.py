"""Does fading move knowledge? LHSPG against cutting at once, at equal tokens: same model, data, adapters and judge.

    python -m benchmarks.fading [--data ../shared] [--model stories260k|smollm2] [--ratios 0.2 0.5]
                                [--tokens 20000 40000 80000] [--seeds 0 1 2] [--methods ...]

Every method gets the same number of training tokens in all (LHSPG's own included), the same structures to choose from
and the same windows. ``cut`` is the model right after the cut, before recovery; ``LHSPG's choice`` cuts at once what
LHSPG chose for the same budget. What is cut without training is cut once for all budgets. ``minutes`` is the
processor time that choosing, cutting and training took: with one thread, the wall clock of an idle machine. Rows are
kept one by one in ``results/fading_rows.json``; what is there is not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import json
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import record
from shearfx.config import ShearConfig
from shearfx.data import Examples, open_source, pack
from shearfx.models import load_model
from shearfx.pipeline import Shearing, Silent
from shearfx.pipeline.tellers import Progress
from shearfx.run_directory import RunDirectory
from shearfx.training import losses_of

ROWS = record.RESULTS / "fading_rows.json"
PLAIN: dict[str, Any] = {
    "compensation": False, "distill": 0.0, "saliency": "fisher", "cuts": 1, "scoring_labels": "text",
}  # fmt: skip
FEW = ", fitted on 32 windows"
"""What rows were measured with before least squares got more windows than gradients."""
BOTH = PLAIN | {"compensation": True, "distill": 0.5}
FADED = PLAIN | {"prune_share": 0.5}
CHOICES = {
    "at once, LHSPG's choice": "LHSPG, 5 periods",
    "at once, compensated LHSPG's choice": "LHSPG, 5 periods, compensated, distilled",
}
"""Methods that cut at once what another one chose."""
METHODS: dict[str, dict[str, Any]] = {
    "at once": PLAIN,
    "at once, compensated": PLAIN | {"compensation": True},
    "at once, distilled": PLAIN | {"distill": 0.5},
    "at once, compensated, distilled": BOTH,
    "at once, compensated_fisher": BOTH | {"saliency": "compensated_fisher"},
    "in 3 cuts": BOTH | {"cuts": 3},
    "in 3 cuts, drawn labels": BOTH | {"cuts": 3, "scoring_labels": "model"},
    "in 3 cuts, drawn labels, not distilled": BOTH | {"cuts": 3, "scoring_labels": "model", "distill": 0.0},
    "in 6 cuts": BOTH | {"cuts": 6},
    "in 3 cuts, compensated_fisher": BOTH | {"saliency": "compensated_fisher", "cuts": 3},
    "in 5 cuts, compensated_fisher": BOTH | {"saliency": "compensated_fisher", "cuts": 5},
    "LHSPG, 5 periods": FADED,
    "at once, LHSPG's choice": PLAIN,
    "at once, compensated LHSPG's choice": PLAIN,
    "LHSPG, 1 period": FADED | {"periods": 1},
    "LHSPG, 5 periods, distilled": FADED | {"distill": 0.5},
    "LHSPG, 5 periods, compensated, distilled": FADED | {"compensation": True, "distill": 0.5},
    "LHSPG, 5 periods, compensated_fisher": FADED
    | {"compensation": True, "distill": 0.5, "saliency": "compensated_fisher"},
    "LHSPG, 5 periods, half-space 0.9": FADED | {"half_space_eps": 0.9},
    **{
        f"{name}{FEW}": options | {"fitting_windows": 32}
        for name, options in {
            "at once, compensated": PLAIN | {"compensation": True},
            "at once, compensated, distilled": BOTH,
            "at once, compensated_fisher": BOTH | {"saliency": "compensated_fisher"},
            "in 3 cuts, compensated_fisher": BOTH | {"saliency": "compensated_fisher", "cuts": 3},
            "in 5 cuts, compensated_fisher": BOTH | {"saliency": "compensated_fisher", "cuts": 5},
            "LHSPG, 5 periods, compensated, distilled": FADED | {"compensation": True, "distill": 0.5},
            "LHSPG, 5 periods, compensated_fisher": FADED
            | {"compensation": True, "distill": 0.5, "saliency": "compensated_fisher"},
        }.items()
    },
    "paper": {"recipe": "paper", "gamma": None, "min_tokens": 0},
}
COLUMNS = ("model", "ratio", "tokens", "method", "cut", "recovered", "spread", "gap closed", "minutes", "seeds")


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared"))
    parser.add_argument("--model", choices=("stories260k", "smollm2"), default="stories260k")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.5])
    parser.add_argument("--tokens", type=int, nargs="+", default=[20_000, 40_000, 80_000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows: dict[str, dict[str, Any]] = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    todo = [
        (key, what)
        for seed, ratio, *rest in itertools.product(options.seeds, options.ratios, options.tokens, options.methods)
        if (key := " | ".join(map(str, (options.model, *(what := (ratio, rest[0], seed, rest[1])))))) not in rows
    ]
    if todo:
        bench = Bench(options.model, options.data)
        for done, (key, what) in enumerate(todo, 1):
            rows[key] = bench.run(*what)
            print(f"[{done}/{len(todo)}] {key}: {rows[key]['recovered']:.4f}", file=sys.stderr, flush=True)
            ROWS.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
    report(rows)


class Timing(Silent):
    """Adds up the processor time of each step of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[Progress]:
        """A step begins."""
        start = time.process_time()
        yield lambda done, total, said="": None
        name = what.partition(" (")[0]
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start


NOT_COUNTED = ("reading", "judging", "measuring what a training", "tracing", "finding out", "timing", "solving")
"""Steps that all methods have in common, or that a user needs once."""


class Bench:
    """One model, analysed once."""

    def __init__(self, model: str, data: Path) -> None:
        text = data / "data" / "text"
        from shearfx.demo import smollm2_path

        small = model == "stories260k"
        spec = str(data / "models" / "stories260k") if small else str(smollm2_path())
        self.train = text / ("tinystories_train.jsonl" if small else "c4_validation_2k.parquet")
        judge = text / ("tinystories_valid.jsonl" if small else "wikitext2_test_raw_first_half.txt")
        self.model, self.options = model, {"lr": 4e-3, "sequence_length": 256} if small else {"lr": 1e-3}
        self.loaded = load_model(spec)
        packed = pack(open_source(judge, kind="pretrain"), self.loaded.tokenizer, sequence_length=256, min_tokens=0)
        self.judges: list[Examples] = [packed.take(range(min(48, len(packed))))]
        self.dense = self.loss(self.loaded.module)
        self.known: Any = None
        self.fewer = {} if small else {"scoring_windows": 16, "fitting_windows": 64}
        self.chosen: dict[tuple[float, int, int, str], str] = {}
        """The plans of LHSPG, by the row's setting."""
        self.cuts: dict[tuple[float, int, str], tuple[Path, dict[str, float]]] = {}
        """What was cut without training: the run's folder, and what it took."""
        self.kept = tempfile.TemporaryDirectory()

    def loss(self, model: nn.Module) -> float:
        """On what is judged by, in nats a token; the mean of several texts."""
        return statistics.fmean(losses_of(model, self.judges).values())

    def asked(self, method: str) -> dict[str, Any]:
        """Options of a method."""
        return {"pretrain": (str(self.train),)} | METHODS[method]

    def run(self, ratio: float, tokens: int, seed: int, method: str) -> dict[str, Any]:
        """One row: losses on the judge's text, in nats a token."""
        chooser = CHOICES.get(method)
        if chooser is not None and (ratio, tokens, seed, chooser) not in self.chosen:
            self.run(ratio, tokens, seed, chooser)
        timing = Timing()
        config = ShearConfig.of_mapping(
            {"ratio": ratio, "tokens": tokens, "seed": seed, "max_tokens": 400_000, "round_to": 1}
            | self.options | self.fewer | self.asked(method)
        )  # fmt: skip
        loaded = copy.copy(self.loaded)
        object.__setattr__(loaded, "module", copy.deepcopy(self.loaded.module))
        with tempfile.TemporaryDirectory() as folder:
            run = RunDirectory(Path(folder) / "run", self.model, config, resume=False)
            run.finish("speed", {})  # not what is asked here
            once = (ratio, seed, method)
            if chooser is not None:
                run.write("plan.json", self.chosen[ratio, tokens, seed, chooser])
                run.finish("prune", {})
            elif once in self.cuts:
                folder_before, timing.seconds = self.cuts[once][0], dict(self.cuts[once][1])
                self._go_on(run, folder_before)
            shearing = Shearing(loaded, config, run, timing, self.known)
            sheared = shearing.run()
            if method in CHOICES.values():  # another one cuts the same
                self.chosen[ratio, tokens, seed, method] = sheared.plan.to_json()
            elif chooser is None and config.prune_share == 0 and once not in self.cuts:
                before = {name: t for name, t in timing.seconds.items() if not name.startswith("dynamic recovery")}
                kept = Path(self.kept.name) / str(len(self.cuts))
                shutil.copytree(run.path, kept)
                self.cuts[once] = kept, before
            self.known = (shearing.graph, shearing.tied)
            from shearfx.checkpoints import load

            cut = self.loss(load(run.path / "cut"))
        return {
            "model": self.model, "ratio": ratio, "tokens": tokens, "seed": seed, "method": method, "dense": self.dense,
            "cut": cut, "recovered": self.loss(sheared.model),
            "achieved": sheared.plan.achieved, "seconds": timing.seconds, "torch": torch.__version__,
        }  # fmt: skip

    def _go_on(self, run: RunDirectory, before: Path) -> None:
        """Up to the cut as an earlier run of the same setting did it."""
        shutil.copytree(before / "cut", run.path / "cut")
        run.write("plan.json", (before / "plan.json").read_text(encoding="utf-8"))
        records = json.loads((before / "stages.json").read_text(encoding="utf-8"))
        for stage in ("memory", "dense", "prune", "cut"):
            run.finish(stage, records[stage])


def report(rows: dict[str, dict[str, Any]]) -> None:
    """Means over seeds; ``gap closed`` counts from the plain cut at once of the same ratio."""
    bare: dict[tuple[str, float], float] = {}
    for row in rows.values():
        if row["method"] == "at once":
            bare[row["model"], row["ratio"]] = row["cut"]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in sorted(rows.values(), key=lambda r: (r["model"], r["ratio"], r["tokens"])):
        groups.setdefault((row["model"], row["ratio"], row["tokens"], row["method"]), []).append(row)
    table = []
    for (model, ratio, tokens, method), same in groups.items():
        found = [row["recovered"] for row in same]
        mean, dense = statistics.mean(found), same[0]["dense"]
        cut = bare.get((model, ratio))
        times = [sum(t for name, t in row["seconds"].items() if not name.startswith(NOT_COUNTED))
                 for row in same if isinstance(row["seconds"], dict)]  # fmt: skip
        gap = "" if cut is None else f"{(cut - mean) / (cut - dense):.0%}"
        table.append(
            {"model": model, "ratio": ratio, "tokens": tokens, "method": method, "seeds": len(same),
             "minutes": f"{statistics.median(times) / 60:.1f}" if times else "",
             "cut": f"{statistics.mean(r['cut'] for r in same):.3f}", "recovered": f"{mean:.3f}", "gap closed": gap,
             "spread": f"{max(found) - min(found):.3f}"}
        )  # fmt: skip
    dense = ", ".join(f"{m} {d:.3f}" for m, d in {r["model"]: r["dense"] for r in rows.values()}.items())
    text = (
        "Losses in nats a token on text that is not trained on (stories260k: TinyStories valid; SmolLM2: WikiText-2), "
        f"48 windows of 256. Dense: {dense}. `gap closed`: of the loss between dense and the plain cut at once.\n\n"
    )
    record.keep("fading", "LHSPG against cutting at once", text + record.table(table, COLUMNS), list(rows.values()))


if __name__ == "__main__":
    main()
