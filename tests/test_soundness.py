"""Every architecture of the zoo under random plans: cut and masked models agree, on every call, in both forms."""

from __future__ import annotations

import contextlib
import random

import pytest

import shearfx
from shearfx.attributes import settle
from shearfx.bundles import bundles
from shearfx.comparison import TOLERANCE
from shearfx.errors import PlanError, TraceError
from shearfx.pruning_plan import of_cuts
from shearfx.testing import prunable, random_cuts, random_tied_cuts
from shearfx.testing.plans import plan_of
from tests import zoo
from tests.zoo import Entry

SEEDS = 4
QUICK = {
    "llama", "gpt2", "bert", "mamba", "swin", "resnet_hf", "unet", "moe_dense", "shared_twice", "lstm", "whisper",
}  # fmt: skip
"""One of each kind, for the tests that run every time."""

ENTRIES = [
    pytest.param(entry, id=entry.name, marks=() if entry.name in QUICK else pytest.mark.slow) for entry in zoo.entries()
]


@pytest.mark.parametrize("entry", ENTRIES)
def test_what_is_cut_computes_what_is_masked(entry: Entry) -> None:
    """Random cuts of all exact and compensated groups together; other sizes and a padding mask in the first plan."""
    model = entry.build()
    if not entry.exports:
        with pytest.raises(TraceError):
            shearfx.trace(model.module, *model.args, **model.kwargs)
        return
    graph = shearfx.trace(model.module, *model.args, **model.kwargs)
    assert not [pin for pin in graph.pins if "failed" in pin.reason], "a rule raised an exception"
    if not prunable(graph):
        assert all(group.certificate == "approximate" for group in graph.groups if group.size > 1)
        return
    moved = []
    for seed in range(SEEDS):
        plan = plan_of(graph, random_cuts(graph, random.Random(seed)))
        for args, kwargs in model.calls() if seed == 0 else model.calls()[:1]:
            report = shearfx.verify(model.module, plan, *args, graph=graph, **kwargs)
            assert report.fx_error is not None and report.fx_error <= TOLERANCE
            moved.append(report.moved)
    assert entry.trap or max(moved) > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("entry", [entry for entry in zoo.entries() if entry.exports], ids=lambda entry: entry.name)
def test_the_original_class_holds_what_it_is_said_to_hold(entry: Entry) -> None:
    model = entry.build()
    graph = shearfx.trace(model.module, *model.args, **model.kwargs)
    cuts = random_tied_cuts(bundles(graph, model.module), random.Random(1))
    if not cuts:
        return
    with contextlib.suppress(PlanError):  # so far down that the class cannot hold it: refused, which is sound
        plan = settle(model.module, graph, of_cuts(graph, cuts))
        for args, kwargs in model.calls():
            report = shearfx.verify(model.module, plan, *args, graph=graph, **kwargs)
            assert report.module_error is not None and report.module_error <= TOLERANCE


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "qwen2", "bert", "vit", "bart", "falcon_7b")),
    ],
)
def test_eager_attention_is_cut_like_fused(name: str) -> None:
    model = zoo.get(name).build()
    for implementation in ("eager", "sdpa"):
        model.module.set_attn_implementation(implementation)  # type: ignore[operator]
        graph = shearfx.trace(model.module, *model.args, **model.kwargs)
        plan = plan_of(graph, random_cuts(graph, random.Random(2)))
        assert {"heads", "query_group"} & {group.kind for group in graph.groups}
        for args, kwargs in model.calls():
            assert shearfx.verify(model.module, plan, *args, graph=graph, **kwargs).max_relative_error <= TOLERANCE
