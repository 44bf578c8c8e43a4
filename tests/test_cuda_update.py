"""AdamW and SGD by kernels, on the host: torch's own in float64 is what they have to be."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shearfx.cuda.updating import Updating
from tests.cuda_host.building import HostLauncher


def made(variant: str, params: Any, options: dict[str, Any]) -> torch.optim.Optimizer:
    own = dict(options)
    own.pop("momentum" if variant == "adamw" else "betas")
    return torch.optim.AdamW(params, **own) if variant == "adamw" else torch.optim.SGD(params, **own)


@settings(max_examples=25)
@given(
    variant=st.sampled_from(["adamw", "sgd"]), seed=st.integers(0, 999), steps=st.integers(1, 5),
    sizes=st.lists(st.sampled_from([0, 1, 7, 256, 8192, 8193]), min_size=1, max_size=4),
    lr=st.sampled_from([1e-3, 0.1]), weight_decay=st.sampled_from([0.0, 0.1]), momentum=st.sampled_from([0.0, 0.9]),
    betas=st.sampled_from([(0.9, 0.999), (0.0, 0.5)]), dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    as_tensor=st.booleans(),
)  # fmt: skip
def test_steps_are_torchs(
    variant: Any, seed: int, steps: int, sizes: list[int], lr: float, weight_decay: float, momentum: float,
    betas: tuple[float, float], dtype: torch.dtype, as_tensor: bool,
) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    options = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas}
    ours = [nn.Parameter(torch.randn(n, generator=generator).to(dtype)) for n in sizes]
    theirs = [nn.Parameter(p.detach().double()) for p in ours]
    unused = nn.Parameter(torch.ones(3))  # without a gradient
    mine, other = made(variant, [*ours, unused], options), made(variant, theirs, options)
    if as_tensor:
        mine.param_groups[0]["lr"] = torch.tensor(lr)
    updating = Updating(HostLauncher(seed=seed), variant)
    for step in range(steps):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=generator).to(dtype)
            q.grad = p.grad.double()
        if step == 2:  # as a scheduler does
            mine.param_groups[0]["lr"] = torch.tensor(lr / 2) if as_tensor else lr / 2
            other.param_groups[0]["lr"] = lr / 2
        assert updating.unfit(mine.param_groups) is None
        updating.step(mine.param_groups, mine.state)
        other.step()
    # each step of AdamW moves by about lr, each of SGD by lr times sums of gradients; stored in 8 or 24 bits
    coarse = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-21
    for p, q in zip(ours, theirs, strict=True):
        assert bool(((p.double() - q).abs() <= steps * coarse * (q.abs() + 1 + 40 * lr)).all())
    assert torch.equal(unused, torch.ones(3)) and unused not in mine.state


@pytest.mark.parametrize("variant", ["adamw", "sgd"])
def test_a_state_goes_from_torch_to_kernels_and_back(variant: Any) -> None:
    options = {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.9, "betas": (0.9, 0.99)}
    torch.manual_seed(0)
    p, q = nn.Parameter(torch.randn(300)), nn.Parameter(torch.empty(0))
    q = nn.Parameter(p.detach().clone())
    one, other = made(variant, [p], options), made(variant, [q], options)
    updating = Updating(HostLauncher(), variant)
    for step in range(6):
        p.grad = torch.randn(300)
        q.grad = p.grad.clone()
        if step % 2:
            updating.step(one.param_groups, one.state)
        else:
            one.step()
        other.step()
        one.load_state_dict(copy.deepcopy(one.state_dict()))
    torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    assert one.state_dict()["state"][0].keys() == other.state_dict()["state"][0].keys()


@pytest.mark.parametrize("variant", ["adamw", "sgd"])
def test_a_state_that_lies_otherwise_than_its_parameter_is_brought_in_order(variant: Any) -> None:
    options = {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.9, "betas": (0.9, 0.99)}
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(20, 30))
    q = nn.Parameter(p.detach().clone())
    one, other = made(variant, [p], options), made(variant, [q], options)
    for step in range(2):
        p.grad = torch.randn(20, 30)
        q.grad = p.grad.clone()
        other.step()
        if step == 0:
            one.step()
            for name, kept in one.state[p].items():
                if isinstance(kept, torch.Tensor) and kept.dim():
                    one.state[p][name] = kept.double().T.contiguous().T
        else:
            Updating(HostLauncher(), variant).step(one.param_groups, one.state)
    torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_launches_do_not_grow_with_tensors_and_tables_stay() -> None:
    params = [nn.Parameter(torch.ones(5)) for _ in range(300)]
    for p in params:
        p.grad = torch.ones(5)
    launcher = HostLauncher()
    updating = Updating(launcher, "adamw")
    optimizer = torch.optim.AdamW(params)
    updating.step(optimizer.param_groups, optimizer.state)
    table = updating._table
    updating.step(optimizer.param_groups, optimizer.state)
    assert launcher.launches == ["count_steps", "adamw"] * 2 and updating._table is table


@pytest.mark.parametrize(("change", "why"), [
    ({"amsgrad": True}, "amsgrad"), ({"maximize": True}, "maximize"),
    ({"params": [nn.Parameter(torch.ones(3).double())]}, "torch.float64"),
    ({"params": [nn.Parameter(torch.ones(3, 4).T)]}, "beside each other"),
    ({"params": [nn.Parameter(torch.ones(3, device="meta"))]}, "on meta"),
])  # fmt: skip
def test_what_is_not_updated_here_is_named(change: dict[str, Any], why: str) -> None:
    group = torch.optim.AdamW([nn.Parameter(torch.ones(3))]).param_groups[0] | change
    assert why in str(Updating(HostLauncher(), "adamw").unfit([group]))
