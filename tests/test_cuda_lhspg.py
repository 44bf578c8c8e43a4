"""LHSPG with kernels, on the host, beside LHSPG with torch: the same training, the same structures, the same zeros."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from shearfx.cuda import choosing
from shearfx.cuda.sources import Module
from shearfx.errors import PlanError
from shearfx.optim import LHSPG
from shearfx.optim.reading import Reader
from shearfx.optim.redundant_slices import Slices
from shearfx.saliency.learnt import displacement_sums
from tests.cuda_host.building import HostLauncher
from tests.tiny_models import fresh, learn_something, optimizer, scores_of, state_of, traced, train

HOST = HostLauncher()


@pytest.fixture(autouse=True)
def on_the_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels run wherever they are not switched off, as if the CPU were a card."""
    monkeypatch.setattr(choosing, "launcher", lambda device, kernels="auto": None if kernels == "torch" else HOST)
    monkeypatch.setattr(choosing, "_WARNED", set())
    HOST.launches.clear()
    yield


def both(name: str, lora: dict[str, Any] | None, steps: int, **options: Any) -> tuple[list[LHSPG], list[Any]]:
    found, models = [], []
    for kernels in ("torch", "cuda"):
        model = fresh(name, lora)
        if lora is not None:
            learn_something(model)
        given = {"scores": scores_of(name)} | options
        opt = optimizer(name, model, target=0.3, warmup=1, periods=2, period_length=2, kernels=kernels, **given)
        train(name, model, opt, steps)
        found.append(opt)
        models.append(model)
    return found, models


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("options", [
    {"carrier": "gates", "half_space_eps": 0.2}, {"carrier": "weights", "half_space_eps": -math.inf, "merge": "never"},
    {"carrier": "weights", "half_space_eps": 0.2, "merge": "period"},
    {"carrier": "weights", "penalty": "constant", "strength": 0.05, "variant": "sgd", "momentum": 0.9},
], ids=["gates", "ramp", "test", "constant"])  # fmt: skip
def test_training_with_kernels_is_training_with_torch(name: str, options: dict[str, Any]) -> None:
    (reference, kernels), (slow, fast) = both(name, {}, 6, **options)
    assert kernels.picks == reference.picks and kernels.zeros == reference.zeros and kernels.zeros
    # six steps in float32, whose sums are made in another order
    for key, tensor in state_of(slow).items():
        torch.testing.assert_close(state_of(fast)[key], tensor, rtol=2e-3, atol=2e-4)
    used = set(HOST.launches)
    assert {"count_steps", "adamw"} <= used or "sgd" in used
    assert {"replace_lines", "clear_factors", "decide"} <= used or options["carrier"] == "gates"


def test_the_reference_launches_nothing() -> None:
    model = learn_something(fresh("llama", {}))
    opt = optimizer("llama", model, target=0.2, warmup=0, periods=1, period_length=2, scores=scores_of("llama"),
                    kernels="torch", carrier="weights")  # fmt: skip
    train("llama", model, opt, 2)
    assert not HOST.launches


def test_weights_that_are_trained_themselves_are_left_to_torch() -> None:
    (reference, kernels), (slow, fast) = both("perceptron", None, 5, carrier="weights", half_space_eps=0.1)
    assert kernels.zeros == reference.zeros and kernels.zeros and "replace_lines" not in HOST.launches
    for key, tensor in state_of(slow).items():
        torch.testing.assert_close(state_of(fast)[key], tensor, rtol=1e-3, atol=1e-5)


def test_slices_of_a_later_period_are_not_taken_for_those_before() -> None:
    """They are other objects in the same memory, of the same weights."""
    linear = torch.nn.Linear(8, 30).requires_grad_(False)
    reader = Reader("cuda")
    for i in range(30):
        index = torch.tensor([i])
        (found,) = reader.squares([Slices("g", "weight", linear, "weight", 0, index, torch.tensor([0]), None)])
        torch.testing.assert_close(found, linear.weight[i].square().sum()[None])


def test_sums_that_saliencies_are_made_of() -> None:
    _, graph = traced("llama")
    model = learn_something(fresh("llama", {}))
    slow, fast = (displacement_sums(graph, model, graph.groups, kernels) for kernels in ("torch", "cuda"))
    assert "product_rows" in HOST.launches and "product_columns" in HOST.launches
    for name, one in slow.items():
        for field in ("count", "weight", "inner", "delta"):
            a, b = getattr(one, field), getattr(fast[name], field)
            room = (one.weight * one.delta).sqrt() if field == "inner" else a.abs()
            assert bool(((a - b).abs() <= 1e-4 * room + 1e-12).all()), (name, field)
        assert one.adapted == fast[name].adapted


def test_gradients_stand_where_adapters_are_not() -> None:
    _, graph = traced("llama")
    model = fresh("llama")
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    slow, fast = (displacement_sums(graph, model, graph.groups, kernels) for kernels in ("torch", "cuda"))
    assert {"dense_rows", "dense_columns"} <= set(HOST.launches)
    for name, one in slow.items():
        torch.testing.assert_close(fast[name].delta, one.delta, rtol=1e-5, atol=0)
        assert bool(((fast[name].inner - one.inner).abs() <= 1e-5 * (one.weight * one.delta).sqrt()).all())


def test_a_run_goes_on_where_its_state_was_saved() -> None:
    options = {"target": 0.3, "warmup": 0, "periods": 2, "period_length": 3, "scores": scores_of("llama"),
               "carrier": "weights", "merge": "never", "kernels": "cuda", "half_space_eps": 0.3}  # fmt: skip
    model = learn_something(fresh("llama", {}))
    opt = optimizer("llama", model, **options)
    train("llama", model, opt, 4)
    saved = copy.deepcopy(opt.state_dict())  # the tensors in it are those that training goes on with
    trained = {k: v.clone() for k, v in state_of(model).items() if "lora_" in k}
    train("llama", model, opt, 2, start=4)

    other = learn_something(fresh("llama", {}))
    other.load_state_dict(trained, strict=False)
    again = optimizer("llama", other, **options)
    again.load_state_dict(saved)
    train("llama", other, again, 2, start=4)
    assert again.zeros == opt.zeros
    for key, tensor in state_of(model).items():
        torch.testing.assert_close(state_of(other)[key], tensor, rtol=1e-4, atol=1e-6)


def test_what_kernels_cannot_take_is_said_once_and_done_by_torch() -> None:
    def run(kernels: str) -> LHSPG:
        model = learn_something(fresh("llama", {}, torch.float64))
        opt = optimizer("llama", model, target=0.2, warmup=0, periods=1, period_length=2, carrier="weights",
                        scores=scores_of("llama"), kernels=kernels)  # fmt: skip
        train("llama", model, opt, 2)
        return opt

    with pytest.warns(UserWarning) as seen:
        zeros = run("auto").zeros
    said = [str(w.message) for w in seen if "CUDA kernels" in str(w.message)]
    assert len(said) == len(set(said)) and any("torch.float64" in text for text in said)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*CUDA kernels.*")
        assert run("auto").zeros == zeros
    with pytest.raises(PlanError, match=r"torch\.float64"):
        run("cuda")


class Broken(HostLauncher):
    """A card on which one of the sources does not compile."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def load(self, module: Module) -> None:
        if module.name == self.name:
            raise RuntimeError("NVRTC_ERROR_COMPILATION")
        super().load(module)

    def launch(self, module: Module, *rest: Any) -> None:
        self.load(module)
        super().launch(module, *rest)


@pytest.mark.parametrize(("broken", "options"), [
    ("statistics_product", {"carrier": "weights", "half_space_eps": 0.2}), ("step_replace", {"carrier": "weights"}),
    ("statistics_product", {"carrier": "gates", "half_space_eps": 0.2}),
    ("statistics_product", {"scores": None, "saliency": "lora_magnitude"}),
], ids=["test", "step", "gates", "scoring"])  # fmt: skip
def test_what_does_not_compile_stops_no_training(
    broken: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Broken(broken)
    monkeypatch.setattr(choosing, "launcher", lambda device, kernels="auto": None if kernels == "torch" else card)

    def run(kernels: str) -> LHSPG:
        model = learn_something(fresh("llama", {}))
        given = {"scores": scores_of("llama"), "half_space_eps": -math.inf} | options
        opt = optimizer("llama", model, target=0.2, warmup=1, periods=1, period_length=2, kernels=kernels, **given)
        train("llama", model, opt, 3)
        return opt

    with pytest.warns(UserWarning) as seen:
        zeros = run("auto").zeros
    assert zeros == run("torch").zeros
    said = [str(w.message) for w in seen if "CUDA kernels" in str(w.message)]
    assert len(said) == 1 and f"{broken} does not compile or load here (NVRTC_ERROR_COMPILATION)" in said[0]


@pytest.mark.parametrize("broken", ["statistics_product", "step_replace"])
def test_what_does_not_compile_is_refused_before_training(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    card = Broken(broken)
    monkeypatch.setattr(choosing, "launcher", lambda device, kernels="auto": card)
    with pytest.raises(PlanError, match=f"{broken} does not compile or load here"):
        optimizer("llama", learn_something(fresh("llama", {})), target=0.2, kernels="cuda", carrier="weights",
                  scores=scores_of("llama"))  # fmt: skip
