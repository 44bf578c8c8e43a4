"""The table of the LoRAShear paper on a real model: every rival in the same harness, with the same data and tokens.

    python -m benchmarks.lorashear_table [--data ../shared] [--methods ...] [--ratios ...] [--seeds ...] [--tokens N]

Methods, ratios and seeds stand in ``lorashear_table.yaml``. Trained on C4 (rows 0 to 1599 of the file) and Alpaca;
judged on WikiText-2, on the rest of C4, and on eight zero-shot tasks. Each run has a folder under ``--runs`` and goes
on where it was cut off; each finished row lies in ``results/lorashear_table_rows/`` and is not run again. Speeds are
those of the moment: ``--time`` measures them again, on a machine that does nothing else by then. It needs no run: a row
says what of the full model went, and a model of these sizes takes as long, whatever it has learnt.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
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
from benchmarks.texts import c4_parts
from shearfx.analysis import trace
from shearfx.attributes import settle
from shearfx.config import ShearConfig
from shearfx.construction import construct
from shearfx.depth import angular_distances, drop_layers, find_layers, nearest_run
from shearfx.evaluation import parameter_count, perplexity
from shearfx.footprint import peak, reset_peak
from shearfx.inference import device_of, logits_of
from shearfx.inference_cost import inference_cost
from shearfx.models import LoadedModel, load_model
from shearfx.pipeline import Shearing, Silent
from shearfx.pipeline.study import Study
from shearfx.pruning_plan import PruningPlan, of_cuts
from shearfx.run_directory import RunDirectory
from shearfx.speed import by_turns
from shearfx.zero_shot import kept, read_tasks, zero_shot

ROWS = record.RESULTS / "lorashear_table_rows"
SETTINGS = Path(__file__).with_suffix(".yaml")
DENSE, WHOLE = "dense", 0.0
COLUMNS = ("ratio", "method", "parameters", "without embeddings", "WikiText-2", "C4", "mean", "kept", "above chance",
           "prefill", "decode", "minutes", "peak, MiB", "seeds")  # fmt: skip


def main() -> None:
    """Run what is missing, then print the table."""
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
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows: Path = options.rows
    rows.mkdir(parents=True, exist_ok=True)
    settings["common"]["tokens"] = options.tokens
    asked = (
        (seed, WHOLE if settings["methods"][method].get("dense") else ratio, method)
        for seed, ratio, method in itertools.product(options.seeds, options.ratios, options.methods)
    )
    names = {what: row_file(*what, options.tokens) for what in asked}
    todo = [what for what, name in names.items() if options.time == (rows / name).exists()]
    dense = rows / f"{DENSE}.json"
    if len(todo) > 1 and not options.time:  # each in a process of its own, whose peak of memory is the row's
        for seed, ratio, method in todo:
            own = ["--seeds", str(seed), "--ratios", str(ratio or settings["ratios"][0]), "--methods", method]
            subprocess.run([sys.executable, "-m", "benchmarks.lorashear_table", *sys.argv[1:], *own], check=True)
    elif todo or not dense.exists():
        bench = Bench(options.data, options.runs, settings, options.model)
        if not dense.exists():
            found = {"model": Path(bench.spec).stem} | bench.judged(bench.full.module, options.runs / "dense.jsonl")
            dense.write_text(json.dumps(found, indent=1) + "\n")
        for done, (seed, ratio, method) in enumerate(todo, 1):
            place = rows / names[seed, ratio, method]
            if options.time:
                row = bench.timed(json.loads(place.read_text()))
            else:
                row = bench.row(seed, ratio, method)
            place.write_text(json.dumps(row, indent=1) + "\n")
            said = row["speed_up"] if options.time else row["perplexity"]
            print(f"[{done}/{len(todo)}] {ratio} {method}: {said}", file=sys.stderr, flush=True)
    report(settings, rows)


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
        of = {key: value[ratio] if isinstance(value, dict) else value
              for key, value in self.settings["methods"][method].items()}  # fmt: skip
        named = self.settings["common"] | of
        how, dense = of.pop("run_of_layers", None), of.pop("dense", False)
        common = self.settings["common"] | {"seed": seed} | ({} if dense else {"ratio": ratio})
        config = ShearConfig.of_mapping(common | self.sources | of)
        start, device = time.process_time(), torch.device("cpu" if not torch.cuda.is_available() else "cuda")
        reset_peak(device)
        folder = self.runs / row_file(seed, ratio, method, config.tokens or 0).removesuffix(".json")
        resumed = folder.exists()
        gone: list[str] = []
        cut: dict[str, int] = {}
        if how or dense:
            small, achieved, gone = self._trained(config, how, ratio, folder)
            small.save_pretrained(folder / "model")  # type: ignore[operator]
        else:
            run = RunDirectory(folder, self.spec, config, resume=resumed)
            run.finish("speed", run.records.get("speed", {}))  # measured below, beside the full model
            sheared = Shearing(load_model(self.spec), config, run, Silent()).run()
            small, achieved = sheared.model, sheared.plan.achieved
            gone, cut = run.records.get("layers", {}).get("paths", []), widths(sheared.plan)
        # of a run that went on in a second process neither is known
        spent, most = (None, None) if resumed else ((time.process_time() - start) / 60, peak(device))
        found = self.judged(small, folder / "answers.jsonl") | self._speed(small)
        return found | {"method": method, "ratio": ratio, "seed": seed, "tokens": config.tokens, "achieved": achieved,
                        "cut": {"layers": gone, "widths": cut}, "minutes": spent, "peak": most,
                        "torch": torch.__version__, "settings": named}  # fmt: skip

    def timed(self, row: dict[str, Any]) -> dict[str, Any]:
        """A finished row with speeds measured again; as it is where it does not say what was cut."""
        if "cut" not in row:
            return row
        small = self._of_size(row["cut"]["layers"], row["cut"]["widths"])
        assert parameter_count(small).total == row["parameters"]
        return row | self._speed(small.to(torch.bfloat16)) | {"timed_alone": True, "timed_on": record.hardware()}

    def _of_size(self, gone: Sequence[str], cut: Mapping[str, int]) -> nn.Module:
        """The full model without these layers, and with so many structures of these groups: the first ones."""
        full = load_model(self.spec)
        small = full.module
        if gone:
            small = drop_layers(small, trace(small, *full.args, **full.kwargs), gone)
        if cut:
            graph = trace(small, *full.args, **full.kwargs)
            plan = of_cuts(graph, {name: range(count) for name, count in cut.items()})
            small = construct(small, settle(small, graph, plan))
        return small

    def _trained(
        self, config: ShearConfig, how: str | None, ratio: float, folder: Path
    ) -> tuple[nn.Module, float, list[str]]:
        """The full model, or one without a run of layers, after the same training; and these layers."""
        full = load_model(self.spec)
        study = Study(full.module.eval(), full.tokenizer, config, Silent())
        study.read()
        small, gone = (full.module, []) if how is None else self._shorter(full, study, how, ratio)
        held = study.hold(full.module if gone else load_model(self.spec).module)
        reference = study.judge(held.work, "dense")["losses"]
        teacher = study.teacher_of(held.work) if config.distill > 0 else None
        before = parameter_count(full.module).total
        compact = study.hold(small)
        steps = study.steps(lambda: study.base(compact), teacher)
        model = study.recover(compact, reference, steps, teacher, state=folder / "state")
        return model, 1 - parameter_count(model).total / before, gone

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

    def _speed(self, small: nn.Module) -> dict[str, Any]:
        """Prefill and decode of both models by turns, in bfloat16."""
        full = load_model(self.spec).module.to(device_of(small), torch.bfloat16)
        before, after = by_turns([full, small], 5)
        ratios = {what: sorted(getattr(b, what) / getattr(a, what) for a, b in zip(before, after, strict=True))[2]
                  for what in ("prefill", "decode")}  # fmt: skip
        return {"speed_up": ratios, "timed": str(after[0]), "cost": vars(inference_cost(small))}


def widths(plan: PruningPlan) -> dict[str, int]:
    """By group that is cut, how many of its structures stay."""
    return {cut.name: len(cut.kept) for cut in plan.cuts}


def report(settings: dict[str, Any], folder: Path) -> None:
    """Means over seeds; beside the rows, and in ``results`` where they are kept there."""
    dense = json.loads((folder / f"{DENSE}.json").read_text())
    rows = [json.loads(path.read_text()) for path in sorted(folder.glob("*-*.json"))]
    rows = [row for row in rows if row["method"] in settings["methods"] and not stale(row, settings)]
    order = list(settings["methods"])
    groups: dict[tuple[float, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["ratio"], order.index(row["method"])), []).append(row)
    lines = [_line([dense], dense, settings, ratio=0, method="dense")]
    lines += [
        _line(same, dense, settings, ratio=ratio, method=order[at]) for (ratio, at), same in sorted(groups.items())
    ]
    beside = sum(not row.get("timed_alone") for row in rows)
    hurried = f" ({beside} rows were timed while others ran)" if beside else ""
    signal = ", ".join(f"{name} ({metric})" for name, metric in settings["signal"].items())
    tasks = []
    for row in rows:
        found = {name: f"{one['acc']:.3f} ±{one['acc_stderr']:.3f}" for name, one in row["tasks"].items()}
        tasks.append({"ratio": row["ratio"], "method": row["method"], "seed": row["seed"]} | found)
    text = (
        f"{dense['model']}; {settings['common']['tokens']} training tokens for every "
        f"method, at {settings['common']['batch_size']} windows of {settings['common']['sequence_length']} a step. "
        f"Of the dense model, {'; '.join(f'{text}: {said}' for text, said in dense['conditions'].items())}. "
        f"`mean`: over {signal}, first {settings['limit']} items of each. `kept`, `above chance`: of the dense model's "
        "mean, with the middle 95% of a paired bootstrap over items. Speed-ups in bfloat16, medians of 5 rounds by "
        f"turns{hurried}. `minutes`: processor time of the whole run (with one thread, the wall clock of an idle "
        "core).\n\n"
    )
    text += "".join(f"- {note}\n" for note in settings["notes"]) + "\n"
    text += record.table(lines, COLUMNS) + "\n\nAccuracy and standard error, all tasks:\n\n"
    text += record.table(tasks, ("ratio", "method", "seed", *dense["tasks"]))
    if folder == ROWS:
        record.keep("lorashear_table", "LoRAShear and its rivals", text, lines)
    else:
        print(text)


def stale(row: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Whether a row was made by other settings than those of now; of the first rows the tokens alone are known."""
    asked = settings["common"] | {
        key: value[row["ratio"]] if isinstance(value, dict) else value
        for key, value in settings["methods"][row["method"]].items()
    }
    return bool(row["tokens"] != asked["tokens"] or row.get("settings", asked) != asked)


def _line(
    same: Sequence[dict[str, Any]], dense: dict[str, Any], settings: dict[str, Any], **named: Any
) -> dict[str, Any]:
    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    def right(row: dict[str, Any]) -> dict[str, list[bool]]:
        return {name: [sign == "1" for sign in row["tasks"][name]["right_norm" if metric == "acc_norm" else "right"]]
                for name, metric in settings["signal"].items()}  # fmt: skip

    chance = {name: dense["tasks"][name]["chance"] for name in settings["signal"]}
    scores = [mean([mean([float(v) for v in of]) for of in right(row).values()]) for row in same]
    found = [kept(right(dense), right(row), chance) for row in same]

    def share(values: Sequence[float], intervals: Sequence[tuple[float, float]]) -> str:
        low, high = (mean([interval[end] for interval in intervals]) for end in (0, 1))
        return f"{mean(values):.1%} ({low:.0%} to {high:.0%})"

    line: dict[str, Any] = named | {
        "parameters": f"{same[0]['parameters']:,}", "without embeddings": f"{same[0]['without_embeddings']:,}",
        **{key: f"{mean([row['perplexity'][key] for row in same]):.2f}" for key in ("WikiText-2", "C4")},
        "mean": f"{mean(scores):.3f}", "kept": share([k.raw for k in found], [k.raw_interval for k in found]),
        "above chance": share([k.above_chance for k in found], [k.above_chance_interval for k in found]),
        "seeds": len(same),
    }  # fmt: skip
    if "speed_up" in same[0]:
        line |= {what: f"{mean([row['speed_up'][what] for row in same]):.2f}" for what in ("prefill", "decode")}
        minutes, peaks = ([row[what] for row in same if row[what]] for what in ("minutes", "peak"))
        line |= {"minutes": f"{mean(minutes):.0f}" if minutes else ""}
        line |= {"peak, MiB": max(peaks) >> 20 if peaks else ""}
    return line


def _text(right: Sequence[bool] | None) -> str | None:
    """An item a sign, so that rows stay short."""
    return None if right is None else "".join(str(int(one)) for one in right)


if __name__ == "__main__":
    main()
