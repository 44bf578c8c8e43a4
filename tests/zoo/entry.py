"""What the zoo holds: `Entry` (how to build a model and what it should offer to cut) and `Model` (built)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Family = Literal["text", "vision", "speech", "custom"]
Call = tuple[tuple[Any, ...], dict[str, Any]]

#: Every kind of structure an entry may claim in `Entry.structures`.
STRUCTURES = frozenset(
    {
        "ffn",  # width of a feed-forward block, shared experts included
        "heads",  # key/value head together with its group of query heads
        "query_group",  # query heads within a group (only where a group has more than one)
        "head_dim",  # query/key dim of a head
        "value_dim",  # value dim of a head
        "conv",  # channels between convolutions
        "expert",  # width of routed experts
        "ssm",  # inner width of a state-space or recurrent block
        "hidden_rms",  # residual width under RMSNorm (compensated)
        "hidden_layernorm",  # residual width under LayerNorm or GroupNorm (approximate)
    }
)


@dataclass
class Model:
    """A built model in eval mode, with example inputs.

    `args`, `kwargs` are the call to trace. `alternatives` are further calls: the first has the same
    arguments at another batch size and sequence length (or image size where the model takes any); token models
    with an `attention_mask` have a last one that adds it: a call of another signature, to be traced anew for the fx
    form.
    """

    module: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    alternatives: list[Call] = field(default_factory=list)

    def to(self, dtype: torch.dtype) -> Model:
        """The same model with parameters, buffers and floating inputs in `dtype` (the module is changed in place)."""

        def cast(value: Any) -> Any:
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        args, kwargs, alternatives = pytree.tree_map(cast, (self.args, self.kwargs, self.alternatives))
        return Model(self.module.to(dtype), args, kwargs, alternatives)

    def calls(self) -> list[Call]:
        """The traced call, then the alternatives."""
        return [(self.args, self.kwargs), *self.alternatives]


@dataclass(frozen=True)
class Entry:
    """A named factory.

    `build()` is deterministic: weights come from a generator seeded by the entry's name, already randomised
    (`zoo.randomize`) and, for attention models, sharpened by the factor recorded in `zoo.sharpness`.
    `structures` names what should be prunable (see `STRUCTURES`), in the fx form at least. `exports` is False where
    `torch.export` refuses the model; the entry's comment says why. `attention` is False where there is no softmax
    attention that `zoo.entropy` can see. `traps` are entries whose point is that some cut is *not* exact.
    """

    name: str
    family: Family
    build: Callable[[], Model]
    structures: frozenset[str]
    causal: bool = False
    exports: bool = True
    attention: bool = True
    trap: bool = False

    def __post_init__(self) -> None:
        unknown = self.structures - STRUCTURES
        if unknown:
            raise ValueError(f"{self.name}: unknown structures {sorted(unknown)}; known are {sorted(STRUCTURES)}")


_REGISTRY: dict[str, Entry] = {}


def register(entry: Entry) -> Entry:
    """Add `entry`; its `build` is wrapped with randomising and sharpening by `zoo.randomize.finish`."""
    from tests.zoo.randomize import finish

    if entry.name in _REGISTRY:
        raise ValueError(f"two zoo entries are called {entry.name!r}")
    make = entry.build
    entry = dataclasses.replace(entry, build=lambda: finish(entry.name, make()))
    _REGISTRY[entry.name] = entry
    return entry


def registered() -> Iterable[Entry]:
    """All entries registered so far, in order."""
    return list(_REGISTRY.values())


def float_outputs(output: Any) -> list[Tensor]:
    """The floating tensors among the leaves of a forward's output, in order."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
