"""Hypothesis strategies that generate random architectures.

Needs ``hypothesis``; the blocks themselves, and so the regression tests made of them, do not.
"""

from __future__ import annotations

from shearfx.testing.blocks import (
    ACTIVATIONS,
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
from shearfx.testing.optional import st
from shearfx.testing.space import Conv, Depthwise, Shuffle, ToFlat, ToTokens, UNet
from shearfx.testing.spec import Architecture, Block
from shearfx.testing.traps import LAST, Trap

SIZES = st.sampled_from((4, 2, 3, 6, 1, 8, 5, 12, 7))
"""Few sizes, so that different dims often have the same one, and products of some equal others."""
SMALL = st.sampled_from((2, 1, 3, 4))


def architectures(max_blocks: int = 4) -> st.SearchStrategy[Architecture]:
    """Random architectures. ``architecture.build()`` is the module, ``architecture.inputs()`` its arguments.

    Args:
        max_blocks: the largest number of blocks in a row, skips not counted.
    """
    return st.sampled_from(("tokens", "words", "flat", "image", "signal")).flatmap(
        lambda kind: st.builds(
            Architecture,
            st.just(kind),
            SIZES,
            _body(kind, max_blocks),
            st.sampled_from(_heads(kind)),
            st.integers(0, 9),
        )
    )


def _heads(kind: str) -> tuple[str, ...]:
    return ("linear", "tied", "sum", "mean", "none") if kind == "words" else ("linear", "linear", "sum", "mean", "none")


def _body(kind: str, longest: int) -> st.SearchStrategy[tuple[Block, ...]]:
    """Blocks in a row; images and signals may become tokens or flat on the way, tokens may be pooled."""
    kind = "tokens" if kind == "words" else kind
    row = _row(kind, longest, depth=2)
    if kind == "flat":
        return row
    ends: list[st.SearchStrategy[tuple[Block, ...]]] = [
        st.just(()),
        st.tuples(st.builds(ToFlat, st.sampled_from(POOLS))),
    ]
    if kind != "tokens":
        ends.append(_row("tokens", 2, depth=1).map(lambda rest: (ToTokens(), *rest)))
    ends.append(st.tuples(st.builds(ToFlat, st.sampled_from(POOLS)), blocks("flat", 1)))
    return st.builds(lambda a, b: (*a, *b), row, st.one_of(ends))


POOLS = ("mean", "sum", "max", "flatten", "first", "adaptive", "logsumexp")


def _row(kind: str, longest: int, depth: int) -> st.SearchStrategy[tuple[Block, ...]]:
    return st.lists(blocks(kind, depth), min_size=1, max_size=longest).map(tuple)


def blocks(kind: str, depth: int = 1) -> st.SearchStrategy[Block]:
    """One block that takes tensors of a kind (``tokens``, ``flat``, ``signal``, ``image``).

    Args:
        depth: how deep blocks may hold blocks.
    """
    acts = st.sampled_from(sorted(ACTIVATIONS))
    simple: list[st.SearchStrategy[Block]] = [
        st.builds(Linear, SIZES, st.booleans()),
        st.builds(Act, acts),
        st.builds(Norm, st.sampled_from(NORMS[kind]), SMALL),
        st.builds(Gate, SIZES, st.sampled_from(GATES), acts),
        st.builds(Trap, st.sampled_from(sorted(LAST)), SIZES),
        st.builds(Trap, st.sampled_from(sorted(LAST)), st.just(0)),
        st.builds(Matrix, SIZES, st.sampled_from(("matmul", "addmm", "einsum"))),
        st.builds(TiedPair, SIZES, acts),
        st.builds(Lora, SIZES, SMALL, st.booleans()),
        st.builds(Excite, SMALL, acts),
    ]
    if kind in ("image", "signal"):
        simple += [
            st.builds(Conv, SIZES, SMALL, st.sampled_from((3, 1)), st.booleans(), st.booleans()),
            st.builds(Conv, SIZES, SMALL, st.sampled_from((3, 1)), st.booleans(), st.booleans()),
            st.builds(Depthwise, SMALL, st.booleans(), st.booleans()),
            st.builds(Shuffle, SMALL),
        ]
    else:
        simple.append(st.builds(PerHead, SMALL, SMALL, st.sampled_from(("linear", "mix", "scale", "norm", "swap"))))
    if kind == "tokens":
        simple += [attentions(), attentions(), st.builds(Position, st.booleans())]
    if depth:
        inner = _row(kind, 2, depth - 1)
        simple += [
            st.builds(Residual, inner, st.sampled_from(("add", "mul", "sub", "scaled"))),
            st.builds(Concat, inner, st.sampled_from(("after", "before", "twice"))),
            st.builds(Shared, inner),
        ]
        if kind in ("image", "signal"):
            simple.append(st.builds(UNet, inner, st.booleans(), st.sampled_from(("max", "avg"))))
    return st.one_of(simple)


NORMS = {
    "tokens": ("rms", "rms_offset", "rms_module", "rms_plain", "layer", "l2"),
    "flat": ("rms", "rms_offset", "rms_module", "rms_plain", "layer", "l2"),
    "signal": ("batch", "group", "instance", "rms", "l2"),
    "image": ("batch", "group", "instance", "rms", "l2"),
}
GATES = ("chunk", "split", "slice", "view", "interleaved", "separate")


def attentions() -> st.SearchStrategy[Attention]:
    """Attention in all its forms; a rotary embedding makes the head dim even."""
    made = st.builds(
        Attention, SMALL, SMALL, SMALL, SMALL, st.sampled_from(("separate", "concat", "grouped")),
        st.sampled_from(("matmul", "einsum", "sdpa", "scaled", "linear")),
        st.sampled_from(("expand", "interleave", "gqa", "view")), st.sampled_from(("", "half", "pairs")),
        st.booleans(), st.booleans(), st.booleans(),
    )  # fmt: skip
    return made.map(_even)


def _even(block: Attention) -> Attention:
    from dataclasses import replace

    return replace(block, dim=2 * block.dim) if block.rotary and block.dim % 2 else block
