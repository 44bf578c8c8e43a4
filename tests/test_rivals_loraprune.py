"""LoRAPrune: worked out on paper, the product written out, and iterative with a moving average inside LHSPG."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from shearfx.errors import PlanError
from shearfx.gradients import gradients
from shearfx.graph import Graph
from shearfx.saliency import LoraPrune, find
from tests.rivals import Two, analysed, case, loss_for, reordered, seen_groups, total
from tests.test_learnt_saliency import LORA, slices
from tests.test_saliency import state_of
from tests.tiny_models import fresh, learn_something, loss_of, optimizer, tied, traced


def test_a_case_worked_out_on_paper() -> None:
    """``U = [[1, 2], [3, 1]]`` has an adapter with ``A = [1, 0], B = [1, 2]'`` and scaling 2, so it is in effect
    ``[[3, 2], [7, 1]]``; ``d = [1, -1]`` has none. With ``x = (1, 1)`` the loss ``d U x`` has ``dW = [[1, 1], [-1,
    -1]]``, hence ``dB = 2 dW A' = (2, -2)`` and ``dA = 2 B' dW = (-2, -2)``.

    ``g / 2 = dB A + B dA - dB dA = [[2, 0], [-2, 0]] + [[-2, -2], [-4, -4]] - [[-4, -4], [4, 4]]
    = [[4, 2], [-10, -8]]``; structure 0: ``(8*3)^2 + (4*2)^2``, structure 1: ``(-20*7)^2 + (-16*1)^2``.
    """
    base = Two([[1, 2], [3, 1]], [[1, -1]])
    x = torch.tensor([[1.0, 1.0]]).double()
    graph, group = analysed(base, x)
    model: Any = get_peft_model(
        base, LoraConfig(r=1, lora_alpha=2, target_modules=["up"]), autocast_adapter_dtype=False
    )
    with torch.no_grad():
        model.base_model.model.up.lora_A["default"].weight.copy_(torch.tensor([[1.0, 0.0]]))
        model.base_model.model.up.lora_B["default"].weight.copy_(torch.tensor([[1.0], [2.0]]))
    once = LoraPrune(decay=0.0).score(graph, model, data=[x], loss=total)[group.name]
    assert once.tolist() == pytest.approx([24.0**2 + 8**2, 140.0**2 + 16**2], rel=1e-12)
    # twice the same: (1 - decay) and then decay (1 - decay) + (1 - decay)
    twice = LoraPrune(decay=0.9).score(graph, model, data=[x, x], loss=total)[group.name]
    torch.testing.assert_close(twice, once * (0.1 + 0.09), rtol=1e-12, atol=0)


def written_out(model: Any, brought: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Effective weights and estimated gradients by the base's own names, from PEFT's own products."""
    weights, estimates = {}, {}
    for path, layer in model.named_modules():
        if hasattr(layer, "get_delta_weight") and hasattr(layer, "base_layer"):
            name = path.removeprefix("base_model.model.") + ".weight"
            weights[name] = (layer.base_layer.weight + layer.get_delta_weight("default")).detach()
            delta = {}
            for key in ("plain", "a", "b", "both"):
                factors = [(n, p) for n, p in layer.named_parameters() if "lora_" in n]
                before = [p.detach().clone() for _, p in factors]
                with torch.no_grad():
                    for n, p in factors:
                        if key in ("both", "a" if "_A" in n else "b"):
                            p.copy_(brought[f"{path}.{n}"])
                    delta[key] = layer.get_delta_weight("default").detach().clone()
                    for (_, p), old in zip(factors, before, strict=True):
                        p.copy_(old)
            estimates[name] = delta["b"] + delta["a"] - delta["both"]
    return weights, estimates


def adapted(name: str) -> Any:
    return learn_something(fresh(name, LORA[name], torch.float64))


def once(name: str, model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """Gradients of the adapters by name, in training's way."""
    model.zero_grad()
    loss: Any = loss_for(name) or (lambda m, b: m(**b, labels=b["input_ids"]).loss)
    loss(model, batch).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def imports(name: str, graph: Graph, model: Any, brought: dict[str, Tensor]) -> dict[str, Tensor]:
    weights, estimates = written_out(model, brought)
    zeros = {t.name: torch.zeros(t.shape, dtype=torch.float64) for t in graph.parameters()}
    found = {}
    for group in seen_groups(name):
        rows = [(slices(group, i, weights, zeros), slices(group, i, estimates, zeros)) for i in range(group.size)]
        found[group.name] = torch.stack([(g * w).square().sum() for w, g in rows])
    return found


@pytest.mark.parametrize("name", LORA)
def test_it_is_what_the_paper_says_with_the_product_written_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shearfx.low_rank.CHUNK", 100)  # rows in parts
    model, (_, graph, data) = adapted(name), case(name)
    expected = {g.name: torch.zeros(g.size, dtype=torch.float64) for g in seen_groups(name)}
    for batch in data:
        for group, new in imports(name, graph, model, once(name, model, batch)).items():
            expected[group] = 0.75 * expected[group] + 0.25 * new
    model.zero_grad()
    scores = LoraPrune(0.75).score(graph, model, groups=seen_groups(name), data=iter(data), loss=loss_for(name))
    for group, score in scores.items():
        assert bool((score > 0).all())
        torch.testing.assert_close(score, expected[group], rtol=1e-9, atol=0)


def test_the_frozen_weight_gets_no_gradient_and_the_model_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (_, graph, data) = adapted("llama"), case("llama")
    model.train()
    before, asked = list(state_of(model)), []

    def watched(model: Any, weights: Any, receive: Any) -> Any:
        asked.extend(weights)
        return gradients(model, weights, receive)

    monkeypatch.setattr("shearfx.saliency.loraprune.gradients", watched)
    LoraPrune().score(graph, model, groups=seen_groups("llama"), data=data)
    assert asked and all(name.endswith((".a", ".b")) for name in asked)
    assert list(state_of(model)) == before
    with pytest.raises(ZeroDivisionError):
        LoraPrune().score(graph, model, groups=seen_groups("llama"), data=(data[1 // i] for i in (1, 0)))
    assert list(state_of(model)) == before


def test_structures_in_another_order_have_the_same_scores() -> None:
    """The adapter's rows and columns go with those of the weights."""
    model, (_, graph, data) = adapted("llama"), case("llama")
    groups = [g for g in seen_groups("llama") if g.kind == "ffn"]
    base = dict(model.named_parameters())
    other, orders = reordered(fresh("llama", dtype=torch.float64), groups)
    twin: Any = get_peft_model(
        other, LoraConfig(r=3, lora_alpha=3, target_modules=LORA["llama"]["target_modules"]),
        autocast_adapter_dtype=False,
    )  # fmt: skip
    with torch.no_grad():
        for n, p in twin.named_parameters():
            if "lora_" in n:
                order = next((o for g, o in orders.items() if f"{g.split('down')[0]}" in f"{n}."), None)
                out, into = "up_proj.lora_B" in n, "down_proj.lora_A" in n
                p.copy_(base[n] if order is None or not (out or into) else base[n].index_select(int(into), order))
    before, after = (LoraPrune().score(graph, m, groups=groups, data=data) for m in (model, twin))
    for group in groups:
        torch.testing.assert_close(after[group.name], before[group.name][orders[group.name]], rtol=1e-9, atol=0)


def test_without_adapters_or_with_too_few_it_says_so() -> None:
    _, graph, data = case("llama")
    with pytest.raises(PlanError, match="no weight of a group has one"):
        find("loraprune").score(graph, fresh("llama"), data=data)
    few = fresh("llama", {"target_modules": ["q_proj"]})
    with pytest.raises(PlanError, match="'loraprune' does not see 4 groups of kind ffn, value_dim"):
        find("loraprune").score(graph, few, groups=seen_groups("llama"), data=data)
    with pytest.raises(PlanError, match="looks at data"):
        find("loraprune").score(graph, adapted("llama"))
    with pytest.raises(PlanError, match="no share"):
        LoraPrune(1.0)


# -- inside LHSPG ------------------------------------------------------------------------------------------


def test_in_training_the_average_goes_on_over_periods_and_structures_go_on_the_way() -> None:
    name = "llama"
    model = learn_something(fresh(name, {"r": 3}, torch.float64))
    graph, kinds = traced(name)[1], ["ffn"]
    opt = optimizer(name, model, saliency=LoraPrune(0.5), tied=tied(name, kinds), target=12, warmup=2, periods=3,
                    period_length=2, merge="period", lr=1e-3)  # fmt: skip
    groups = [g for g in graph.groups if g.kind == "ffn"]
    average = {g.name: torch.zeros(g.size, dtype=torch.float64) for g in groups}
    taken: list[dict[str, Tensor]] = []
    take = opt.scorer.take

    def watched(period: int) -> dict[str, Tensor]:
        taken.append(take(period))
        for group in groups:
            torch.testing.assert_close(taken[-1][group.name], average[group.name], rtol=1e-9, atol=0)
        return taken[-1]

    opt.scorer.take = watched  # type: ignore[method-assign]
    for step in range(8):
        opt.zero_grad()
        loss_of(name, model, step).backward()
        brought = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        for group, new in imports(name, graph, model, brought).items():
            if group in average:
                average[group] = 0.5 * average[group] + 0.5 * new
        opt.step()
    assert len(taken) == 3 and [sum(map(len, pick.values())) for pick in opt.picks] == [4, 4, 4]
    gone_before: dict[str, set[int]] = {g.name: set() for g in groups}
    for scores, pick in zip(taken, opt.picks, strict=True):
        for group, gone in pick.items():
            left = sorted(set(range(24)) - gone_before[group], key=lambda i: float(scores[group][i]))
            assert set(gone) == set(left[: len(gone)])
            gone_before[group] |= set(gone)


def test_a_run_that_is_resumed_has_the_same_average() -> None:
    name = "llama"
    options: dict[str, Any] = {"saliency": "loraprune", "tied": tied(name, ["ffn"]), "target": 8, "warmup": 3,
                               "periods": 2, "period_length": 2, "merge": "never"}  # fmt: skip

    def steps(model: nn.Module, opt: Any, at: Any) -> None:
        for step in at:
            opt.zero_grad()
            loss_of(name, model, step).backward()
            opt.step()

    model = learn_something(fresh(name, {}))
    opt = optimizer(name, model, **options)
    steps(model, opt, range(2))
    state, weights = copy.deepcopy(opt.state_dict()), {n: p.detach().clone() for n, p in model.named_parameters()}
    steps(model, opt, range(2, 7))
    other = fresh(name, {})
    with torch.no_grad():
        for n, p in other.named_parameters():
            p.copy_(weights[n])
    again = optimizer(name, other, **options)
    again.load_state_dict(state)
    steps(other, again, range(2, 7))
    assert again.picks == opt.picks and len(opt.picks) == 2
    assert opt.scorer.average is not None and again.scorer.average is not None
    assert opt.scorer.average.seen == again.scorer.average.seen == 7
    for (group, score), twin in zip(
        opt.scorer.average.scores().items(), again.scorer.average.scores().values(), strict=True
    ):
        assert torch.equal(score, twin), group


def test_a_step_that_overflowed_counts_for_nothing_and_no_step_is_an_error() -> None:
    model, graph = adapted("llama"), traced("llama")[1]
    average = LoraPrune().average(graph, model, seen_groups("llama"))
    with pytest.raises(PlanError, match="has seen no gradient"):
        average.scores()
    once("llama", model, case("llama")[2][0])
    average.add()
    before = average.scores()
    gradient = next(iter(average.factors().values())).grad
    assert gradient is not None
    gradient.fill_(float("inf"))
    average.add()
    assert average.seen == 1 and all(torch.equal(before[n], s) for n, s in average.scores().items())
