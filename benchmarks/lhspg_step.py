"""LHSPG's kernels on layers of Llama's shapes: torch's reference, the kernels, and what memory allows.

    python -m benchmarks.lhspg_step [--models 7B 13B 70B] [--ranks 16 64] [--repeats 20] [--parts layers training]

Layers: as many as fit in a share of the card's memory, bfloat16, adapters in float32 on all seven linear layers. Rows
of q, k, v, gate and up and columns of o and down are scored, which is what cutting heads and feed-forward neurons looks
at; 4% of them fade (a fifth of 20%). ``floor`` is the time in which the bytes that have to move would move at the
measured bandwidth of a copy: weights and adapters once for scoring; for the step the fading slices once for the
half-space test, and once in and once out for the trial iterate; for AdamW parameters and two moments in and out and
gradients in.

Training: whole steps of a 1B-class Llama with random weights, LHSPG beside LoRA with AdamW(fused=True).

Scoring is timed as a saliency asks for it, with planning and the copy of all sums to the CPU; its bare launches stand
beside, and the share of the copy is theirs. Times are medians of CUDA events after a warm-up; none without a card.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks import record
from shearfx.cuda import choosing
from shearfx.cuda.launching import Launcher
from shearfx.cuda.statistics import Statistics
from shearfx.cuda.updating import Updating
from shearfx.low_rank import LowRank
from shearfx.optim.fading import Rule
from shearfx.optim.kernel_carrier import KernelWeightCarrier
from shearfx.optim.redundant_slices import Slices
from shearfx.optim.weight_carrier import WeightCarrier
from shearfx.saliency.along import Place, along_all


@dataclass(frozen=True)
class Shape:
    """Of a Llama's layer."""

    width: int
    keys: int
    inner: int
    layers: int

    def linears(self) -> list[tuple[int, int, int]]:
        """Outputs, inputs, and the dim whose slices structures own."""
        width, keys, inner = self.width, self.keys, self.inner
        return [(width, width, 0), (keys, width, 0), (keys, width, 0), (width, width, 1),
                (inner, width, 0), (inner, width, 0), (width, inner, 1)]  # fmt: skip


MODELS = {
    "7B": Shape(4096, 4096, 11008, 32),
    "13B": Shape(5120, 5120, 13824, 40),
    "70B": Shape(8192, 1024, 28672, 80),
}
FADING = 0.04
COLUMNS = ("model", "layers", "rank", "what", "torch, ms", "kernels, ms", "launches, ms", "AdamW(fused), ms",
           "floor, ms", "share of copy", "over torch", "extra memory")  # fmt: skip
DEVICE = "cuda"
UNMEASURED = "not yet measured"


def main() -> None:
    """Measure what there is a card for, then print and keep one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--ranks", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--memory", type=float, default=0.6, help="share of the free memory that weights may take")
    parser.add_argument("--parts", nargs="+", choices=("layers", "training"), default=["layers", "training"])
    options = parser.parse_args()
    title = "LHSPG's statistics, step and update: torch, CUDA kernels, and the speed of memory"
    if not torch.cuda.is_available():
        print("No CUDA card: nothing was measured.")
        kept = record.RESULTS / "lhspg_step.json"
        if kept.exists() and json.loads(kept.read_text())["data"]:
            print(f"What was measured before stays in {kept}.")
            return
        text = f"**{UNMEASURED.capitalize()}**: there was no CUDA card. Run the command above on one.\n\n"
        record.keep("lhspg_step", title, text + record.table(list(unmeasured(options)), COLUMNS), [])
        return
    launcher = choosing.launcher(torch.device("cuda", torch.cuda.current_device()), "cuda")
    assert launcher is not None
    copied = copy_bandwidth(options.repeats)
    rows: list[dict[str, Any]] = []
    for name in options.models if "layers" in options.parts else ():
        for rank in options.ranks:
            rows += of_layers(name, rank, launcher, copied, options)
    if "training" in options.parts:
        rows.append(of_training(options.repeats))
    about = (
        f"{torch.cuda.get_device_name()}, driver {driver()}, CUDA {torch.version.cuda}; "
        f"copy bandwidth {copied / 1e9:.0f} GB/s, read and written bytes together.\n\n"
    )
    print(text := about + record.table(rows, COLUMNS))
    record.keep("lhspg_step", title, text, {"copy_bytes_per_second": copied, "driver": driver(), "rows": rows})


def unmeasured(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows that there will be."""
    for name in options.models:
        for rank in options.ranks:
            for what in ("scoring", "step", "AdamW"):
                row: dict[str, Any] = dict.fromkeys(COLUMNS, UNMEASURED)
                yield row | {"model": name, "rank": rank, "what": what}


def driver() -> str:
    """The driver's version, as cuda.core reads it."""
    from cuda.bindings import driver as bindings

    error, version = bindings.cuDriverGetVersion()
    return f"{version // 1000}.{version % 1000 // 10}" if not int(error) else "unknown"


# -- time ----------------------------------------------------------------------------------------------


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """The median over repeats, between events on the stream."""
    for _ in range(3):
        work()
    found = []
    for _ in range(repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        stop.record()
        stop.synchronize()
        found.append(float(start.elapsed_time(stop)))
    return statistics.median(found)


def copy_bandwidth(repeats: int) -> float:
    """Bytes per second, read and written ones together, of copying a gibibyte on the card."""
    source = torch.empty(2**30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    seconds = milliseconds(lambda: target.copy_(source), repeats) / 1e3
    return float(2 * source.numel() / seconds)


def extra_memory(work: Callable[[], object]) -> int:
    """Bytes that work takes at its peak beside what is there."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


# -- layers --------------------------------------------------------------------------------------------


def made(shape: Shape, rank: int, share: float) -> tuple[list[tuple[LowRank, int]], int]:
    """As many layers as fit: adapters with the dim that is looked at, and how many layers."""
    weights = sum(out * inp for out, inp, _ in shape.linears())
    thin = rank * sum(out + inp for out, inp, _ in shape.linears())
    free, _ = torch.cuda.mem_get_info()
    # a second set of moments: the reference's and the kernels' updates are timed one after the other
    layers = min(shape.layers, int(share * free // (2 * weights + 4 * 6 * thin)))
    found = []
    for _ in range(max(1, layers)):
        for out, inp, dim in shape.linears():
            base = nn.Module()
            base.weight = nn.Parameter(torch.randn(out, inp, device=DEVICE, dtype=torch.bfloat16), requires_grad=False)
            a, b = (nn.Parameter(torch.randn(*size, device=DEVICE) * 1e-2) for size in ((rank, inp), (out, rank)))
            found.append((LowRank("layer", base, a, b, 2.0, False), dim))
    return found, max(1, layers)


def of_layers(
    name: str, rank: int, launcher: Launcher, copied: float, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Scoring, the step, and the update of one model's layers at one rank."""
    gc.collect()
    torch.cuda.empty_cache()
    adapters, layers = made(MODELS[name], rank, options.memory)
    thin = sum(one.a.numel() + one.b.numel() for one, _ in adapters)
    shared = {"model": name, "layers": layers, "rank": rank}
    return [
        shared | {"what": "scoring"} | of_scoring(adapters, launcher, thin, copied, options.repeats),
        shared | {"what": "step"} | of_step(adapters, copied, options.repeats),
        shared | {"what": "AdamW"} | of_update(adapters, launcher, thin, copied, options.repeats),
    ]


def of_scoring(
    adapters: list[tuple[LowRank, int]], launcher: Launcher, thin: int, copied: float, repeats: int
) -> dict[str, Any]:
    """The sums of all slices as a saliency gets them, and the launches without planning and copies."""
    weights = sum(2 * one.weight.numel() for one, _ in adapters)
    places = {(str(i), dim): Place(one.base, "weight", dim, one, None) for i, (one, dim) in enumerate(adapters)}
    reference, kernels = (partial(along_all, places, name) for name in ("torch", "cuda"))
    found: dict[str, Any] = {"extra memory": f"{extra_memory(kernels) / weights:.2%}"}
    found |= compared(reference, kernels, weights + 4 * thin, copied, repeats)
    bare = milliseconds(Statistics(launcher, [place.lines for place in places.values()]).run, repeats)
    return found | {"launches, ms": bare, "share of copy": f"{found['floor, ms'] / bare:.0%}"}


def compared(
    reference: Callable[[], object], kernels: Callable[[], object], moved: float, copied: float, repeats: int
) -> dict[str, Any]:
    """Both beside the time in which the bytes would be copied."""
    slow, fast, floor = milliseconds(reference, repeats), milliseconds(kernels, repeats), moved / copied * 1e3
    return {"torch, ms": slow, "kernels, ms": fast, "floor, ms": floor,
            "share of copy": f"{floor / fast:.0%}", "over torch": slow / fast}  # fmt: skip


def of_step(adapters: list[tuple[LowRank, int]], copied: float, repeats: int) -> dict[str, Any]:
    """A step with its half-space test; both carriers write to the same slices, whose values don't matter for time."""
    slices, touched, at = [], 0.0, 0
    for number, (one, dim) in enumerate(adapters):
        size = one.weight.shape[dim]
        index = torch.randperm(size)[: max(1, int(FADING * size))].sort().values
        slot = torch.arange(at, at + len(index))
        at += len(index)
        slices.append(Slices("all", f"weight {number}", one.base, "weight", dim, index, slot, one))
        touched += 2 * len(index) * (one.weight.numel() // size)
    rule = Rule(epsilon=-1e9)  # looks, and never fires
    fading = {"all": torch.arange(at)}
    carriers = WeightCarrier(lambda _: slices, rule), KernelWeightCarrier(lambda _: slices, rule, "cuda")
    for carrier in carriers:
        carrier.start(fading)
    slow, fast = (partial(carrier.fade, 1000) for carrier in carriers)
    return compared(slow, fast, 3 * touched, copied, repeats)


def of_update(
    adapters: list[tuple[LowRank, int]], launcher: Launcher, thin: int, copied: float, repeats: int
) -> dict[str, Any]:
    """AdamW over all factors."""
    params = [factor for one, _ in adapters for factor in (one.a, one.b)]
    for p in params:
        p.grad = torch.randn_like(p)
    plain, fused = torch.optim.AdamW(params, lr=1e-9), torch.optim.AdamW(params, lr=1e-9, fused=True)
    own = torch.optim.AdamW(params, lr=1e-9)
    updating = Updating(launcher, "adamw")
    found = {"AdamW(fused), ms": milliseconds(lambda: fused.step(), repeats)}
    fused.state.clear()
    found |= compared(plain.step, lambda: updating.step(own.param_groups, own.state), 4 * 7 * thin, copied, repeats)
    return found


# -- a whole step --------------------------------------------------------------------------------------


def of_training(repeats: int) -> dict[str, Any]:
    """Forward, backward and step of a 1B-class Llama, 4 x 256 tokens: LHSPG while structures fade, and plain LoRA."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    import shearfx
    from shearfx.optim import LHSPG

    gc.collect()
    torch.cuda.empty_cache()
    config = LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=32000, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    base: Any = LlamaForCausalLM(config)
    base = base.bfloat16().to(DEVICE)
    ids = torch.randint(0, 32000, (4, 256), device=DEVICE)
    graph = shearfx.trace(base, input_ids=ids)
    settings = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = get_peft_model(base, settings).train()
    trained = [p for p in model.parameters() if p.requires_grad]

    def step(optimizer: Any) -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    plain = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    row: dict[str, Any] = {"model": "1B, a training step", "layers": 16, "rank": 16, "what": "LHSPG"}
    row["AdamW(fused), ms"] = milliseconds(lambda: step(plain), repeats)
    for kernels, column in (("torch", "torch, ms"), ("cuda", "kernels, ms")):
        lhspg = LHSPG(graph, model, target=0.2, warmup=1, periods=1, period_length=10**6, merge="never", lr=1e-4,
                      kernels=kernels)  # type: ignore[arg-type]  # fmt: skip
        row[column] = milliseconds(partial(step, lhspg), repeats)
        lhspg.detach()
    row["over torch"] = row["torch, ms"] / row["kernels, ms"]
    row["share of copy"] = f"{row['kernels, ms'] / row['AdamW(fused), ms'] - 1:+.1%} over AdamW(fused)"
    return row


if __name__ == "__main__":
    main()
