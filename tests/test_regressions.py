"""Minimal architectures on which the compiler was once wrong, or failed. Each was found by test_properties.py."""

import pytest
import torch
from torch import nn

import shearfx
from shearfx.analysis import trace
from shearfx.errors import PlanError
from shearfx.pruning_plan import of_cuts
from shearfx.testing import Architecture, Linear, Trap, assert_sound
from shearfx.testing.blocks import Residual
from shearfx.testing.space import ToTokens

# (architecture, whether something in it can be cut)
CASES = {
    # both operands of x[:, None] + x[None, :] mention the atom, but only one of them has the dim that is summed over
    "a dim met twice, summed over once": (
        Architecture("tokens", 3, (Linear(4), Trap("pairwise_sum", 0)), "sum"),
        False,
    ),
    "an einsum sums what one operand has": (
        Architecture("tokens", 3, (Linear(4), Trap("einsum_free", 0)), "sum"),
        False,
    ),
    "the same with a buffer": (Architecture("tokens", 3, (Linear(4), Trap("einsum_free2", 0)), "sum"), False),
    # measured only on numbers up to 30, these looked as if they were always zero
    "a mask that is rarely true": (Architecture("tokens", 3, (Linear(4), Trap("rare_mask", 0)), "sum"), False),
    "an index compared with 50": (Architecture("tokens", 3, (Linear(4), Trap("rare_equal", 0)), "sum"), False),
    "a threshold of 40": (Architecture("tokens", 3, (Linear(4), Trap("threshold", 0)), "sum"), False),
    # the trap handed on two tokens, however many came
    "a recurrence beside its input": (
        Architecture("image", 4, (Linear(4, bias=False), ToTokens(), Residual((Trap("state", 4),))), "linear"),
        True,
    ),
    "tile by fewer numbers than dims": (Architecture("flat", 3, (Linear(2), Trap("tile", 0), Linear(2))), True),
}


@pytest.mark.parametrize("name", CASES)
def test_sound(name: str) -> None:
    architecture, prunable = CASES[name]
    if prunable:
        assert assert_sound(*architecture.example(), plans=6).moved > 0
    else:
        with pytest.raises(PlanError, match="nothing"):
            assert_sound(*architecture.example())
        module, *inputs = architecture.example()
        assert not any("failed" in pin.reason for pin in trace(module, *inputs).pins)


def test_an_epsilon_left_open_is_that_of_the_traced_dtype() -> None:
    """A norm that is not cut, called more than once: float64 has another default epsilon than float32."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up, self.down = nn.RMSNorm(6), nn.Linear(6, 8), nn.Linear(8, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.norm(x + self.down(torch.relu(self.up(self.norm(x)))))
            return out

    torch.manual_seed(0)
    model, x = Twice().eval(), 1e-3 * torch.randn(4, 6)
    graph = shearfx.trace(model, x)
    plan = of_cuts(graph, {g.name: range(5) for g in graph.groups if g.size == 8}, options={"form": "fx"})
    assert shearfx.verify(model, plan, x, graph=graph).max_relative_error <= 1e-10
