"""Names of parameters that differ from layer to layer in nothing but a number."""

from __future__ import annotations

import re

__all__ = ["layer_of", "star"]


def star(name: str) -> str:
    """Return a name without its layer numbers.

    >>> star("model.layers.12.mlp.up_proj.weight:0")
    'model.layers.*.mlp.up_proj.weight:0'
    """
    path, colon, place = name.partition(":")
    return re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", "*", path) + colon + place


def layer_of(name: str) -> str:
    """Return the layer that a parameter belongs to: its path up to the first number.

    >>> layer_of("model.layers.12.mlp.experts.3.up_proj.weight:0"), layer_of("model.embed_tokens.weight:1")
    ('model.layers.12', '')
    """
    found = re.match(r"(.*?(?:^|\.)\d+)(?=\.)", name.partition(":")[0])
    return found[1] if found else ""
