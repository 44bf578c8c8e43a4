"""Whole branches in a run: which go, that they are gone and nothing else, and that a run cut off goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from shearfx.checkpoints import load
from shearfx.depth import least_missed
from shearfx.errors import PlanError
from shearfx.live_adapters import adapters_of
from shearfx.masking import mask
from shearfx.pipeline import emptying as emptying_module
from shearfx.pruning_plan import PruningPlan
from tests.tiny_runs import Runs, Telling, tiny_llama, write_model, write_text

IDS = torch.tensor([[5, 9, 200, 31, 7, 2]])
KINDS = ("ffn", "heads")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("branches")
    return Runs(write_model(folder / "model", num_hidden_layers=5), write_text(folder / "text.txt"))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


def emptied(plan: PruningPlan) -> set[str]:
    return {cut.name for cut in plan.cuts if not cut.kept}


def test_branches_go_first_and_count_towards_the_ratio(runs: Runs, tmp_path: Path) -> None:
    teller = Telling()
    sheared = runs(tmp_path / "run", teller=teller, branches=2, ratio=0.3, kinds=KINDS, distill=0.5)
    record = sheared.record
    assert emptied(sheared.plan) == set(record["branches"]["groups"]) and len(emptied(sheared.plan)) == 2
    assert any(cut.kept for cut in sheared.plan.cuts)
    assert record["recover"]["parameters"] == pytest.approx(0.7 * record["dense"]["parameters"], rel=0.01)
    assert sum(p.numel() for p in sheared.model.parameters()) == record["recover"]["parameters"]
    assert any("branches that go" in note for note in teller.told)
    again: Any = load(tmp_path / "run" / "model")
    assert torch.equal(logits(again), logits(sheared.model))
    assert again.generate(IDS, max_new_tokens=3, do_sample=False).shape == (1, 9)


def test_nothing_but_the_branches_goes_where_they_are_all_that_is_asked(runs: Runs, tmp_path: Path) -> None:
    """The cut model is the full one with the branches masked; its other layers are not refitted."""
    model = tiny_llama(num_hidden_layers=5)
    sheared = runs(tmp_path / "run", model, branches=1, ratio=0.0461, round_to=1, kinds=("heads",), tokens=0)
    assert len(sheared.plan.cuts) == 1 and not sheared.plan.cuts[0].kept
    torch.testing.assert_close(logits(sheared.model), logits(mask(model, sheared.plan)))


def test_those_that_are_missed_the_least_go(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[dict[str, float]] = []

    def told(params: Any, without: Any, **more: Any) -> Any:
        tried.append({name: without([name]) for name in params})
        return least_missed(params, without, **more)

    monkeypatch.setattr(emptying_module, "least_missed", told)
    sheared = runs(tmp_path / "run", branches=1, ratio=0.2, kinds=KINDS, tokens=0)
    (losses,) = tried
    assert emptied(sheared.plan) == {min(losses, key=losses.__getitem__)}
    assert len(losses) == 9  # five feed-forward parts, and the heads of all layers but the first


def test_a_run_that_was_cut_off_goes_on_to_the_same_model(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"branches": 2, "ratio": 0.3, "kinds": KINDS, "cuts": 2}
    whole = runs(tmp_path / "whole", **asked)

    class Killed(BaseException):
        pass

    def killed(*args: Any, **kwargs: Any) -> None:
        raise Killed

    for place in ("shearfx.pipeline.pruning.Pruning._shut", "shearfx.pipeline.pruning.Pruning._settled"):
        with monkeypatch.context() as patched:
            patched.setattr(place, killed)
            with pytest.raises(Killed):
                runs(tmp_path / "run", resume=(tmp_path / "run").exists(), **asked)
        assert "branches" in json.loads((tmp_path / "run" / "stages.json").read_text())
    resumed = runs(tmp_path / "run", resume=True, **asked)
    assert resumed.plan == whole.plan
    assert torch.equal(logits(resumed.model), logits(whole.model))


def test_auto_takes_the_split_that_loses_least(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {"branches": "auto", "ratio": 0.2, "kinds": KINDS, "tokens": 0}
    monkeypatch.setattr(emptying_module, "widths_lose", lambda *_: lambda share: 99 * share)
    many = runs(tmp_path / "many", **asked)
    assert len(emptied(many.plan)) > 1 and many.plan.achieved == pytest.approx(0.2, abs=0.01)
    monkeypatch.setattr(emptying_module, "widths_lose", lambda *_: lambda share: -99 * share)
    assert not emptied(runs(tmp_path / "none", **asked).plan)


def test_what_is_empty_gets_no_adapter(runs: Runs, tmp_path: Path) -> None:
    sheared = runs(tmp_path / "run", branches=2, ratio=0.3, kinds=KINDS, merge="never")
    assert adapters_of(sheared.model)
    assert all(one.a.numel() and one.b.numel() for one in adapters_of(sheared.model).values())
    base: Any = load(tmp_path / "run" / "model")
    with_adapter: Any = PeftModel.from_pretrained(base, str(tmp_path / "run" / "adapter"))
    assert torch.equal(logits(with_adapter.eval()), logits(sheared.model))


def test_branches_beside_layers_and_biases(runs: Runs, tmp_path: Path) -> None:
    """What an emptied branch gave on average its last layer goes on to give."""
    sheared = runs(
        tmp_path / "run", branches=2, layers=1, ratio=0.45, kinds=KINDS, compensation="bias", cuts=1, saliency="flap"
    )
    assert len(emptied(sheared.plan)) == 2 and len(sheared.record["layers"]["paths"]) == 1
    small: Any = sheared.model
    for name in emptied(sheared.plan):
        path = name.partition(".k_proj")[0] + ".o_proj" if "k_proj" in name else name.partition(".weight")[0]
        assert float(small.get_submodule(path).bias.detach().abs().max()) > 0
    assert torch.equal(logits(load(tmp_path / "run" / "model")), logits(small))


def test_fewer_that_fit_than_are_asked_for_is_an_error(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ratio has room for three attentions; the two wide parts that are missed the least here leave none."""

    def narrow(params: dict[str, int], without: Any, **more: Any) -> Any:
        return least_missed(params, lambda gone: -sum(params[name] for name in gone), **more | {"screen": None})

    monkeypatch.setattr(emptying_module, "least_missed", narrow)
    with pytest.raises(PlanError, match="of 3 branches the 1 that are missed the least make"):
        runs(tmp_path / "run", branches=3, ratio=0.14, kinds=KINDS)


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"branches": 10}, "10 branches are to go, and at most 9 can"),
        ({"branches": 9, "ratio": 0.3}, "make .* parameters, and .* are to go"),
        ({"branches": -1}, "number of branches"),
        ({"branches": "many"}, "branches"),
        ({"branches": 1, "scope": "uniform"}, "cuts all layers alike"),
        ({"branches": 1, "prune_share": 0.5}, "lets structures fade"),
    ],
)
def test_branches_that_cannot_go_are_refused(runs: Runs, tmp_path: Path, asked: dict[str, Any], match: str) -> None:
    with pytest.raises(PlanError, match=match):
        runs(tmp_path / "run", **({"kinds": KINDS} | asked))
