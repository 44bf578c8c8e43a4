"""Folders of runs as the pipeline writes them, without a model: whole ones to be damaged by tests."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import shearfx
from shearfx.config import ShearConfig

LAYERS, FFN, HEADS = 4, 64, 4
SOURCES = ("stories", "wiki")


def write_run(
    folder: Path,
    *,
    sources: tuple[str, ...] = SOURCES,
    path: str = "model.layers",
    model: str = "/models/tiny-llama",
    progressive: bool = True,
    finished: bool = True,
) -> Path:
    """A run of a model of four layers, with knowledge analysis, LHSPG and recovery in two stages."""
    folder.mkdir(parents=True, exist_ok=True)
    config = ShearConfig(gamma=0.2, prune_share=0.5 if progressive else 0.0, pretrain=sources, periods=3)
    texts = {
        "config.yaml": f"# model: {json.dumps(model)}\n{config.to_yaml()}",
        "environment.json": json.dumps({"shearfx": shearfx.__version__, "torch": "2.13.0", "gpu": None}),
        "stages.json": json.dumps(_records(sources, path, finished), indent=1),
        "plan.json": json.dumps({"format": 1, "asked": 0.3, "achieved": 0.2998, "cuts": _cuts(path)}, indent=1),
        "groups.json": json.dumps(_account(path), indent=1),
        "knowledge.json": json.dumps(_knowledge(path), indent=1),
        "metrics.jsonl": "".join(f"{json.dumps(line)}\n" for line in _lines(sources, progressive, finished)),
    }
    for name, content in texts.items():
        (folder / name).write_text(content)
    return folder


def _names(path: str) -> list[tuple[str, str, int]]:
    return [
        (f"{path}.{i}.{end}", kind, size)
        for i in range(LAYERS)
        for end, kind, size in (("mlp.down_proj.weight:1", "ffn", FFN), ("attn.k_proj.weight:0.0", "heads", HEADS))
    ]


def _cuts(path: str) -> list[dict[str, Any]]:
    kept = {"ffn": "0-19,30-45", "heads": "0,2-3"}
    return [
        {"name": name, "kind": kind, "size": size, "certificate": "exact", "kept": kept[kind]}
        for name, kind, size in _names(path)
        if ".0." not in name
    ]


def _account(path: str) -> dict[str, Any]:
    groups = [
        {"name": name, "kind": kind, "size": size, "certificate": "exact",
         "why": "unprunable by knowledge analysis" if ".0.mlp" in name else ""}
        for name, kind, size in _names(path)
    ]  # fmt: skip
    groups.append({"name": "embed.weight:1", "kind": "hidden", "size": 32, "certificate": "compensated",
                   "why": "not among the kinds asked for (kinds=)"})  # fmt: skip
    pin = {"reason": "looked up by data", "count": 2, "dims": "512", "node": "embedding", "source": "model.py:3"}
    return {"groups": groups, "pins": [pin]}


def _knowledge(path: str) -> dict[str, Any]:
    rows = [
        {"name": name, "groups": [name], "kind": kind, "layer": i // 2, "ratio": 0.5, "shut": size // 2, "of": size,
         "share": 0.05, "loss": 2.1, "perplexity": 8.0, "deviation": 1.5, "relative": 0.5 / (i + 1), "kl": None}
        for i, (name, kind, size) in enumerate(_names(path))
    ]  # fmt: skip
    return {"format": "shearfx knowledge 1", "rows": rows, "loss": 1.9, "ratios": [0.5]}


def _records(sources: tuple[str, ...], path: str, finished: bool) -> dict[str, Any]:
    def judged(loss: float, parameters: int) -> dict[str, Any]:
        losses = {name: loss + 0.5 * i for i, name in enumerate(sources)}
        return {"losses": losses, "parameters": parameters, "without_embeddings": parameters - 1000}

    records: dict[str, Any] = {
        "memory": {"estimate": {"total": 15_000_000}, "weights": {"dense": 40_000, "recovered": 28_000}, "on": "cpu",
                   "peak": {"dense": 6e8, "prune": 7e8}},
        "dense": judged(1.9, 10_000) | {"dtype": "torch.float32"},
        "budget": {"steps": 40},
        "knowledge": {"unprunable": [f"{path}.0.mlp.down_proj.weight:1"]},
        "prune": {"asked": 0.3, "achieved": 0.2998, "cuts": {"ffn": [84, 192], "heads": [3, 12]}},
        "cut": judged(3.0, 7_000),
        "speed": {"flops": {"dense": 1e7, "recovered": 7e6}, "timed": "1 x 128 + 24 tokens",
                  "prefill": {"dense": 900.0, "recovered": 1200.0}, "decode": {"dense": 50.0, "recovered": 60.0}},
    }  # fmt: skip
    return records | ({"recover": judged(2.2, 7_000) | {"minutes": 2.5}} if finished else {})


def _lines(sources: tuple[str, ...], progressive: bool, finished: bool) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []

    def log(event: str, **values: Any) -> None:
        lines.append({"event": event, "time": 1.8e9 + len(lines), **values})

    def saliency(number: int) -> dict[str, Any]:
        low = [1e-6 * (number + 1) * 1.5**i for i in range(5)]
        return {kind: {"picked": low, "stays": [8 * x for x in low]} for kind in ("ffn", "heads")}

    if progressive:
        for step in range(1, 21):
            period, within = divmod(step - 6, 5)
            if period >= 0 and within == 0:
                log("period", step=step - 1, period=period, picked=30, saved=1000 * (period + 1),
                    saliency=saliency(period))  # fmt: skip
            zero = 30 * max(0, (step - 5) // 5)
            log("prune", step=step, loss=2 + math.sin(step) / 5, zero=zero, fading=30 if step > 5 and within < 4 else 0)
    else:
        for cut in (1, 2, 3):
            log("cut", cut=cut, picked=30, saved=1000 * cut, saliency=saliency(cut))
    for stage, steps in (("pretrain", 12), ("instruct", 8 if finished else 3)):
        for step in range(steps + 1):
            if step % 4 == 0:
                lost = {name: (1.1 - 0.04 * step) * (1 - 0.6 * i) for i, name in enumerate(sources)}
                weights = {name: 1 / len(sources) for name in sources} if step < steps else {}
                log("round", stage=stage, number=step // 4, step=step, losses={}, degradation=lost, weights=weights)
            if step < steps:
                log("recover", stage=stage, step=step + 1, loss=2.2 - 0.01 * step, norm=0.3, lr=1e-3, seconds=0.1)
    return lines
