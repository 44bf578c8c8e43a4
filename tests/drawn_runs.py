"""Runs of LHSPG on tiny models as hypothesis draws them, and which entries of which parameters belong to structures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from shearfx.graph import Graph
from shearfx.optim import LHSPG
from shearfx.optim.schedule import Schedule
from tests.tiny_models import fresh, learn_something, loss_of, optimizer, scores_of

LINEAR = {
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"),
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "convolutions": ("first", "second", "head"),
    "perceptron": ("one", "two", "three"),
}
"""Layers that an adapter can be on, by model."""
OPTIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "adamw": {"betas": st.tuples(st.floats(0, 0.99), st.floats(0.5, 0.9999)), "eps": st.sampled_from([1e-8, 1e-6])},
    "sgd": {"momentum": st.sampled_from([0.0, 0.5, 0.9])},
}
"""Hyperparameters of a variant's own."""


@st.composite
def adapters(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """A LoRA configuration of any rank, scaling and target modules."""
    chosen = draw(st.lists(st.sampled_from(LINEAR[name]), min_size=1, unique=True))
    return {"r": draw(st.integers(1, 4)), "lora_alpha": draw(st.integers(1, 9)), "use_rslora": draw(st.booleans()),
            "target_modules": chosen}  # fmt: skip


@st.composite
def variants(draw: st.DrawFn) -> dict[str, Any]:
    """A variant with its hyperparameters."""
    variant = draw(st.sampled_from(sorted(OPTIONS)))
    own = {key: draw(values) for key, values in OPTIONS[variant].items()}
    rates = {"lr": draw(st.sampled_from([1e-3, 0.01, 0.05])), "weight_decay": draw(st.sampled_from([0.0, 0.1]))}
    return {"variant": variant, **rates, **own}


def plain(parameters: Sequence[nn.Parameter], options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """torch's own optimiser with the hyperparameters that :func:`variants` drew."""
    kind: Any = torch.optim.AdamW if options["variant"] == "adamw" else torch.optim.SGD
    found: torch.optim.Optimizer = kind(parameters, **{key: options[key] for key in options if key != "variant"})
    return found


@dataclass
class Drawn:
    """A run that was drawn; every call of :meth:`model` gives the same model anew."""

    name: str
    lora: dict[str, Any] | None
    variant: dict[str, Any]
    fading: dict[str, Any]
    """Target, carrier, penalty, half-space and schedule."""
    seed: int
    dtype: torch.dtype = torch.float32

    @property
    def schedule(self) -> Schedule:
        """Of the run."""
        return Schedule(*(self.fading[key] for key in ("warmup", "periods", "period_length")))

    def model(self) -> nn.Module:
        """With its adapter, which has learnt something already."""
        model = fresh(self.name, self.lora, self.dtype)
        return model if self.lora is None else learn_something(model, self.seed)

    def optimizer(self, model: nn.Module, **more: Any) -> LHSPG:
        """LHSPG as drawn; more options on top."""
        scores = {} if "saliency" in more else {"scores": scores_of(self.name, self.seed)}
        return optimizer(self.name, model, **(self.variant | self.fading | scores | more))

    def loss(self, model: nn.Module, step: int) -> Tensor:
        """Of the step's batch."""
        return loss_of(self.name, model, 100 * self.seed + step)


@st.composite
def runs(
    draw: st.DrawFn, names: Sequence[str] = ("perceptron", "convolutions", "gpt2", "llama"),
    carriers: Sequence[str] = ("gates", "weights"), dtype: torch.dtype = torch.float32, adapted: bool | None = None,
) -> Drawn:  # fmt: skip
    """A model, with an adapter or without, and what LHSPG can be asked for it."""
    name = draw(st.sampled_from(names))
    if adapted is None:
        adapted = draw(st.booleans())
    fading: dict[str, Any] = {
        "target": draw(st.integers(1, 9)), "warmup": draw(st.integers(0, 2)), "periods": draw(st.integers(1, 3)),
        "period_length": draw(st.integers(1, 3)), "carrier": draw(st.sampled_from(carriers)),
        "half_space_eps": draw(st.sampled_from([-math.inf, 0.0, 0.6])),
    }  # fmt: skip
    if draw(st.booleans()):
        fading |= {"penalty": "constant", "strength": draw(st.floats(0.01, 1))}
    lora = draw(adapters(name)) if adapted else None
    return Drawn(name, lora, draw(variants()), fading, draw(st.integers(0, 999)), dtype)


def same_gradients(model: nn.Module, other: nn.Module) -> None:
    """Give another model, built alike, the gradients that this one has."""
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        theirs.grad = None if mine.grad is None else mine.grad.clone()


def entries_of(graph: Graph, name: str, model: nn.Module, structures: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Which entries of a live model's parameters belong to structures: bool masks by live name.

    Of an adapter's two factors those are rows of B and columns of A, worked out here from the shapes of weights.
    """
    groups = {g.name: g for g in graph.groups}
    found = {live: torch.zeros(p.shape, dtype=torch.bool) for live, p in model.named_parameters()}
    transposed = name == "gpt2"  # Conv1D keeps its weight as [in, out]
    by_base: dict[str, list[str]] = {}
    for live in found:
        bare = live.removeprefix("base_model.model.").replace(".base_layer", "")
        by_base.setdefault(bare.split(".lora_")[0] + ".weight" if ".lora_" in bare else bare, []).append(live)
    for group, gone in structures.items():
        for member in groups[group].members:
            index = member.indices[list(gone)].flatten()
            for live in by_base.get(member.name, ()):
                dim = member.dim
                if ".lora_" in live:
                    out = (dim == 0) ^ transposed
                    if out != ("lora_B" in live):
                        continue
                    dim = 0 if out else 1
                found[live].index_fill_(dim, index, True)
    return found
