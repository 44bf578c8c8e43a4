"""For test-suites: random architectures, random legal plans, and ``assert_sound``.

``assert_sound(model, *inputs)`` proves by many random plans that cutting a model is the same as zeroing it. The
strategies :func:`architectures` and :func:`plans` are for property tests with hypothesis, which must be installed.
The blocks (``Linear``, ``Residual``, ``Attention``, ...) are what random architectures are made of.
"""

from shearfx.testing.architectures import architectures, attentions, blocks
from shearfx.testing.blocks import (
    Act,
    Concat,
    Excite,
    Gate,
    Linear,
    Lora,
    Matrix,
    Norm,
    Residual,
    Shared,
    TiedPair,
)
from shearfx.testing.heads import Attention, PerHead, Position
from shearfx.testing.plans import plans, prunable, random_cuts, random_tied_cuts
from shearfx.testing.soundness import Soundness, assert_sound
from shearfx.testing.space import Conv, Depthwise, Shuffle, ToFlat, ToTokens, UNet
from shearfx.testing.spec import Architecture, Block, Shape
from shearfx.testing.traps import Trap

__all__ = [
    "Act", "Architecture", "Attention", "Block", "Concat", "Conv", "Depthwise", "Excite", "Gate", "Linear", "Lora",
    "Matrix", "Norm", "PerHead", "Position", "Residual", "Shape", "Shared", "Shuffle", "Soundness", "TiedPair",
    "ToFlat", "ToTokens", "Trap", "UNet", "architectures", "assert_sound", "attentions", "blocks", "plans",
    "prunable", "random_cuts", "random_tied_cuts",
]  # fmt: skip
