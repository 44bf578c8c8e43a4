"""Second moments of what goes into layers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shearfx.gating import moments
from shearfx.gating.sites import GateSite


@settings(max_examples=40)
@given(st.integers(1, 20), st.integers(1, 7), st.lists(st.integers(0, 9), min_size=1, max_size=3), st.booleans())
def test_blocks_of_a_second_moment_make_the_whole(size: int, block: int, batches: list[int], half: bool) -> None:
    torch.manual_seed(size)
    layer = nn.Linear(size, 2, dtype=torch.bfloat16 if half else torch.float32)
    site = GateSite("layer", layer, "in", -1, size, ())
    rows = [torch.randn(3, count, size).to(layer.weight) for count in batches]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments, "BLOCK", block)
        with moments.second_moments([site]) as sums, torch.no_grad():
            for one in rows:
                layer(one)
    every = torch.cat([one.reshape(-1, size) for one in rows]).double()
    torch.testing.assert_close(sums["layer"].double(), every.T @ every, rtol=1e-5, atol=1e-5)
    assert torch.equal(sums["layer"], sums["layer"].T) or block > 1
