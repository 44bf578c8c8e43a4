"""The table of the LoRAShear paper on a real model: every rival in the same harness, with the same data and tokens.

    python -m benchmarks.lorashear_table [--data ../shared] [--methods ...] [--ratios ...] [--seeds ...] [--tokens N]
    python -m benchmarks.lorashear_table --report         # writes the tables of the rows that are there, runs nothing

Methods, ratios and seeds stand in ``lorashear_table.yaml``. Trained on C4 (rows 0 to 1599 of the file) and Alpaca;
judged on WikiText-2, on the rest of C4, and on eight zero-shot tasks. Each run has a folder under ``--runs`` and goes
on where it was cut off; each finished row lies in ``results/lorashear_table_rows/`` and is not run again, unless its
settings have changed. Rows of other ``--tokens`` than the settings' have a table of their own. Speeds are those of the
moment: ``--time`` measures them again, on a machine that does nothing else by then. It needs no run: a row says what of
the full model went, and a model of these sizes takes as long, whatever it has learnt. Where the processor does not
compute in bfloat16, products are imitated (``widened.py``); speeds and minutes wait for a machine that does.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import yaml
from torch import nn

from benchmarks import record
from benchmarks.lorashear_report import DENSE, ROWS, asked, fields, finished, report
from benchmarks.texts import c4_parts
from benchmarks.widened import Widened
from shearfx.analysis import trace
from shearfx.attributes import settle
from shearfx.config import ShearConfig
from shearfx.construction import construct
from shearfx.depth import angular_distances, drop_layers, find_layers, nearest_run
from shearfx.evaluation import parameter_count, perplexity
from shearfx.footprint import peak, reset_peak
from shearfx.graph import Graph
from shearfx.inference import computes_bfloat16, device_of, logits_of
from shearfx.inference_cost import inference_cost
from shearfx.models import LoadedModel, load_model
from shearfx.pipeline import Shearing, Silent
from shearfx.pipeline.study import Study, device_for
from shearfx.pruning_plan import PruningPlan, of_cuts
from shearfx.run_directory import RunDirectory
from shearfx.speed import by_turns
from shearfx.zero_shot import read_tasks, zero_shot

SETTINGS = Path(__file__).with_suffix(".yaml")
WHOLE = 0.0


def main() -> None:
    """Run what is missing or stale, then print the tables."""
    settings = yaml.safe_load(SETTINGS.read_text())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared"))
    parser.add_argument("--model", help="another model than SmolLM2; keep its rows elsewhere")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--runs", type=Path, default=Path(tempfile.gettempdir()) / "lorashear_table")
    parser.add_argument("--methods", nargs="+", choices=list(settings["methods"]), default=list(settings["methods"]))
    parser.add_argument("--ratios", type=float, nargs="+", default=settings["ratios"])
    parser.add_argument("--seeds", type=int, nargs="+", default=settings["seeds"])
    parser.add_argument("--tokens", type=int, default=settings["common"]["tokens"])
    parser.add_argument("--time", action="store_true", help="time finished models again, run nothing")
    parser.add_argument("--report", action="store_true", help="only write the tables of the rows that are there")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows: Path = options.rows
    rows.mkdir(parents=True, exist_ok=True)
    if options.report:
        report(settings, rows)
        return
    own_tokens = settings | {"common": settings["common"] | {"tokens": options.tokens}}
    wanted = (
        (seed, WHOLE if settings["methods"][method].get("dense") else ratio, method)
        for seed, ratio, method in itertools.product(options.seeds, options.ratios, options.methods)
    )
    names = {what: row_file(*what, options.tokens) for what in wanted}
    todo = [what for what, name in names.items() if options.time == finished(rows / name, settings)]
    dense = rows / f"{DENSE}.json"
    if options.time and not computes_bfloat16(device_for("auto")):
        parser.error("--time is about bfloat16, which this processor does not compute in")
    if options.time:
        time_again(Bench(options.data, options.runs, own_tokens, options.model), [rows / names[what] for what in todo])
    elif len(todo) > 1:  # each in a process of its own, whose peak of memory is the row's
        for seed, ratio, method in todo:
            own = ["--seeds", str(seed), "--ratios", str(ratio or settings["ratios"][0]), "--methods", method]
            subprocess.run([sys.executable, "-m", "benchmarks.lorashear_table", *sys.argv[1:], *own], check=True)
    elif todo or not dense.exists():
        bench = Bench(options.data, options.runs, own_tokens, options.model)
        # torch's modes have no types
        with contextlib.nullcontext() if bench.native else Widened():  # type: ignore[no-untyped-call]
            if not dense.exists():
                found = {"model": Path(bench.spec).stem} | bench.judged(bench.full.module, options.runs / "dense.jsonl")
                dense.write_text(json.dumps(found, indent=1) + "\n")
            for what in todo:
                if (rows / names[what]).exists():
                    print(f"again, as its settings have changed: {names[what]}", file=sys.stderr, flush=True)
                row = bench.row(*what)
                (rows / names[what]).write_text(json.dumps(row, indent=1) + "\n")
                print(*what, row["perplexity"], file=sys.stderr, flush=True)
    report(settings, rows)


def time_again(bench: Bench, places: Sequence[Path]) -> None:
    """Measure the speeds of finished rows again, all by turns; those that do not say what was cut stay as they are."""
    rows = {place: json.loads(place.read_text()) for place in places}
    shapes = {place: json.dumps(row["cut"], sort_keys=True) for place, row in rows.items() if "cut" in row}
    different = list(dict.fromkeys(shapes.values()))
    speeds = dict(zip(different, bench.speeds([json.loads(shape) for shape in different]), strict=True))
    for place, shape in shapes.items():
        new = rows[place] | speeds[shape] | {"timed_on": record.hardware()}
        place.write_text(json.dumps(new, indent=1) + "\n")


def row_file(seed: int, ratio: float, method: str, tokens: int) -> str:
    """The name of a finished row's file."""
    return f"{re.sub(r'[^a-z0-9]+', '_', method.lower())}-{ratio}-{tokens}-{seed}.json"


class Bench:
    """The full model, the data, and what is judged by."""

    def __init__(self, data: Path, runs: Path, settings: dict[str, Any], model: str | None) -> None:
        from shearfx.demo import smollm2_path

        self.settings, self.runs = settings, runs
        runs.mkdir(parents=True, exist_ok=True)
        self.spec = model or str(smollm2_path())
        self.device = device_for("auto")
        self.native = computes_bfloat16(self.device)
        self.commit = record.commit()  # the files may have changed by the end of a run
        self.full = load_model(self.spec)
        train, judge = c4_parts(data, runs)
        self.sources = {
            "pretrain": (str(train),), "instruct": (str(data / "data" / "instruct" / "alpaca_1000.json"),),
        }  # fmt: skip
        wikitext = data / "data" / "text" / "wikitext2_test_raw_first_half.txt"
        self.texts: dict[str, str | list[str]] = {
            "WikiText-2": wikitext.read_text(encoding="utf-8"),
            "C4": pq.read_table(judge)["text"].to_pylist(),
        }
        self.tasks = read_tasks([data / "data" / "mc"], settings["limit"])

    def row(self, seed: int, ratio: float, method: str) -> dict[str, Any]:
        """One method, cut, recovered and judged."""
        of = fields(self.settings, method, ratio)
        named = asked(self.settings, method, ratio, self.settings["common"]["tokens"])
        how, dense = of.pop("run_of_layers", None), of.pop("dense", False)
        common = self.settings["common"] | {"seed": seed, "dtype": "bfloat16"} | ({} if dense else {"ratio": ratio})
        config = ShearConfig.of_mapping(common | self.sources | of)
        start = time.process_time()
        reset_peak(self.device)
        name = row_file(seed, ratio, method, named["tokens"]).removesuffix(".json")
        folder = self.runs / f"{name}-{digest(named)}"  # no run of other settings is gone on with
        resumed = folder.exists()
        gone: list[str] = []
        cut: dict[str, int] = {}
        if how or dense:
            small, gone = self._trained(config, how, ratio, folder)
            small.save_pretrained(folder / "model")  # type: ignore[operator]
        else:
            run = RunDirectory(folder, self.spec, config, resume=resumed)
            run.finish("speed", run.records.get("speed", {}))  # measured below, beside the full model
            sheared = Shearing(load_model(self.spec), config, run, Silent()).run()
            small = sheared.model
            gone, cut = run.records.get("layers", {}).get("paths", []), widths(sheared.plan)
        # of a run that went on in a second process neither is known
        spent, most = (None, None) if resumed else ((time.process_time() - start) / 60, peak(self.device))
        found = self.judged(small, folder / "answers.jsonl")
        achieved = 1 - found["parameters"] / parameter_count(self.full.module).total
        if self.native:
            found |= self._speeds([small])[0]
        else:
            spent = None
        return found | {"method": method, "ratio": ratio, "seed": seed, "tokens": config.tokens, "achieved": achieved,
                        "cut": {"layers": gone, "widths": cut}, "minutes": spent, "peak": most,
                        "torch": torch.__version__, "settings": named, "config": options_of(config),
                        "commit": self.commit}  # fmt: skip

    def speeds(self, cuts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Of models that are cut so, as rows say it."""
        models = []
        for done, cut in enumerate(cuts, 1):
            models.append(self._of_size(cut["layers"], cut["widths"]).to(torch.bfloat16))
            print(f"[{done}/{len(cuts)}] cut", file=sys.stderr, flush=True)
        return self._speeds(models)

    def _of_size(self, gone: Sequence[str], cut: Mapping[str, int]) -> nn.Module:
        """The full model without these layers, and with so many structures of these groups: the first ones."""
        small, graph = self.full.module, self.graph
        if gone:
            small = drop_layers(small, graph, gone)
            graph = trace(small, *self.full.args, **self.full.kwargs)
        if cut:
            plan = of_cuts(graph, {name: range(count) for name, count in cut.items()})
            small = construct(small, settle(small, graph, plan))
        return copy.deepcopy(small)  # which shares tensors with the full model

    @functools.cached_property
    def graph(self) -> Graph:
        """Of the full model."""
        return trace(self.full.module, *self.full.args, **self.full.kwargs)

    def _trained(self, config: ShearConfig, how: str | None, ratio: float, folder: Path) -> tuple[nn.Module, list[str]]:
        """The full model, or one without a run of layers, after the same training; and these layers."""
        full = load_model(self.spec)
        study = Study(full.module.eval(), full.tokenizer, config, Silent())
        study.read()
        small, gone = (full.module, []) if how is None else self._shorter(full, study, how, ratio)
        held = study.hold(full.module if gone else load_model(self.spec).module)
        reference = study.judge(held.work, "dense")["losses"]
        teacher = study.teacher_of(held.work) if config.distill > 0 else None
        compact = study.hold(small)
        steps = study.steps(lambda: study.base(compact), teacher)
        return study.recover(compact, reference, steps, teacher, state=folder / "state"), gone

    def _shorter(self, full: LoadedModel, study: Study, how: str, ratio: float) -> tuple[nn.Module, list[str]]:
        """Without the run of layers that comes nearest to the ratio; and these layers."""
        graph = trace(full.module, *full.args, **full.kwargs)
        (layers,) = find_layers(graph).lists().values()
        batches = [batch.cpu() for batch in study.batches(study.config.fitting_windows, study.config.seed + 3)]
        found = angular_distances(full.module, layers, batches, lambda m, ids: logits_of(m, ids, last=1))
        pick = found.deepest if how == "deepest" else found.best
        gone = nearest_run(layers, ratio * graph.total_params, pick)
        return drop_layers(full.module, graph, gone), list(gone)

    def judged(self, model: nn.Module, answers: Path) -> dict[str, Any]:
        """Perplexities, and answers to the tasks, item by item."""
        count, tokenizer, model = parameter_count(model), self.full.tokenizer, model.to(torch.bfloat16)
        most = self.settings["perplexity_tokens"]
        texts = {key: perplexity(model, tokenizer, text, max_tokens=most) for key, text in self.texts.items()}
        results = zero_shot(model, tokenizer, self.tasks, cache=answers)
        tasks = {
            r.name: r.to_record() | {"right": _text(r.right), "right_norm": _text(r.right_norm)} for r in results
        }  # fmt: skip
        return {
            "parameters": count.total, "without_embeddings": count.without_embeddings,
            "perplexity": {key: found.value for key, found in texts.items()},
            "conditions": {key: str(found) for key, found in texts.items()},
            "tasks": tasks,
        }  # fmt: skip

    def _speeds(self, models: Sequence[nn.Module]) -> list[dict[str, Any]]:
        """Prefill and decode of models and of the full one by turns, in bfloat16."""
        full = load_model(self.spec).module.to(device_of(models[0]), torch.bfloat16)
        before, *found = by_turns([full, *models])
        rows = []
        for model, after in zip(models, found, strict=True):
            ratios = {what: statistics.median(getattr(b, what) / getattr(a, what)
                                              for a, b in zip(before, after, strict=True))
                      for what in ("prefill", "decode")}  # fmt: skip
            rows.append({"speed_up": ratios, "timed": str(after[0]), "cost": vars(inference_cost(model))})
        return rows


def widths(plan: PruningPlan) -> dict[str, int]:
    """By group that is cut, how many of its structures stay."""
    return {cut.name: len(cut.kept) for cut in plan.cuts}


def digest(settings: Mapping[str, Any]) -> str:
    """A short name for settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def options_of(config: ShearConfig) -> dict[str, Any]:
    """All options; what is infinite as text, which JSON has no number for."""
    return {name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in dataclasses.asdict(config).items()}  # fmt: skip


def _text(right: Sequence[bool] | None) -> str | None:
    """An item a sign, so that rows stay short."""
    return None if right is None else "".join(str(int(one)) for one in right)


if __name__ == "__main__":
    main()
