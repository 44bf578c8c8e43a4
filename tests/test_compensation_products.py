"""Least squares where no layer reads what is cut: fused experts, parameters multiplied as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

import shearfx
from shearfx.compensation import RIDGE, compensate_cut
from shearfx.errors import PlanError
from shearfx.precision import double_precision
from shearfx.pruning_plan import of_cuts
from tests.test_rivals_products import WAYS, raw, routed

KEPT = [0, 2, 3, 5, 8, 9, 11, 14, 15]


def call(model: nn.Module, batch: Tensor) -> Tensor:
    with double_precision():
        found: Tensor = model(batch)
    return found


def fit(read: Tensor, weight: Tensor, kept: list[int]) -> Tensor:
    """``[out, kept]``, worked out.

    Args:
        read: ``[rows, features]``.
        weight: the full one, ``[out, features]``.
        kept: features.
    """
    gone = [i for i in range(read.shape[1]) if i not in kept]
    moments = read.T @ read
    damped = moments[kept][:, kept]
    damped = damped + RIDGE * damped.diagonal().mean() * torch.eye(len(kept), dtype=read.dtype)
    change: Tensor = weight[:, gone] @ moments[gone][:, kept] @ torch.linalg.inv(damped)
    return weight[:, kept] + change


@pytest.mark.parametrize("way", ["grouped_mm", "batched_mm"])
def test_each_expert_is_fitted_to_the_tokens_that_come_to_it(way: str) -> None:
    model, graph, data = routed(way)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    (ffn,) = (g for g in graph.groups if g.size == 16)
    plan = of_cuts(graph, {ffn.name: KEPT})
    small: Any = shearfx.construct(model, plan)
    assert compensate_cut(graph, model, small, plan, data, call) == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    x = torch.tanh(model.inp(torch.cat([d.flatten(0, 1) for d in data])))
    with double_precision():
        _, _, chosen = model.moe.gate(x)
    experts: Any = model.moe.experts
    for e in range(4):
        gate, up = (x[(chosen == e).any(1)] @ experts.gate_up_proj[e].T).chunk(2, -1)
        wanted = fit(silu(gate) * up, experts.down_proj[e], KEPT)
        found = small.moe.experts.down_proj[e]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_an_expert_that_no_token_comes_to_stays_as_it_is_cut() -> None:
    model, graph, data = routed("grouped_mm")
    (ffn,) = (g for g in graph.groups if g.size == 16)
    plan = of_cuts(graph, {ffn.name: KEPT})
    small: Any = shearfx.construct(model, plan)
    token = data[0][:1, :1]
    compensate_cut(graph, model, small, plan, [token], call)
    with double_precision():
        _, _, chosen = model.moe.gate(torch.tanh(model.inp(token[0])))
    plain = model.moe.experts.down_proj[:, :, KEPT]
    for e in range(4):
        assert torch.equal(small.moe.experts.down_proj[e], plain[e]) == (e not in chosen)


@pytest.mark.parametrize("way", WAYS)
def test_a_parameter_multiplied_as_it_is_is_fitted_where_its_numbers_are_only_moved(way: str) -> None:
    model, graph, group, data = raw(way)
    kept = [0, 1, 4, 5]
    plan = of_cuts(graph, {group.name: kept})
    small: Any = shearfx.construct(model, plan)
    if way in ("turned and scaled", "joined"):
        with pytest.raises(PlanError, match="reads what the plan cuts"):
            compensate_cut(graph, model, small, plan, data, call)
        return
    assert compensate_cut(graph, model, small, plan, data, call) == 1
    rows = torch.tanh(torch.cat(data).flatten(0, 1) @ model.up).detach()
    wanted = fit(rows, model.read().detach().T, kept).T
    found = type(model).read(small).detach()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
