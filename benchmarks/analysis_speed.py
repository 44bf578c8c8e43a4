"""Analysis against tracing, depth against depth, construction against copying.

    python -m benchmarks.analysis_speed [--layers 32 80] [--quick]

Everything after the export is compared with a static ``torch.export`` of the same model in the same process, each
in a process of its own for the peak of memory. Ratios are of one run; medians of several repetitions of the passes.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import record

SHAPES: dict[str, dict[str, Any]] = {
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8},
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8},
}
COLUMNS = ("shape", "layers", "passes / static export", "trace / static export", "peak GB", "groups")
BUILT = ("bytes", "speed against plain copy", "extra bytes of consume=True / largest parameter", "achieved")
THEIRS = ("layers", "Torch-Pruning / passes")
LIMIT = 300.0
"""Seconds that Torch-Pruning may take."""


def main() -> None:
    """Run all parts and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if options.part:
        name, layers = options.part.split(":")
        if name == "construct":
            part = construction(int(layers))
        elif name == "consume":
            part = consuming(int(layers))
        elif name == "depth":
            part = depth(32, int(layers), options.repeats)
        elif name == "torch_pruning":
            part = torch_pruning(int(layers))
        else:
            part = analysis(name, int(layers), options.repeats)
        print(json.dumps(part))
        return
    rows = [_process(part) for part in ("8B:32", "8B:80", "70B:80")]
    built = _process("construct:16") | _process("consume:16")
    deep = _process("depth:80")
    text = record.table(rows, COLUMNS)
    ratio = f"The passes over 80 layers cost {deep['ratio']:.2f} times those over 32"
    text += f"\n\n{ratio} (8B shapes, one process, by turns, median).\n\n"
    text += record.table([built], BUILT)
    theirs = [_process(f"torch_pruning:{layers}") for layers in (1, 2, 4)] if find_spec("torch_pruning") else []
    text += "\n\nTheir dependency graph against our passes, 1B shapes:\n\n" + record.table(theirs, THEIRS)
    print(text)
    record.keep(
        "analysis_speed",
        "Speed of analysis and construction",
        text,
        {"analysis": rows, "depth": deep, "construction": built, "torch_pruning": theirs},
    )


def _process(part: str) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.analysis_speed", "--part", part],
            stdout=subprocess.PIPE, text=True, check=True, timeout=LIMIT if part.startswith("torch_pruning") else None,
        )  # fmt: skip
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        if not part.startswith("torch_pruning"):
            raise
        ended = f"not finished in {LIMIT:.0f} s" if isinstance(error, subprocess.TimeoutExpired) else "failed"
        return {"layers": int(part.partition(":")[2]), "Torch-Pruning / passes": ended}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def _llama(shape: str, layers: int) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**SHAPES[shape], num_hidden_layers=layers, vocab_size=128256 if shape != "1B" else 32000)
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(config)
    return model.to(torch.bfloat16).eval()


def analysis(shape: str, layers: int, repeats: int) -> dict[str, Any]:
    """A Llama on meta: static export, then trace, then the passes again for their median."""
    import torch

    import shearfx
    from shearfx.graph import Graph
    from shearfx.passes import ANALYSIS
    from shearfx.passes import run as run_passes

    model = _llama(shape, layers)
    tokens = torch.zeros(2, 8, dtype=torch.long, device="meta")
    start = time.perf_counter()
    with torch.no_grad():
        torch.export.export(model, (), {"input_ids": tokens, "use_cache": False}, strict=False)
    static = time.perf_counter() - start
    start = time.perf_counter()
    graph = shearfx.trace(model, input_ids=tokens)
    traced = time.perf_counter() - start
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run_passes(Graph(graph.traced), ANALYSIS)
        times.append(time.perf_counter() - start)
    passes = statistics.median(times)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "shape": shape, "layers": layers, "passes / static export": passes / static,
        "trace / static export": traced / static, "peak GB": peak, "groups": len(graph.groups),
    }  # fmt: skip


def depth(few: int, many: int, repeats: int) -> dict[str, Any]:
    """The passes over few and many layers, by turns: what else the machine does meets both alike."""
    import gc

    import torch

    from shearfx.graph import Graph
    from shearfx.passes import ANALYSIS
    from shearfx.passes import run as run_passes
    from shearfx.tracing import trace_call

    tokens = torch.zeros(2, 8, dtype=torch.long, device="meta")
    traced = {layers: trace_call(_llama("8B", layers), (), {"input_ids": tokens}) for layers in (few, many)}
    times: dict[int, list[float]] = {few: [], many: []}
    for _ in range(2 * repeats + 1):
        for layers, found in times.items():
            graph = Graph(traced[layers])
            gc.collect()
            start = time.perf_counter()
            run_passes(graph, ANALYSIS)
            found.append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(times[few], times[many], strict=True)]
    return {"few": few, "many": many, "ratio": statistics.median(ratios), "ratios": ratios}


def torch_pruning(layers: int) -> dict[str, Any]:
    """Torch-Pruning's dependency graph of a 1B-shaped Llama of few layers, against the passes on the same model."""
    import torch
    import torch_pruning as tp

    from shearfx.graph import Graph
    from shearfx.passes import ANALYSIS
    from shearfx.passes import run as run_passes
    from shearfx.tracing import trace_call

    model = _llama("1B", layers).to_empty(device="cpu")
    inputs = {"input_ids": torch.zeros(2, 8, dtype=torch.long), "use_cache": False}
    traced = trace_call(model, (), inputs)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        run_passes(Graph(traced), ANALYSIS)
        times.append(time.perf_counter() - start)
    start = time.perf_counter()
    graph = tp.DependencyGraph().build_dependency(model, inputs)
    groups = sum(1 for _ in graph.get_all_groups(root_module_types=[torch.nn.Linear]))
    theirs = time.perf_counter() - start
    return {"layers": layers, "Torch-Pruning / passes": theirs / statistics.median(times), "groups": groups}


def construction(layers: int) -> dict[str, Any]:
    """A whole 1B-class Llama in bf16, cut by 20%, against copying it."""
    import copy

    import shearfx

    model, plan = _cut_llama(layers)
    copies, cuts = [], []
    for _ in range(3):
        start = time.perf_counter()
        copied = copy.deepcopy(model)
        copies.append(time.perf_counter() - start)
        del copied
        start = time.perf_counter()
        small = shearfx.construct(model, plan)
        cuts.append(time.perf_counter() - start)
        del small
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    copy_time, cut_time = statistics.median(copies), statistics.median(cuts)
    return {
        "bytes": size, "copy s": copy_time, "construct s": cut_time, "speed against plain copy": copy_time / cut_time,
        "achieved": plan.achieved,
    }  # fmt: skip


def consuming(layers: int) -> dict[str, Any]:
    """How much memory cutting a model up takes beyond the model itself."""
    import shearfx

    model, plan = _cut_llama(layers)
    largest = max(p.numel() * p.element_size() for p in model.parameters())
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    before = _status("VmHWM")
    shearfx.construct(model, plan, consume=True)
    return {"extra bytes of consume=True / largest parameter": (_status("VmHWM") - before) / largest}


def _status(field: str) -> int:
    """A field of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def _cut_llama(layers: int) -> tuple[Any, Any]:
    """A 1B-shaped Llama in bf16 and a plan that takes a fifth of it, attributes solved for."""
    import torch

    import shearfx

    model = _llama("1B", layers).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(0.01)
    graph = shearfx.trace(model, input_ids=torch.zeros(2, 8, dtype=torch.long))
    return model, shearfx.plan(graph, ratio=0.2, saliency="random", model=model)


if __name__ == "__main__":
    main()
