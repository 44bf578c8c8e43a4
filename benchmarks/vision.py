"""LHSPG without LoRA, on vision models trained from scratch: the same optimiser, no special case.

    pip install scikit-learn
    python -m benchmarks.vision [--models ResNet ViT] [--variants adamw sgd] [--ratios 0.3 0.5 0.7] [--seeds 0 1 2]
                                [--methods ...]

A ResNet and a ViT (transformers' classes) learn scikit-learn's digits from random weights; then every method gets the
same number of further steps, of full training with the same learning rates. ``at once`` cuts the trained model by
:func:`shearfx.plan` and trains what is left; ``LHSPG`` fades while it trains. ``LHSPG's plan, at once`` cuts what LHSPG
ended with, but in one go: what is between the two is what fading itself does. ``one run`` begins at random weights,
with one learning-rate schedule over all steps. Rows are kept one by one in ``results/vision_rows.json``.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import sys
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import shearfx
from benchmarks import record
from benchmarks.digits import Images, digits, enlarged
from shearfx.budget import operation_budget
from shearfx.comparison import TOLERANCE, relative_error
from shearfx.evaluation import parameter_count
from shearfx.graph import Graph
from shearfx.optim import LHSPG
from shearfx.precision import double_precision, doubled
from shearfx.pruning_plan import PruningPlan, masks_of
from shearfx.training import Loop

ROWS = record.RESULTS / "vision_rows.json"
FIRST, FURTHER = 600, 200
"""Steps from random weights, and steps that every method gets then."""
BATCH = 64
RATES = {("ResNet", "adamw"): 3e-3, ("ResNet", "sgd"): 0.05, ("ViT", "adamw"): 2e-3, ("ViT", "sgd"): 0.05}
SIDE = {"ResNet": 16, "ViT": 8}
"""Pixels that images are enlarged to: a ResNet's stem shrinks them by four."""
WARMUP, PERIODS, LENGTH = 10, 1, 10
"""LHSPG's schedule; the rest of the further steps trains what is left."""
CUT = {f"at once, {name}": name for name in ("magnitude", "taylor", "fisher")}
FADED: dict[str, dict[str, Any]] = {
    "LHSPG": {},
    "LHSPG, 5 periods of 20": {"periods": 5, "period_length": 20},
    "LHSPG, 5 periods of 20, weights": {"periods": 5, "period_length": 20, "carrier": "weights"},
    "LHSPG, magnitude": {"saliency": "magnitude"},
    "LHSPG, one run": {"warmup": FIRST + WARMUP},
}
SAME = "LHSPG's plan, at once"
WHOLE = "at once, fisher, one run"
METHODS = ("dense", *CUT, SAME, *FADED, WHOLE)
USUAL = ("dense", "at once, magnitude", "at once, fisher", SAME, "LHSPG", "LHSPG, 5 periods of 20")
COLUMNS = ("model", "variant", "ratio", "method", "accuracy, %", "spread", "loss", "parameters", "FLOPs", "error",
           "seeds")  # fmt: skip


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(SIDE), default=list(SIDE))
    parser.add_argument("--variants", nargs="+", choices=("adamw", "sgd"), default=["adamw", "sgd"])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.3, 0.5, 0.7])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(USUAL))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows: dict[str, dict[str, Any]] = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    for seed, model, variant in itertools.product(options.seeds, options.models, options.variants):
        bench = Bench(model, variant, seed)
        for ratio, method in itertools.product([0.0, *options.ratios], options.methods):
            key = " | ".join(map(str, (model, variant, ratio, seed, method)))
            if (method == "dense") == (ratio == 0) and key not in rows:
                rows[key] = bench.run(ratio, method)
                print(f"{key}: {rows[key]['accuracy']:.4f}", file=sys.stderr, flush=True)
                ROWS.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
    report(rows)


def fresh(model: str, seed: int) -> nn.Module:
    """Random weights."""
    from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

    torch.manual_seed(seed)
    made: Any
    sizes: dict[str, Any] = {"num_channels": 1, "num_labels": 10}
    if model == "ResNet":
        sizes |= {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 2], "layer_type": "basic"}
        made = ResNetForImageClassification(ResNetConfig(**sizes))
    else:
        sizes |= {"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4}
        made = ViTForImageClassification(ViTConfig(image_size=8, patch_size=2, initializer_range=0.15, **sizes))
    return made  # type: ignore[no-any-return]


@functools.cache
def analysed(model: str) -> Graph:
    """The analysis, which knows shapes only."""
    side = SIDE[model]
    return shearfx.trace(fresh(model, 0).eval(), pixel_values=torch.zeros(2, 1, side, side))


class Bench:
    """One model of one seed, trained by one variant; what methods share is worked out once."""

    def __init__(self, model: str, variant: Literal["adamw", "sgd"], seed: int) -> None:
        self.name, self.seed, self.side = model, seed, SIDE[model]
        self.variant: Literal["adamw", "sgd"] = variant
        images, self.labels = digits()[2:]
        self.images = enlarged(images, self.side)
        own: dict[str, Any] = {"lr": RATES[model, variant], "weight_decay": 0.0}
        self.own = own | ({"momentum": 0.9} if variant == "sgd" else {})
        self.plans: dict[float, PruningPlan] = {}

    @functools.cached_property
    def trained(self) -> nn.Module:
        """The dense model after its first steps; not to be changed."""
        model = fresh(self.name, self.seed)
        self.train(model, self.plain(model), self.images_of(0), FIRST)
        return model

    def copied(self) -> nn.Module:
        """The trained model, to go on with."""
        model = fresh(self.name, self.seed)
        model.load_state_dict(self.trained.state_dict())
        return model

    def plain(self, model: nn.Module) -> torch.optim.Optimizer:
        """The variant as torch has it."""
        kind: Callable[..., Any] = torch.optim.AdamW if self.variant == "adamw" else torch.optim.SGD
        made: torch.optim.Optimizer = kind(model.parameters(), **self.own)
        return made

    def train(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, images: Images, steps: int,
        begin: int = 0, end: int | None = None,
    ) -> None:  # fmt: skip
        """All parameters; the learning rate rises, then falls along a cosine of so many steps."""
        loop = Loop(model.train(), optimizer, images, lambda m, b: m(**b).loss, steps, step=begin)
        for _ in itertools.islice(loop.run(), end):
            pass
        model.eval()

    def images_of(self, stage: int) -> Images:
        """The same ones for every method."""
        return Images(self.side, self.seed + 1000 * stage, BATCH)

    def run(self, ratio: float, method: str) -> dict[str, Any]:
        """One row."""
        plan, error = None, 0.0
        if method in FADED:
            model, plan, error = self.faded(ratio, method)
        elif method == WHOLE:
            model, images, total = fresh(self.name, self.seed), self.images_of(0), FIRST + FURTHER
            self.train(model, self.plain(model), images, total, end=FIRST + WARMUP)
            model, plan, error = self.cut(model, self.planned(model, ratio, "fisher"))
            self.train(model, self.plain(model), images, total, begin=FIRST + WARMUP)
        else:
            model = self.copied()
            if method == SAME and ratio not in self.plans:
                self.faded(ratio, "LHSPG")
            if method != "dense":
                plan = self.plans[ratio] if method == SAME else self.planned(model, ratio, CUT[method])
                model, plan, error = self.cut(model, plan)
            self.train(model, self.plain(model), self.images_of(1), FURTHER)
        accuracy, loss = self.judge(model)
        return {
            "model": self.name, "variant": self.variant, "ratio": ratio, "seed": self.seed, "method": method,
            "accuracy": accuracy, "loss": loss, "before": self.judge(self.trained)[0], "error": error,
            "parameters": parameter_count(model).total, "flops": flops(analysed(self.name), plan),
            "torch": torch.__version__,
        }  # fmt: skip

    def planned(self, model: nn.Module, ratio: float, saliency: str) -> PruningPlan:
        """What a proxy would cut, by as many batches as LHSPG sees before it first picks."""
        images = self.images_of(2)
        return shearfx.plan(analysed(self.name), ratio, saliency, model, data=[images.next() for _ in range(WARMUP)])

    def cut(self, model: nn.Module, plan: PruningPlan) -> tuple[nn.Module, PruningPlan, float]:
        """The smaller model, and how far it is from the masked one in float64."""
        small = shearfx.construct(model, plan, graph=analysed(self.name))
        error = relative_error([exact(shearfx.mask(model, plan), self.images)], [exact(small, self.images)])
        if error > TOLERANCE:
            sys.exit(f"{self.name}: the constructed model differs from the masked one by {error:.1e}")
        return small, plan, error

    def faded(self, ratio: float, method: str) -> tuple[nn.Module, PruningPlan, float]:
        """LHSPG from end to end: the smaller model, its plan, and how far it is from the gated and the masked one."""
        whole = FADED[method].get("warmup", 0) > FIRST
        model = fresh(self.name, self.seed) if whole else self.copied()
        options: dict[str, Any] = {"warmup": WARMUP, "periods": PERIODS, "period_length": LENGTH, **FADED[method]}
        optimizer = LHSPG(analysed(self.name), model, target=ratio, variant=self.variant, **options, **self.own)
        images, steps = (self.images_of(0), FIRST + FURTHER) if whole else (self.images_of(1), FURTHER)
        self.train(model, optimizer, images, steps)
        gated, plan = exact(model, self.images), optimizer.plan()
        optimizer.detach()
        small, plan, error = self.cut(model, plan)
        error = max(error, relative_error([gated], [exact(small, self.images)]))
        if error > TOLERANCE:
            sys.exit(f"{self.name}, {method}: the constructed model differs from the gated one by {error:.1e}")
        if method == "LHSPG":
            self.plans[ratio] = plan
        return small, plan, error

    @torch.no_grad()
    def judge(self, model: nn.Module) -> tuple[float, float]:
        """Accuracy and mean loss on the images that are held out."""
        logits = model.eval()(pixel_values=self.images).logits
        return float((logits.argmax(1) == self.labels).float().mean()), float(F.cross_entropy(logits, self.labels))


@torch.no_grad()
def exact(model: nn.Module, images: Tensor) -> Tensor:
    """Logits in float64, through the gates that are on the model, if any."""
    with double_precision():
        found: Tensor = doubled(model).eval()(pixel_values=images.double()).logits
    return found


def flops(graph: Graph, plan: PruningPlan | None) -> int:
    """Of the contractions for one image."""
    budget = operation_budget(graph)
    sizes = {} if plan is None else {atom: int(mask.sum()) for atom, mask in masks_of(graph, plan).items()}
    return budget.cost(range(len(budget.products)), sizes) // 2  # traced with two


def report(rows: dict[str, dict[str, Any]]) -> None:
    """Means over seeds."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in sorted(rows.values(), key=lambda r: (r["model"], r["variant"], r["ratio"], METHODS.index(r["method"]))):
        groups.setdefault((row["model"], row["variant"], row["ratio"], row["method"]), []).append(row)
    table = []
    for (model, variant, ratio, method), same in groups.items():
        found = [100 * row["accuracy"] for row in same]
        means = {name: statistics.mean(row[name] for row in same) for name in ("loss", "parameters", "flops")}
        table.append(
            {"model": model, "variant": variant, "ratio": ratio, "method": method, "seeds": len(same),
             "accuracy, %": f"{statistics.mean(found):.2f}", "spread": f"{max(found) - min(found):.2f}",
             "loss": f"{means['loss']:.4f}", "parameters": f"{means['parameters']:,.0f}",
             "FLOPs": f"{means['flops'] / 1e6:.2f} M", "error": f"{max(row['error'] for row in same):.0e}"}
        )  # fmt: skip
    text = (
        f"scikit-learn's digits, half of the 1,797 images to learn from (moved by up to a pixel, batches of {BATCH}), "
        f"half held out. {FIRST} steps from random weights, then {FURTHER} for every method, full training. LHSPG: "
        f"{WARMUP} steps of warm-up, a period of {LENGTH}, then plain training; Fisher from training steps, "
        "unless it says otherwise. `spread`: largest less smallest accuracy over seeds. `error`: cut against gated "
        f"(LHSPG) and masked model in float64, at most {TOLERANCE:.0e} is tolerated. FLOPs of one image.\n\n"
    )
    record.keep(
        "vision", "LHSPG without LoRA on vision models", text + record.table(table, COLUMNS), list(rows.values())
    )


if __name__ == "__main__":
    main()
