"""Models of the zoo, planned; what a plan saves, counted without the planner."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import shearfx
import shearfx.spending
from shearfx.graph import Graph, Group
from shearfx.pruning_plan import PruningPlan, of_cuts
from shearfx.saliency import Evidence, Saliency
from shearfx.selection import OPTIONAL_KINDS
from tests import zoo

ENTRIES = ("llama", "gptj", "cnn_resnet", "moe_einsum", "squeeze_excite", "llama_lora")
"""Grouped queries and tied layers, partly rotary heads, residual channels, fused experts, gates, adapters."""


@functools.cache
def traced(name: str) -> tuple[zoo.Model, Graph]:
    model = zoo.get(name).build()
    return model, shearfx.trace(model.module, *model.args, **model.kwargs)


def planned(name: str, **options: Any) -> PruningPlan:
    model, graph = traced(name)
    return shearfx.plan(graph, **{"model": model.module, "form": "fx", "saliency": "random", **options})


def numel(shapes: Iterable[tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def params_after(graph: Graph, kept: Mapping[str, Iterable[int]]) -> int:
    """Unique parameters left, counted from the shapes that a plan gives: nothing of the planner is used."""
    shapes = of_cuts(graph, kept).shapes_after()
    return numel(shapes[t.name] for t in graph.parameters())


def kept_of(plan: PruningPlan) -> dict[str, list[int]]:
    return {cut.name: list(cut.kept) for cut in plan.cuts}


def admitted(graph: Graph, kinds: tuple[str, ...] | None) -> list[Group]:
    optional = OPTIONAL_KINDS if kinds is None else ()
    return [g for g in graph.groups if g.size > 1 and g.certificate != "approximate" and g.kind not in optional]


def cheapest_step(graph: Graph, plan: PruningPlan, groups: list[Group], floor: float) -> int:
    """The least that one structure more would save; where too much is saved, or all there is, one less would cost."""
    kept: dict[str, Any] = kept_of(plan)
    now = params_after(graph, kept)
    further, back = [], []
    for group in groups:
        stay = kept.get(group.name, list(range(group.size)))
        if len(stay) > max(1, math.ceil(floor * group.size - 1e-9)):
            further.append(now - params_after(graph, {**kept, group.name: stay[1:]}))
        if len(stay) < group.size:
            more = [*stay, next(i for i in range(group.size) if i not in stay)]
            back.append(params_after(graph, {**kept, group.name: more}) - now)
    further, back = ([step for step in steps if step > 0] for steps in (further, back))
    return min(further if plan.achieved < plan.asked and further else back)


names = st.sampled_from(ENTRIES)
ratios = st.floats(0.02, 0.9)
all_kinds = st.sampled_from([None, ("all",)])
floors = st.sampled_from([0.0, 0.1, 0.3, 0.5])
seeds = st.integers(0, 5)


class Loss(Saliency):
    """Random scores in units of loss, larger where more parameters go."""

    name, unit = "test-loss", "loss"

    def scores(self, given: Evidence) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(given.seed)
        return {g.name: torch.rand(g.size, generator=generator).double() * g.params for g in given.groups}


saliencies = st.sampled_from([Loss(), "random"])


class Branches(nn.Module):
    """Independent feed-forward blocks of different widths in and out."""

    def __init__(self) -> None:
        super().__init__()
        widths = [(5, 30), (9, 20), (3, 40)]
        self.up = nn.ModuleList([nn.Linear(a, b) for a, b in widths])
        self.down = nn.ModuleList([nn.Linear(b, 4) for _, b in widths])

    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        parts = [d(torch.relu(u(v))) for u, d, v in zip(self.up, self.down, (x, y, z), strict=True)]
        return torch.stack(parts).sum(0)


@functools.cache
def branches() -> tuple[nn.Module, Graph]:
    module = Branches().eval()
    return module, shearfx.trace(module, torch.randn(2, 5), torch.randn(2, 9), torch.randn(2, 3))
