"""Whole layers in a run: which go, that what is left is the run's model, and that a run cut off goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

import shearfx
from shearfx.analysis import trace
from shearfx.checkpoints import load, read_plan
from shearfx.comparison import TOLERANCE
from shearfx.config import ShearConfig
from shearfx.depth import Damages, Layer, least_damage, least_missed, skipping, write_shorter
from shearfx.errors import PlanError
from shearfx.pipeline import Silent
from shearfx.pipeline import shortening as shortening_module
from shearfx.pipeline.scoring_data import call_loss
from shearfx.pipeline.splitting import best_split
from shearfx.pipeline.stages import recover_model
from tests.tiny_runs import Runs, Telling, options, tiny_llama, write_model, write_text
from tests.tiny_tokenizers import byte_tokenizer

IDS = torch.tensor([[5, 9, 200, 31, 7, 2]])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("layers")
    return Runs(write_model(folder / "model", num_hidden_layers=4), write_text(folder / "text.txt"))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


# What a class can express is found out anew for the shorter model, the longest part of these runs: most are slow.
def test_layers_go_first_and_count_towards_the_ratio(runs: Runs, tmp_path: Path) -> None:
    teller = Telling()
    sheared = runs(tmp_path / "run", teller=teller, layers=1, ratio=0.3, distill=0.5)
    record = sheared.record
    assert len(record["layers"]["paths"]) == 1
    assert depth(sheared.model) == 3
    dense = record["dense"]["parameters"]
    assert record["recover"]["parameters"] == pytest.approx(0.7 * dense, rel=0.01)
    assert sum(p.numel() for p in sheared.model.parameters()) == record["recover"]["parameters"]
    assert record["speed"]["flops"]["recovered"] < 0.8 * record["speed"]["flops"]["dense"]
    assert any("layers that go" in note for note in teller.told)
    assert torch.equal(logits(load(tmp_path / "run" / "model")), logits(sheared.model))
    full, shorter = LlamaForCausalLM.from_pretrained(runs.model).eval(), load(tmp_path / "run" / "shorter")
    with skipping(full, record["layers"]["paths"]):
        torch.testing.assert_close(logits(full), logits(shorter))
    plan = read_plan(tmp_path / "run" / "model")
    assert list(plan.layers) == record["layers"]["paths"] and plan.removed == pytest.approx(0.3, abs=0.01)
    found = shearfx.verify(full, plan, input_ids=IDS, use_cache=False)  # layers and widths, of the full model
    assert found.layers_error is not None and found.max_relative_error <= TOLERANCE


def test_a_model_without_layers_is_recovered_by_itself(runs: Runs, tmp_path: Path) -> None:
    graph = trace(tiny_llama(num_hidden_layers=4), input_ids=IDS, use_cache=False)
    full, shorter = LlamaForCausalLM.from_pretrained(runs.model), tmp_path / "shorter"
    write_shorter(full, graph, ["model.layers.2"], shorter, kwargs={"input_ids": IDS}, tokenizer=byte_tokenizer())
    config = ShearConfig.of_mapping(options(runs.text, tokens=None, steps=20))
    found = recover_model(str(shorter), str(runs.model), tmp_path / "out", config, Silent())
    assert sum(found["recover"]["losses"].values()) < sum(found["cut"]["losses"].values())
    healed = LlamaForCausalLM.from_pretrained(tmp_path / "out" / "model")  # an ordinary folder
    assert depth(healed) == 3 and sum(p.numel() for p in healed.parameters()) == found["recover"]["parameters"]


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_layers_and_widths_that_went_are_recovered_further(scope: str, runs: Runs, tmp_path: Path) -> None:
    before = runs(tmp_path / "run", layers=1, ratio=0.4, scope=scope, tokens=0)
    config = ShearConfig.of_mapping(options(runs.text, tokens=None, steps=20))
    found = recover_model(str(tmp_path / "run" / "model"), str(runs.model), tmp_path / "out", config, Silent())
    assert sum(found["recover"]["losses"].values()) < sum(found["cut"]["losses"].values())
    healed = load(tmp_path / "out" / "model")
    assert depth(healed) == 3
    assert {n: t.shape for n, t in healed.state_dict().items()} == {
        n: t.shape for n, t in before.model.state_dict().items()
    }


def depth(model: Any) -> int:
    return int(model.config.num_hidden_layers)


@pytest.mark.slow
def test_a_run_that_was_cut_off_after_its_layers_goes_on_to_the_same_model(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"layers": 1, "ratio": 0.3}
    whole = runs(tmp_path / "whole", **asked)

    class Killed(BaseException):
        pass

    def killed(*args: Any, **kwargs: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(shortening_module, "write_shorter", killed)
        with pytest.raises(Killed):
            runs(tmp_path / "run", **asked)
    with monkeypatch.context() as patched:
        patched.setattr("shearfx.pipeline.cutting.Cutting.cut", killed)
        with pytest.raises(Killed):
            runs(tmp_path / "run", resume=True, **asked)
    assert "layers" in json.loads((tmp_path / "run" / "stages.json").read_text())
    resumed = runs(tmp_path / "run", resume=True, **asked)
    assert torch.equal(logits(resumed.model), logits(whole.model))
    again = runs(tmp_path / "run", resume=True, **asked)  # nothing is left to do
    assert torch.equal(logits(again.model), logits(whole.model))


@pytest.mark.slow
def test_a_model_that_is_passed_stays_as_it_is(runs: Runs, tmp_path: Path) -> None:
    model = tiny_llama(num_hidden_layers=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sheared = runs(tmp_path / "run", model, layers=1, ratio=0.3)
    assert depth(sheared.model) == 3
    assert len(model.model.layers) == 4
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.slow
def test_layers_and_fading_widths(runs: Runs, tmp_path: Path) -> None:
    sheared = runs(tmp_path / "run", layers=1, ratio=0.3, prune_share=0.5, periods=1, compensation="none")
    dense = sheared.record["dense"]["parameters"]
    assert sheared.record["recover"]["parameters"] == pytest.approx(0.7 * dense, rel=0.01)


@pytest.mark.slow
def test_auto_takes_the_split_that_loses_least(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where widths lose more than any layer, layers go; where they lose less, none does."""
    monkeypatch.setattr(shortening_module, "widths_lose", lambda *_: lambda share: 99 * share)
    sheared = runs(tmp_path / "layers", layers="auto", ratio=0.3)
    assert len(sheared.record["layers"]["paths"]) == 1  # a second one would not fit into the ratio
    monkeypatch.setattr(shortening_module, "widths_lose", lambda *_: lambda share: -99 * share)
    sheared = runs(tmp_path / "widths", layers="auto", ratio=0.2)
    assert sheared.record["layers"]["paths"] == []
    assert depth(sheared.model) == 4


def test_where_the_class_cannot_be_shortened_auto_cuts_widths_alone(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: Any, **kwargs: Any) -> None:
        raise PlanError("no configuration states the model without these layers")

    def chosen(self: shortening_module.Shortening, layers: Any) -> Damages:
        return Damages(("model.layers.1",), (1.0, 1.1), (100,))

    monkeypatch.setattr(shortening_module, "write_shorter", refused)
    monkeypatch.setattr(shortening_module.Shortening, "_chosen", chosen)
    teller = Telling()
    sheared = runs(tmp_path / "run", layers="auto", ratio=0.3, tokens=0, teller=teller)
    assert depth(sheared.model) == 4 and sheared.record["layers"]["paths"] == []
    assert sheared.plan.achieved == pytest.approx(0.3, abs=0.01)
    assert any("no layers go: no configuration" in note for note in teller.told)
    with pytest.raises(PlanError, match="no configuration"):
        runs(tmp_path / "asked", layers=1, ratio=0.3, tokens=0)


@pytest.mark.slow
def test_auto_measures_what_widths_lose(runs: Runs, tmp_path: Path) -> None:
    sheared = runs(tmp_path / "run", layers="auto", ratio=0.3)
    left = 4 - len(sheared.record["layers"]["paths"])
    assert depth(sheared.model) == left
    assert sheared.record["recover"]["parameters"] == pytest.approx(
        0.7 * sheared.record["dense"]["parameters"], rel=0.01
    )


@pytest.mark.slow
@pytest.mark.parametrize("layers", [1, "auto"])
def test_one_budget_for_depth_heads_and_all_widths(layers: Any, runs: Runs, tmp_path: Path) -> None:
    kinds = ("ffn", "heads", "query_group", "hidden")
    sheared = runs(tmp_path / "run", kinds=kinds, saliency="taylor", layers=layers, ratio=0.4, tokens=0)
    gone, cuts = sheared.record["layers"]["paths"], sheared.record["prune"]["cuts"]
    assert depth(sheared.model) == 4 - len(gone) and (layers == "auto" or len(gone) == layers)
    assert cuts["ffn"][0] > 0 and cuts["hidden"][0] > 0
    assert sheared.record["cut"]["parameters"] == pytest.approx(0.6 * sheared.record["dense"]["parameters"], rel=0.03)
    full = LlamaForCausalLM.from_pretrained(runs.model).eval()
    report = shearfx.verify(full, sheared.plan, input_ids=IDS, use_cache=False)
    assert report.max_relative_error <= TOLERANCE < report.moved


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"layers": 4, "ratio": 0.5}, "4 layers are to go, and at most 3 can"),
        ({"layers": 3, "ratio": 0.3}, "make .* parameters, and .* are to go"),
        ({"layers": 1, "ratio": 0.5, "exclude": ("model.layers.*",)}, "at most 0 can"),
        ({"layers": 1, "ratio": 0.5, "exclude": ("model.layers.*.mlp.up_proj",)}, "at most 0 can"),
        ({"layers": 1, "ratio": 0.5, "exclude": ("model.strata.*",)}, "matches no module"),
        ({"layers": -1}, "number of layers"),
        ({"layers": "many"}, "layers"),
    ],
)
def test_layers_that_cannot_go_are_refused(runs: Runs, tmp_path: Path, asked: dict[str, Any], match: str) -> None:
    with pytest.raises(PlanError, match=match):
        runs(tmp_path / "run", **asked)


def test_what_is_excluded_stays_whole_when_layers_before_it_went(runs: Runs, tmp_path: Path) -> None:
    """The last layer is the third one then; a layer with something excluded in it does not go either."""
    excluded = ("model.layers.[03].mlp.up_proj", "model.layers.2.self_attn.*")
    sheared = runs(tmp_path / "run", layers=1, ratio=0.25, tokens=0, exclude=excluded)
    assert sheared.record["layers"]["paths"] == ["model.layers.1"]
    full, small = LlamaForCausalLM.from_pretrained(runs.model), sheared.model
    for before, after, whole in ((0, 0, "mlp.up_proj"), (3, 2, "mlp.up_proj"), (2, 1, "self_attn.v_proj")):
        old, new = (m.get_submodule(f"model.layers.{i}.{whole}").weight for m, i in ((full, before), (small, after)))
        assert old.shape == new.shape, whole
    sizes = {tensor.shape for name, tensor in small.state_dict().items() if "mlp.up_proj" in name}
    assert len(sizes) == 2  # the one between was cut


@pytest.mark.parametrize("way", [{"cuts": 1}, {"cuts": 1, "compensation": "none"}, {"cuts": 4}], ids=str)
def test_widths_lose_what_the_runs_own_cuts_lose(
    way: dict[str, Any], runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of the measured shares is the cut that the run makes if no layer goes."""
    measured: list[float] = []
    losses: list[Any] = []

    def chosen(self: shortening_module.Shortening, layers: Any) -> Damages:
        batches = self.study.batches(4, 1)

        def loss() -> float:
            with torch.no_grad():
                return float(call_loss(self.full.held.work, torch.cat(batches)))

        shares = [1.0] if way["cuts"] == 1 else [0.25, 0.5, 0.75, 1.0]
        before = loss()
        measured.extend(self.pruning.lost_by_share(shares, loss))
        assert loss() == before
        losses.append(lambda model: float(call_loss(model, torch.cat(batches))))
        return Damages((), (before,), ())

    monkeypatch.setattr(shortening_module.Shortening, "_chosen", chosen)
    sheared = runs(tmp_path / "run", layers="auto", ratio=0.3, tokens=0, dtype="float32", **way)
    with torch.no_grad():
        assert measured[-1] == pytest.approx(losses[0](sheared.model), rel=1e-5)


@given(count=st.integers(0, 4))
def test_where_no_number_of_layers_is_enough_all_go(count: int) -> None:
    """Then the error about the ratio counts them among what can go."""
    paths = tuple(f"layers.{n}" for n in range(count))
    found = Damages(paths, tuple(map(float, range(count + 1))), (1,) * count)
    assert best_split(found, [1] * count, lambda share: math.inf, 10).paths == paths


@given(
    costs=st.lists(st.floats(0.01, 5), min_size=2, max_size=6),
    widths=st.lists(st.floats(0, 5), min_size=3, max_size=3),
    sizes=st.integers(1, 40),
)
def test_no_other_number_of_layers_loses_less(costs: list[float], widths: list[float], sizes: int) -> None:
    losses = [0.0]
    for cost in sorted(costs):
        losses.append(losses[-1] + cost)
    found = Damages(tuple(f"layers.{i}" for i in range(len(costs))), tuple(losses), (sizes,) * len(costs))
    amount = sizes * (len(costs) + 1)

    def lost(share: float) -> float:
        return sum(w * share**k for k, w in enumerate(widths))

    best = best_split(found, [sizes] * len(costs), lost, amount)
    total = [losses[n] + lost(1 - n * sizes / amount) for n in range(len(costs) + 1)]
    assert total[len(best.paths)] == min(total)
    assert best.losses == tuple(losses[: len(best.paths) + 1])


@settings(max_examples=30)
@given(worth=st.lists(st.floats(0, 1), min_size=2, max_size=5), count=st.integers(1, 4))
def test_layers_go_in_the_order_of_their_worth(worth: list[float], count: int) -> None:
    """A tower whose loss is the sum of what is skipped: greedy is then optimal."""
    tower = torch.nn.ModuleList(Adding(w) for w in worth)
    model = torch.nn.ModuleDict({"layers": tower})

    def loss() -> float:
        x = torch.zeros(1, dtype=torch.float64)
        for layer in tower:
            x = layer(x)
        return -float(x)

    nowhere: Any = None
    layers = [Layer(f"layers.{i}", nowhere, nowhere, 1) for i in range(len(worth))]
    found = least_damage(model, layers, loss, until=lambda f: len(f.paths) == count)
    expected = sorted(worth)[: min(count, len(worth) - 1)]
    assert [worth[int(path.rpartition(".")[2])] for path in found.paths] == pytest.approx(expected)
    assert found.losses[-1] - found.losses[0] == pytest.approx(sum(expected), abs=1e-9)
    assert not any(layer._forward_hooks for layer in tower)


def test_candidates_are_found_by_a_cheaper_loss_and_chosen_by_the_true_one() -> None:
    worth = {str(n): float(n) for n in range(20)}
    screened: list[str] = []

    def screen(gone: Sequence[str]) -> float:
        screened.extend(gone)
        return float(int(gone[0]) // 4)

    def without(gone: Sequence[str]) -> float:
        return sum(worth[name] for name in gone)

    def two(found: Damages) -> bool:
        return len(found.paths) == 2

    told: list[tuple[int, int]] = []
    found = least_missed(
        dict.fromkeys(reversed(worth), 1), without, until=two, screen=screen,
        progress=lambda *done: told.append(done),
    )  # fmt: skip
    assert found.paths == ("0", "1") and found.losses == (0.0, 0.0, 1.0)
    assert sorted(screened) == sorted(worth) and told[-1] == (1 + 20 + 2 * 8, 1 + 20 + 2 * 8)


class Adding(torch.nn.Module):
    def __init__(self, worth: float) -> None:
        super().__init__()
        self.worth = worth

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.worth
