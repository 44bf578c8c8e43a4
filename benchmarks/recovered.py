"""What finished runs brought back, judged on text that was not trained on; and which stage did.

    shearfx shear SMOLLM2 --ratio 0.2 --pretrain c4_train.parquet -o run-20 --set tokens=409600 --set lr=2e-3
    python -m benchmarks.recovered run-20 [run-50 ...] [--data ../shared]

``c4_train.parquet`` holds rows 0 to 1599 of the C4 file (:mod:`benchmarks.texts`); judged on the others and on
WikiText-2, 48 windows of 256 tokens each. The gap is that between the dense model and the plain cut: the same ratio by
Fisher information of the text's own labels, in one cut, nothing fitted, nothing trained. It is made here, as much and
of the same kinds as in the run, whatever that chose by, so that a better choice counts for a run and not against it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks import record
from benchmarks.texts import c4_parts
from shearfx.checkpoints import load
from shearfx.config import ShearConfig
from shearfx.data import Examples, open_source, pack
from shearfx.models import LoadedModel, load_model
from shearfx.pipeline import Shearing, Silent
from shearfx.run_directory import CONFIG, RunDirectory
from shearfx.training import losses_of

WINDOWS = 48
TOLD = (
    "model", "lr", "batch_size", "layers", "distill", "scoring_labels", "scoring_windows", "fitting_windows",
    "prune_share",
)  # fmt: skip
COLUMNS = ("run", "learnt from", "tokens", "text", "dense", "plain cut", "cut", "recovered", "closed by the cuts",
           "closed by recovery", "closed")  # fmt: skip


def main() -> None:
    """Judge the runs that are named; rows of others stay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, default=Path("../shared"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    kept = record.RESULTS / "recovered.json"
    rows: list[dict[str, Any]] = json.loads(kept.read_text())["data"] if kept.exists() else []
    for path in options.runs:
        found = judged(path, options.data)
        rows = [row for row in rows if row["options"] != found[0]["options"]] + found
    report(sorted(rows, key=lambda row: (row["ratio"], row["tokens"], row["text"])))


def judged(path: Path, data: Path) -> list[dict[str, Any]]:
    """A row for each text."""
    text = (path / CONFIG).read_text(encoding="utf-8")
    model = json.loads(text.splitlines()[0].removeprefix("# model: "))
    config = ShearConfig.read(path / CONFIG)
    with tempfile.TemporaryDirectory() as folder:
        full = load_model(model)
        texts = {
            "WikiText-2": data / "data" / "text" / "wikitext2_test_raw_first_half.txt",
            "C4": c4_parts(data, Path(folder))[1],
        }
        judges = {name: windows(full, place) for name, place in texts.items()}
        dense = losses(full.module, judges)
        plain = losses(plain_cut(full, config, Path(folder) / "run"), judges)
    cut, after = (losses(load(path / name), judges) for name in ("cut", "model"))
    said = {name: value for name, value in dataclasses.asdict(config).items() if value != getattr(ShearConfig(), name)}
    return [
        {"ratio": config.ratio, "tokens": config.tokens, "text": name, "dense": dense[name], "plain cut": plain[name],
         "cut": cut[name], "recovered": after[name], "options": said | {"model": Path(model).name}}
        for name in judges
    ]  # fmt: skip


def windows(full: LoadedModel, place: Path) -> Examples:
    """Of a text."""
    packed = pack(open_source(str(place), kind="pretrain"), full.tokenizer, sequence_length=256, min_tokens=0)
    return packed.take(range(min(WINDOWS, len(packed))))


def losses(model: nn.Module, judges: dict[str, Examples]) -> dict[str, float]:
    """Nats a token."""
    found = losses_of(model, list(judges.values()))
    return {name: found[examples.name] for name, examples in judges.items()}


def plain_cut(full: LoadedModel, config: ShearConfig, folder: Path) -> nn.Module:
    """At once; nothing is fitted or trained."""
    same = ("ratio", "unit", "milliseconds", "of", "kinds", "exclude", "scope", "floor", "round_to", "max_tokens")
    bare = ShearConfig(**{name: getattr(config, name) for name in same}, pretrain=config.pretrain[:1], cuts=1,
                       scoring_labels="text", compensation="none", distill=0.0, tokens=0)  # fmt: skip
    run = RunDirectory(folder, full.source, bare, resume=False)
    run.finish("speed", {})
    return Shearing(full, bare, run, Silent()).run().model


def report(rows: list[dict[str, Any]]) -> None:
    """The table."""
    table = []
    for row in rows:
        gap = row["plain cut"] - row["dense"]
        shares = {
            "closed by the cuts": (row["plain cut"] - row["cut"]) / gap,
            "closed by recovery": (row["cut"] - row["recovered"]) / gap,
            "closed": (row["plain cut"] - row["recovered"]) / gap,
        }
        numbers = {name: f"{row[name]:.3f}" for name in ("dense", "plain cut", "cut", "recovered")}
        told = ", ".join(f"{name} {value}" for name, value in row["options"].items() if name in TOLD)
        learnt = ", ".join(Path(source).stem for source in row["options"]["pretrain"])
        named = {"run": f"{row['ratio']:.0%}, {told}", "learnt from": learnt}
        named |= {"tokens": row["tokens"], "text": row["text"]}
        table.append(named | numbers | {name: f"{share:.0%}" for name, share in shares.items()})
    text = (
        f"Nats a token on {WINDOWS} windows of 256 of text that was not trained on (its other parts may have been: "
        "`learnt from`). The gap is that between the dense model and the plain cut: same ratio, by Fisher information "
        "of the text's labels, at once, nothing fitted or trained. "
        "`closed by the cuts`: by cutting in several steps and least squares; `closed by recovery`: by training.\n\n"
    )
    record.keep("recovered", "What a run brings back", text + record.table(table, COLUMNS), rows)


if __name__ == "__main__":
    main()
