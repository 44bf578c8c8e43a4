"""What benchmarks.lhspg_step times, on the host: the same work on both sides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import lhspg_step
from shearfx.cuda import choosing
from shearfx.low_rank import LowRank
from tests.cuda_host.building import HostLauncher


def test_scoring_is_timed_as_it_is_asked_for_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    host = HostLauncher()
    monkeypatch.setattr(choosing, "launcher", lambda device, kernels="auto": None if kernels == "torch" else host)
    monkeypatch.setattr(lhspg_step, "extra_memory", lambda work: 0)
    seen: list[Any] = []

    def milliseconds(work: Callable[[], Any], repeats: int) -> float:
        seen.append(work())
        return float(len(seen))

    monkeypatch.setattr(lhspg_step, "milliseconds", milliseconds)
    base = nn.Module()
    base.weight = nn.Parameter(torch.randn(6, 8).bfloat16(), requires_grad=False)
    one = LowRank("l", base, nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(6, 2)), 1.0, False)
    row = lhspg_step.of_scoring([(one, 0)], host, 28, 1e9, 1)

    reference, kernels, bare = seen
    assert reference.keys() == kernels.keys() == {("0", 0)} and bare.shape == (3, 6)
    for slow, fast in zip(reference["0", 0], kernels["0", 0], strict=True):
        assert slow.dtype == fast.dtype == torch.float64
        torch.testing.assert_close(fast, slow, rtol=1e-3, atol=1e-3)
    assert (row["torch, ms"], row["kernels, ms"], row["launches, ms"], row["over torch"]) == (1, 2, 3, 0.5)
    assert set(row) <= set(lhspg_step.COLUMNS)
