"""Time as a budget's unit: what is measured is what plans save, and what takes no time is left alone."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

import shearfx
from shearfx.budget import budget_of, open_sizes, time_budget
from shearfx.config import ShearConfig
from shearfx.construction import construct_graph
from shearfx.depth import find_layers
from shearfx.errors import PlanError
from shearfx.graph import Graph
from shearfx.optim import LHSPG
from shearfx.pruning_plan import of_cuts
from shearfx.running_time import FEMTOSECONDS, RunningTime, amount_text
from shearfx.selection import Selection, select
from shearfx.speed import Speed
from shearfx.timing import explained, halves, measure_time, usual_run
from tests.tiny_runs import Runs, Telling, tiny_llama, write_model, write_text

IDS = torch.tensor([[5, 9, 200, 31, 7, 2]])


@functools.cache
def llama() -> tuple[nn.Module, Graph]:
    model = tiny_llama()
    return model, shearfx.trace(model, input_ids=IDS, use_cache=False)


def clock(**rates: float) -> Callable[[nn.Module], float]:
    """Milliseconds for each parameter whose name holds a text, and one for the rest: exact, unlike a machine."""

    def run(model: nn.Module) -> float:
        return 1.0 + sum(
            rate * p.numel() for name, p in model.named_parameters() for part, rate in rates.items() if part in name
        )

    return run


rates = st.floats(1e-4, 1.0)


@settings(max_examples=10, phases=[Phase.explicit, Phase.generate])  # each example builds models
@given(ffn=rates, attention=rates, ratio=st.floats(0.05, 0.45))
def test_a_plan_saves_the_time_that_is_asked_for(ffn: float, attention: float, ratio: float) -> None:
    model, graph = llama()
    run = clock(mlp=ffn, self_attn=attention)
    time = measure_time(graph, model, run=run, rounds=1, form="fx")
    assert time.total == run(model)
    try:
        plan = shearfx.plan(graph, ratio, "magnitude", model, unit=time, form="fx")
    except PlanError as error:  # one kind alone may take too little
        assert "ratio" in str(error)
        return
    found = run(shearfx.construct(model, plan, form="fx", graph=graph))
    assert plan.achieved == pytest.approx(1 - found / time.total, rel=0.02)  # what half explains, others follow
    assert plan.achieved == pytest.approx(ratio, abs=0.06)  # half a head
    assert plan.options["unit"] == "milliseconds" and plan.options["milliseconds"] == time.total
    assert plan.options["achieved_params"] > 0
    assert shearfx.PruningPlan.from_json(plan.to_json()).options["timed"] == time.what


@given(ffn=rates, attention=rates)
@settings(max_examples=10)
def test_structures_and_the_rest_make_the_whole(ffn: float, attention: float) -> None:
    model, graph = llama()
    time = measure_time(graph, model, run=clock(mlp=ffn, self_attn=attention), rounds=1, form="fx")
    budget = time_budget(graph, time)
    assert budget.total == pytest.approx(FEMTOSECONDS * time.total, rel=1e-6)
    rest = next(product for product in budget.products if not product.dims)
    assert rest.factor >= 0


@given(st.data())
def test_rates_explain_what_was_measured(data: st.DataObject) -> None:
    things = data.draw(st.integers(1, 4))
    amounts = torch.tensor(
        [[data.draw(st.integers(0, 50)) for _ in range(things)] for _ in range(things)], dtype=torch.float64
    )
    true = torch.tensor([data.draw(st.floats(0, 10)) for _ in range(things)], dtype=torch.float64)
    noise = torch.tensor([data.draw(st.sampled_from([0.0, 0.0, -1.0, 3.0])) for _ in range(things)])
    totals = amounts @ true + noise
    found = explained(amounts, totals)
    assert (found >= 0).all() and torch.isfinite(found).all()
    if not noise.any():
        assert (amounts @ found - totals).norm() <= 0.01 * totals.norm() + 1e-9


def test_what_takes_no_time_stays_whole() -> None:
    model, graph = llama()
    time = measure_time(graph, model, run=clock(mlp=0.1), rounds=2, form="fx")
    plan = shearfx.plan(graph, 0.3, "random", model, unit=time, form="fx")
    assert {cut.kind for cut in plan.cuts} == {"ffn"}
    nothing = measure_time(graph, model, run=lambda model: 1.0, rounds=1, form="fx")
    assert not nothing.rates
    with pytest.raises(PlanError, match="nothing can be cut"):
        shearfx.plan(graph, 0.3, "random", model, unit=nothing, form="fx")


def test_loss_is_ranked_by_the_time_it_saves() -> None:
    """Where all lose the same, what takes the most time goes: nearly all that is saved is saved there."""
    model, graph = llama()
    for slow, fast in itertools.permutations(("mlp", "self_attn")):
        run, other = clock(**{slow: 0.1, fast: 1e-4}), clock(**{fast: 1e-4})
        time = measure_time(graph, model, run=run, rounds=1, form="fx")
        plan = shearfx.plan(graph, 0.1, _Same(), model, unit=time, form="fx")
        small = shearfx.construct(model, plan, form="fx", graph=graph)
        assert other(model) - other(small) < 0.05 * (run(model) - run(small))  # what a head is too much for


class _Same(shearfx.saliency.Saliency):
    """All structures cost the same loss."""

    name, unit = "same", "loss"

    def scores(self, given: shearfx.saliency.Evidence) -> dict[str, torch.Tensor]:
        return {group.name: torch.ones(group.size) for group in given.groups}


def test_half_of_what_can_go_goes() -> None:
    model, graph = llama()
    tied, _ = select(graph, model, Selection(form="fx"))
    sizes = {cut.name: (cut.size, len(cut.kept)) for cut in halves(graph, tied).cuts}
    for one in tied:
        group = one.groups[0]
        if group.size > 1:
            size, kept = sizes[group.name]
            assert kept == -(-size // 2) or kept == size // 2


@pytest.mark.parametrize("form", ["module", "fx"])
def test_a_model_that_does_not_generate_runs_the_traced_call(form: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 128, 3), nn.ReLU(), nn.Conv2d(128, 128, 3), nn.ReLU(), nn.Conv2d(128, 3, 3)
    ).eval()
    graph = shearfx.trace(model, torch.randn(4, 3, 64, 64))  # long enough to be timed on a busy machine
    before = {name: p.clone() for name, p in model.named_parameters()}
    time = measure_time(graph, model, form=form, rounds=9)
    assert time.total > 0 and "the traced call" in time.what
    assert any(time.rates.values())  # half of the channels: a quarter of the work
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_graphs_are_timed_by_the_traced_call_as_it_was() -> None:
    """A graph of a model that generates does not; both sides are graphs, and the call is as large as the traced one."""
    model, graph = llama()
    time = measure_time(graph, model, form="fx", rounds=1)
    assert "the traced call" in time.what and time.total > 0
    seen: list[Any] = []
    with patch.object(torch.fx.GraphModule, "__call__", lambda self, **call: seen.append(call)):
        whole = construct_graph(model, of_cuts(graph, {}), graph)
        usual_run(graph, whole)[0](whole)
    sizes = open_sizes(graph)
    assert [value.shape[-1] for value in seen[0].values()] == [IDS.shape[-1]]
    assert sorted(seen[0]["input_ids"].shape) == sorted(sizes.values())  # a batch of one is traced as two


def test_looking_at_layers_is_not_counted() -> None:
    """Whoever looks at the clock within a layer waits for the device: totals and savings are of runs without that."""
    model, graph = llama()
    layers = [layer.path for layer in find_layers(graph).layers]

    def run(model: nn.Module) -> float:
        return clock(mlp=0.1)(model) + 100 * sum(len(module._forward_hooks) for module in model.modules())

    done: list[tuple[int, int]] = []
    alone = measure_time(graph, model, run=run, rounds=1, form="fx")
    tied = select(graph, model, Selection(form="fx"))[0]
    with patch("shearfx.timing._smaller", lambda graph, model, tied, form: (model, of_cuts(graph, {}))):
        watched = measure_time(
            graph, model, tied, layers=layers, run=run, rounds=1, progress=lambda *at: done.append(at)
        )
    assert watched.total == alone.total
    assert not watched.rates  # both were the same model, hence nothing was saved
    assert done[-1][0] == done[-1][1]
    with pytest.raises(PlanError, match="no layers to time"):
        measure_time(graph, model, layers=layers, form="fx")


def test_a_generation_is_timed_and_so_are_its_layers() -> None:
    model, graph = llama()
    layers = [layer.path for layer in find_layers(graph).layers]
    done: list[tuple[int, int]] = []
    time = measure_time(graph, model, layers=layers, rounds=1, tied=(), progress=lambda *at: done.append(at))
    assert "new tokens" in time.what and time.total > 0
    assert set(time.layers) == set(layers)
    assert 0 < sum(time.layers.values()) < time.total
    assert done[-1][0] == done[-1][1]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    other = time.of_total(2 * time.total)
    assert sum(other.layers.values()) == pytest.approx(2 * sum(time.layers.values()))
    assert RunningTime(**time.to_record()) == time


def test_requests_that_make_no_sense_are_refused() -> None:
    model, graph = llama()
    with pytest.raises(PlanError, match="rounds=0"):
        measure_time(graph, model, rounds=0)
    time = measure_time(graph, model, run=clock(mlp=0.1), rounds=1, form="fx")
    with pytest.raises(PlanError, match="of the milliseconds"):
        shearfx.plan(graph, 0.95, "random", model, unit=time, form="fx")
    with pytest.raises(PlanError, match="unit"):
        shearfx.plan(graph, 0.2, "random", model, unit="seconds")  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="measured before"):  # and not taken for operations
        shearfx.plan(graph, 0.2, "random", model, unit="milliseconds", form="fx")  # type: ignore[arg-type]
    for unit in ("milliseconds", "seconds"):
        with pytest.raises(PlanError, match="unit"):
            budget_of(graph, unit, ())  # type: ignore[arg-type]
    both: tuple[dict[str, Any], ...] = ({"milliseconds": 40.0, "unit": "flops"}, {"milliseconds": 40.0, "ratio": 0.3})
    for values in (*both, {"milliseconds": float("inf")}, {"milliseconds": 0.0}):
        with pytest.raises(PlanError, match="milliseconds"):
            ShearConfig(**values).check()


def test_a_generation_takes_its_prompt_and_its_new_tokens() -> None:
    # two sequences: 100 prompt tokens in half a second, 20 new ones after the first in two
    speed = Speed(200.0, 10.0, prompt_tokens=50, new_tokens=11, batch_size=2, repeats=1, dtype="", device="", threads=1)
    assert speed.milliseconds == pytest.approx(2500)


def test_amounts_are_told_in_their_unit() -> None:
    time = RunningTime(12.0)
    assert amount_text(34 * FEMTOSECONDS // 10, time) == "3.4 ms"
    assert amount_text(10, "structures") == "10 structures"
    model, graph = llama()
    assert budget_of(graph, "params", ()).total == sum(p.numel() for p in model.parameters())


# -- in a run ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("time")
    return Runs(write_model(folder / "model", num_hidden_layers=3), write_text(folder / "text.txt"))


def exact(graph: Graph, model: nn.Module) -> tuple[Callable[[nn.Module], float], str]:
    return clock(mlp=1e-3, self_attn=1e-3), "a clock that counts"


def test_a_run_saves_time(runs: Runs, tmp_path: Path) -> None:
    teller, run = Telling(), clock(mlp=1e-3, self_attn=1e-3)
    with patch("shearfx.timing.usual_run", exact):
        sheared = runs(tmp_path / "run", teller=teller, unit="milliseconds", ratio=0.3, kinds=("ffn", "heads"))
    time = sheared.record["time"]
    assert run(sheared.model) == pytest.approx(0.7 * time["total"], rel=0.02)
    assert sheared.record["prune"]["unit"] == "milliseconds"
    assert sheared.plan.asked == pytest.approx(0.3, abs=1e-6)
    assert sheared.record["prune"]["achieved"] == sheared.plan.achieved == pytest.approx(0.3, abs=0.02)
    left = sum(p.numel() for p in sheared.model.parameters())
    whole = sum(p.numel() for p in tiny_llama(num_hidden_layers=3).parameters())
    assert sheared.plan.achieved_params == pytest.approx(1 - left / whole)
    assert any("a clock that counts" in note for note in teller.told)
    # the time that was measured is the run's: a run that goes on does not measure again
    with patch("shearfx.timing.usual_run", side_effect=AssertionError):
        again = runs(tmp_path / "run", resume=True, unit="milliseconds", ratio=0.3, kinds=("ffn", "heads"))
    assert again.plan.to_json() == sheared.plan.to_json()


def test_milliseconds_can_be_stated(runs: Runs, tmp_path: Path) -> None:
    run = clock(mlp=1e-3, self_attn=1e-3)
    whole = run(tiny_llama(num_hidden_layers=3))
    with patch("shearfx.timing.usual_run", exact):
        sheared = runs(tmp_path / "run", milliseconds=0.75 * whole, prune_share=0.5)
        assert run(sheared.model) == pytest.approx(0.75 * whole, rel=0.02)
        with pytest.raises(PlanError, match="asked for, and the model takes"):
            runs(tmp_path / "fast", milliseconds=2 * whole)
        with pytest.raises(PlanError, match=r"ask for .* ms or more"):
            runs(tmp_path / "slow", milliseconds=0.05 * whole)
    with pytest.raises(PlanError, match="is about parameters"):
        runs(tmp_path / "of", unit="milliseconds", of="without_embeddings")


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["milliseconds", "flops"])
def test_layers_count_in_the_unit(runs: Runs, tmp_path: Path, unit: str) -> None:
    with patch("shearfx.timing.usual_run", exact):
        sheared = runs(tmp_path / "run", unit=unit, ratio=0.4, layers=1, kinds=("ffn", "heads"))
    assert len(sheared.record["layers"]["paths"]) == 1
    if unit == "flops":
        flops = sheared.record["speed"]["flops"]
        assert flops["recovered"] == pytest.approx(0.6 * flops["dense"], rel=0.02)


@pytest.mark.slow
def test_depth_and_all_widths_share_a_budget_of_time(runs: Runs, tmp_path: Path) -> None:
    kinds = ("ffn", "heads", "query_group", "hidden")
    with patch("shearfx.timing.usual_run", exact):
        sheared = runs(
            tmp_path / "run", unit="milliseconds", ratio=0.4, layers="auto", kinds=kinds, saliency="taylor", tokens=0
        )
    time = sheared.record["time"]
    left = clock(mlp=1e-3, self_attn=1e-3)(sheared.model)
    assert left == pytest.approx(0.6 * time["total"], rel=0.05)


def test_the_time_of_another_model_is_refused() -> None:
    time = RunningTime(3.0, {"model.layers.0.mlp.w1.weight": 1e-3})
    with pytest.raises(PlanError, match=r"of another model: it has a parameter 'model\.layers\.0\.mlp\.w1\.weight'"):
        shearfx.plan(llama()[1], 0.2, "random", unit=time, form="fx")


@pytest.mark.parametrize("unit", ["params", "flops", "structures", "time"])
def test_what_lhspg_achieves_is_counted_in_the_unit_that_it_is_asked_for(unit: str) -> None:
    model, graph = llama()
    time = RunningTime(0.2, {t.name: 1e-5 for t in graph.parameters() if "mlp" in t.name})
    scores = {group.name: torch.arange(group.size, dtype=torch.float64) for group in graph.groups}
    asked: Any = time if unit == "time" else unit
    optimizer = LHSPG(graph, model, target=0.2, unit=asked, warmup=0, periods=1, period_length=1, scores=scores,
                      kinds=("ffn",), form="fx")  # fmt: skip
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    plan = optimizer.plan()
    optimizer.detach()
    assert plan.asked == pytest.approx(0.2, abs=0.01) and plan.achieved == pytest.approx(plan.asked, abs=0.02)
    assert plan.achieved_params == of_cuts(graph, {cut.name: cut.kept for cut in plan.cuts}).achieved
