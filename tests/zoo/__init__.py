"""A zoo of tiny random models for the soundness tests and `benchmarks/model_matrix.py`.

    from tests import zoo
    for entry in zoo.entries("text"):
        model = entry.build()                       # float32, eval, randomised
        model = entry.build().to(torch.float64)     # floating inputs too
        model.module(*model.args, **model.kwargs)

Sizes differ from one another on purpose (heads 6, key/value heads 3, head dim 10 or 8, hidden 48, ffn 88, vocab 97,
batch 5, sequence 7), so that nothing is right by coincidence; variants where they coincide are named `*_square`.
"""

from __future__ import annotations

import functools
import importlib

from tests.zoo.entry import STRUCTURES, Call, Entry, Family, Model, float_outputs, registered

__all__ = ["STRUCTURES", "Call", "Entry", "Family", "Model", "entries", "float_outputs", "get"]

_MODULES = (
    "text",
    "text_moe",
    "text_encoder",
    "text_seq2seq",
    "recurrent",
    "vision",
    "vision_conv",
    "speech",
    "custom",
    "custom_mlp",
    "custom_attention",
    "custom_traps",
)


@functools.cache
def _load() -> None:
    for name in _MODULES:
        importlib.import_module(f"tests.zoo.{name}")


def entries(family: Family | None = None) -> list[Entry]:
    """Every entry, or those of one family, in a stable order."""
    _load()
    return [entry for entry in registered() if family is None or entry.family == family]


def get(name: str) -> Entry:
    """The entry called `name`; KeyError otherwise."""
    for entry in entries():
        if entry.name == name:
            return entry
    raise KeyError(f"no zoo entry {name!r}; there are {', '.join(e.name for e in entries())}")
