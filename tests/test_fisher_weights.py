"""Fisher information of groups that no module's input stands for: fused experts, raw parameters."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import nn

import shearfx
from shearfx.errors import PlanError
from shearfx.gating.gates import Gates
from shearfx.saliency.compensated import CompensatedFisher
from shearfx.saliency.fisher import Fisher
from tests import zoo
from tests.zoo import float_outputs

# of torch's grouped product, of picked matrices, of einsum; [experts, out, in] and [experts, in, out]
NAMES = ["mixtral", "gpt_oss", "moe_einsum"]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("qwen3_moe", "granitemoe")]


@pytest.mark.parametrize("name", [*NAMES, *SLOW])
def test_is_the_squared_derivative_by_a_factor_of_what_is_read(name: str) -> None:
    entry = zoo.get(name)
    built = entry.build()
    graph = shearfx.trace(built.module, *built.args, **built.kwargs)
    built = built.to(torch.float64)
    module = built.module.requires_grad_(False)

    def loss(model: nn.Module, batch: zoo.Call) -> torch.Tensor:
        outputs = float_outputs(model(*batch[0], **batch[1]))
        return torch.stack([out.sin().sum() for out in outputs]).sum()

    places = Gates(graph, module, [g for g in graph.groups if g.certificate == "exact"]).places
    in_weights = {weight.group for weight in places.weights} & places.inputs_only
    groups = [g for g in graph.groups if g.name in in_weights]
    assert groups
    call = (built.args, built.kwargs)
    scores = Fisher().score(graph, module, groups=groups, data=[call], loss=loss)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in module.parameters())
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for group in groups:
        factor = torch.ones(group.size, dtype=torch.float64, requires_grad=True)
        read = [(w.parameter, w.axis, w.where) for w in places.weights if w.group == group.name]
        for site in places.sites:  # linear layers that read the group too
            of = [where for name, where in site.where if name == group.name]
            read += [(cast(nn.Parameter, site.module.weight), 1, where) for where in of]
        changed = {}
        for parameter, axis, where in read:
            by = torch.where(where >= 0, factor[where], 1.0)
            shape = [-1 if dim == axis else 1 for dim in range(parameter.dim())]
            changed[names[id(parameter)]] = parameter * by.reshape(shape)
        outputs = float_outputs(torch.func.functional_call(module, changed, *call))
        torch.stack([out.sin().sum() for out in outputs]).sum().backward()
        assert factor.grad is not None and float(factor.grad.abs().max()) > 0
        sequences = max(
            len(x) for x in (*built.args, *built.kwargs.values()) if isinstance(x, torch.Tensor) and x.dim()
        )
        torch.testing.assert_close(scores[group.name] * sequences, factor.grad.square(), rtol=1e-9, atol=0)


def test_scores_are_the_same_beside_groups_that_modules_read() -> None:
    """All are per sequence, though those of experts cannot be told apart."""
    built = zoo.get("mixtral").build()
    graph = shearfx.trace(built.module, *built.args, **built.kwargs)
    ffn, heads = ([g for g in graph.groups if g.kind == kind] for kind in ("ffn", "heads"))
    data = [{"input_ids": torch.arange(20).reshape(4, 5) % 7}]
    alone = Fisher().score(graph, built.module, groups=ffn, data=data)
    beside = Fisher().score(graph, built.module, groups=[*ffn, *heads], data=data)
    for name, score in alone.items():
        torch.testing.assert_close(score, beside[name])


def test_what_experts_cannot_take_over_is_not_made_up() -> None:
    built = zoo.get("mixtral").build()
    graph = shearfx.trace(built.module, *built.args, **built.kwargs)
    ffn = [g for g in graph.groups if g.kind == "ffn"]
    data = [{"input_ids": torch.arange(20).reshape(4, 5) % 7}]
    with pytest.raises(PlanError, match="'compensated_fisher' does not see 2 groups of kind ffn"):
        CompensatedFisher().score(graph, built.module, groups=ffn, data=data)
