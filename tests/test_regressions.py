"""Minimal architectures on which the compiler was once wrong, or failed. Each was found by test_properties.py."""

import pytest

from shearfx.analysis import trace
from shearfx.errors import PlanError
from shearfx.testing import Architecture, Linear, Trap, assert_sound

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
