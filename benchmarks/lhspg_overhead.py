"""What LHSPG adds to the time of a LoRA AdamW step, and ``shear`` to the memory of plain LoRA fine-tuning.

    python -m benchmarks.lhspg_overhead [--data ../shared] [--models stories260k smollm2] [--parts time memory]
                                        [--repeats 3] [--optimisers ...] [--period-length N] [--periods 3] ...

Time: one process, the same batches of 4x256 tokens, PEFT all-linear rank 16, plain AdamW and LHSPG by turns; whole
steps from the forward pass on, in medians of LHSPG's over the plain one beside it. A period is a step that scores and
picks, many that fade and one that ends it; ``amortised`` is one of ``--period-length`` steps (default: that of
:class:`ShearConfig`'s budget, half of it LHSPG's). ``CPU`` is the process's own time, which others disturb less.

Memory: one process each, from its start to its end, data read and saved alike: peak RSS, or on a GPU
``torch.cuda.max_memory_allocated``. Distillation is off. Rows are kept in ``results/lhspg_overhead_rows.json``.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import record

ROWS = record.RESULTS / "lhspg_overhead_rows.json"
MODELS = ("stories260k", "smollm2")
LHSPG_SHARE = 0.5
"""Of the training steps, where LHSPG is asked for; what the recipe of the paper has."""
TIMED: dict[str, dict[str, Any]] = {
    "LHSPG": {"half_space_eps": float("-inf")},
    "LHSPG, half-space test": {"half_space_eps": 0.0},
}
SHEARED: dict[str, dict[str, Any]] = {"shear, at once": {}, "shear, LHSPG": {"prune_share": LHSPG_SHARE}}
PLAIN = "plain"
TIME = ("model", "optimiser", "clock", "plain", "collecting", "first", "fading", "last", "amortised", "of repeats",
        "load")  # fmt: skip
MEMORY = ("model", "process", "peak, MiB", "over plain", "of repeats")


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared"))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--parts", nargs="+", choices=("time", "memory"), default=["time", "memory"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--optimisers", nargs="+", choices=list(TIMED), default=list(TIMED))
    parser.add_argument("--period-length", type=int, help="steps that a pick is amortised over")
    parser.add_argument("--periods", type=int, default=3, help="periods that are timed")
    parser.add_argument("--length", type=int, default=6, help="steps of each period that is timed, at least 3")
    parser.add_argument("--steps", type=int, default=8, help="training steps of a process whose memory is measured")
    parser.add_argument("--process", nargs=3, metavar=("MODEL", "SOURCE", "WHAT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.process:
        what = options.process[2]
        found = timing(options) if what == "time" else memory(what, options)
        print(json.dumps(found))
        return
    rows: dict[str, dict[str, Any]] = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    for repeat in range(options.repeats):
        for model in options.models:
            asked = ["time"] if "time" in options.parts else []
            asked += [PLAIN, *SHEARED] if "memory" in options.parts else []
            for what in asked:
                if (key := f"{model} | {what} | {repeat}") not in rows:
                    rows[key] = {"model": model, "what": what} | process(model, what, sys.argv[1:])
                    print(f"{key}: done", file=sys.stderr, flush=True)
                    ROWS.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
    report(rows, options.period_length or default_length())


def process(model: str, what: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Measure in a process of its own."""
    own = ["--process", model, source_of(model), what]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.lhspg_overhead", *arguments, *own]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row | {"load": os.getloadavg()}


def default_length() -> int:
    """Steps of a period in a run with the budget that runs have by default."""
    from shearfx.config import ShearConfig

    config = ShearConfig()
    assert config.tokens is not None
    steps = LHSPG_SHARE * (config.tokens // (config.batch_size * config.accumulate * config.sequence_length))
    return int(steps - config.warmup * steps) // config.periods


def source_of(model: str) -> str:
    """Where the model lies; relative to ``--data`` where it is one of the project's own."""
    from shearfx.demo import smollm2_path

    return str(smollm2_path()) if model == "smollm2" else f"models/{model}"


def configured(options: argparse.Namespace, **more: Any) -> tuple[str, Any]:
    """The model's source and the configuration that all processes share."""
    from shearfx.config import ShearConfig

    model, source, _ = options.process
    text = "c4_validation_2k.parquet" if model == "smollm2" else "tinystories_train.jsonl"
    source_of = str(options.data / "data" / "text" / text)
    shared = {"pretrain": (source_of,), "max_tokens": 100_000, "distill": 0.0, "lr": 1e-3}
    return str(options.data / source), ShearConfig.of_mapping(shared | more)  # an absolute source stays what it is


def windows(config: Any, tokenizer: Any) -> Any:
    """The text to learn from, packed."""
    from shearfx.data import open_source, pack

    source = open_source(config.pretrain[0], kind="pretrain")
    limits = {"max_tokens": config.max_tokens, "min_tokens": config.min_tokens}
    return pack(source, tokenizer, sequence_length=config.sequence_length, **limits)


def with_adapters(model: Any, config: Any) -> tuple[Any, Any]:
    """The model as PEFT wraps it, and plain AdamW of its adapters."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(config.seed)
    settings = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    wrapped = get_peft_model(model, settings).train()
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    return wrapped, torch.optim.AdamW(trained, lr=config.lr, weight_decay=config.weight_decay)


def training(model: Any, optimizer: Any, text: Any, config: Any, steps: int) -> Iterator[Any]:
    """Steps, each taken when it is asked for."""
    from shearfx.training import Loop, Mixture
    from shearfx.training.losses import causal_loss

    batches = Mixture([text], config.batch_size, seed=config.seed)
    return Loop(model, optimizer, batches, lambda m, b: causal_loss(m, b, None, 0.0), steps).run()


# -- time ----------------------------------------------------------------------------------------------


def timing(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of every step by optimiser, kind of step and clock; all take their steps by turns."""
    import torch

    from shearfx.analysis import trace
    from shearfx.models import load_model
    from shearfx.optim import LHSPG
    from shearfx.optim.choosing import selected
    from shearfx.pipeline.study import device_for, dtype_of
    from shearfx.selection import Selection

    spec, config = configured(options)
    loaded = load_model(spec)
    graph = trace(loaded.module, *loaded.args, **loaded.kwargs)
    tied = selected(graph, loaded.module, Selection(kinds=config.kinds))
    device = device_for(config.device)
    dtype = dtype_of(config.dtype, loaded.module, device)
    work = loaded.module.to(device, dtype)
    text = windows(config, loaded.tokenizer)
    schedule = {"warmup": options.length, "periods": options.periods, "period_length": options.length}

    def loop_of(name: str) -> Any:
        wrapped, optimizer = with_adapters(copy.deepcopy(work), config)
        if name != PLAIN:
            optimizer = LHSPG(
                graph, wrapped, target=config.ratio, saliency=config.saliency, merge="never", lr=config.lr, tied=tied,
                weight_decay=config.weight_decay, floor=config.floor, **schedule, **TIMED[name],
            )  # fmt: skip
        return training(wrapped, optimizer, text, config, options.length * (1 + options.periods))

    loops = {name: loop_of(name) for name in (PLAIN, *options.optimisers)}
    names = list(loops)
    times: dict[str, dict[str, list[float]]] = {name: {"wall": [], "CPU": []} for name in names}
    kinds = []
    for step in range(options.length * (1 + options.periods)):
        period, within = divmod(step, options.length)
        kinds.append("collecting" if not period else {0: "first", options.length - 1: "last"}.get(within, "fading"))
        for name in names[step % len(names) :] + names[: step % len(names)]:
            start, own = time.perf_counter(), time.process_time()
            next(loops[name])
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[name]["wall"].append(time.perf_counter() - start)
            times[name]["CPU"].append(time.process_time() - own)
    about = {"threads": torch.get_num_threads(), "dtype": str(dtype), "device": device.type}
    return about | {"times": times, "kinds": kinds}


def shares(row: dict[str, Any], name: str, clock: str, length: int) -> dict[str, float]:
    """Medians of a step over the plain one beside it; a period of so many steps over as many plain ones."""
    plain, ours = row["times"][PLAIN][clock], row["times"][name][clock]
    ratios: dict[str, list[float]] = {}
    for kind, one, other in list(zip(row["kinds"], ours, plain, strict=True))[1:]:  # the first of all warms up
        ratios.setdefault(kind, []).append(one / other)
    found = {kind: statistics.median(values) for kind, values in ratios.items()}
    whole = found["first"] + found["last"] + (length - 2) * found["fading"]
    return found | {"plain": statistics.median(plain[1:]), "amortised": whole / length}


# -- memory --------------------------------------------------------------------------------------------


def memory(what: str, options: argparse.Namespace) -> dict[str, Any]:
    """The peak of this process's memory after it has done one thing, in MiB."""
    import torch

    from shearfx.config import ShearConfig
    from shearfx.pipeline.study import device_for

    tokens = options.steps * ShearConfig.batch_size * ShearConfig.sequence_length
    spec, config = configured(options, tokens=tokens, **SHEARED.get(what, {}))
    if what == PLAIN:
        fine_tune(spec, config, options.steps)
    else:
        from shearfx.one_call import shear

        with tempfile.TemporaryDirectory() as folder:
            shear(spec, out=Path(folder) / "run", config=config)
    on_gpu = device_for(config.device).type == "cuda"
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else peak_rss()
    return {"peak": peak, "device": "cuda" if on_gpu else "cpu", "steps": options.steps}


def fine_tune(spec: str, config: Any, steps: int) -> None:
    """What shear is compared with: load in the dtype of training, read, train adapters by AdamW, save them."""
    import torch

    from shearfx.models import load_model
    from shearfx.pipeline.study import device_for, dtype_of

    device = device_for(config.device)
    dtype = dtype_of(config.dtype, torch.nn.Linear(1, 1), device)
    loaded = load_model(spec, dtype=dtype, device=str(device))
    wrapped, optimizer = with_adapters(loaded.module, config)
    for _ in training(wrapped, optimizer, windows(config, loaded.tokenizer), config, steps):
        pass
    with tempfile.TemporaryDirectory() as folder:
        wrapped.save_pretrained(folder)


def peak_rss() -> float:
    """Of this process in MiB, and not of the one that started it, as ``getrusage`` has it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


# -- tables --------------------------------------------------------------------------------------------


def report(rows: dict[str, dict[str, Any]], length: int) -> None:
    """Medians over repeats."""
    timed, measured = [], []
    for model in MODELS:
        same = [r for r in rows.values() if r["model"] == model and r["what"] == "time"]
        for name, clock in itertools.product(TIMED, ("wall", "CPU")):
            if found := [shares(row, name, clock, length) for row in same if name in row["times"]]:
                middle = {kind: statistics.median(one[kind] for one in found) for kind in found[0]}
                repeats = ", ".join(f"{one['amortised']:.3g}" for one in found)
                timed.append(
                    {"model": f"{model}, {same[0]['dtype'].removeprefix('torch.')}, {same[0]['device']}",
                     "optimiser": name, "clock": clock, **middle, "of repeats": repeats,
                     "load": ", ".join(f"{row['load'][2]:.1f}" for row in same)}
                )  # fmt: skip
        plain = [r["peak"] for r in rows.values() if r["model"] == model and r["what"] == PLAIN]
        for what in (PLAIN, *SHEARED):
            same = [r for r in rows.values() if r["model"] == model and r["what"] == what]
            if same and plain:
                peak = statistics.median(row["peak"] for row in same)
                measured.append(
                    {"model": model, "process": "LoRA fine-tuning" if what == PLAIN else what,
                     "peak, MiB": f"{peak:,.0f}", "over plain": peak / statistics.median(plain),
                     "of repeats": ", ".join(f"{row['peak']:,.0f}" for row in same)}
                )  # fmt: skip
    text = (
        "## Time of a step\n\n"
        "`plain`: the median of LoRA AdamW steps in seconds. The others are medians of LHSPG's steps over the "
        "plain one beside each: while only collecting, the first of a period, fading, the last of a period. 4x256 "
        f"tokens, PEFT all-linear rank 16. `amortised`: a period of {length} steps. `load`: of 15 minutes.\n\n"
        + record.table(timed, TIME)
        + "\n\n## Peak memory\n\nWhole processes, distillation off, 4x256 tokens; plain fine-tuning "
        "has shearfx's thrifty loss, too.\n\n" + record.table(measured, MEMORY)
    )
    record.keep("lhspg_overhead", "What LHSPG costs", text, list(rows.values()))


if __name__ == "__main__":
    main()
