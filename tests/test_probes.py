"""Probing a model leaves it as it was."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from shearfx.capture import CaptureError
from shearfx.probes import _attention
from tests import zoo


def implementations(model: nn.Module) -> dict[str, Any]:
    """Of every part that has a configuration."""
    parts: dict[str, Any] = {name: getattr(module, "config", None) for name, module in model.named_modules()}
    return {name: c._attn_implementation for name, c in parts.items() if hasattr(c, "sub_configs")}


@pytest.mark.parametrize("name", ["detr", "llama", "bart", "clip_text"])
@pytest.mark.parametrize("other", ["eager", "sdpa", "nonsense"])
def test_every_part_has_its_own_attention_back(name: str, other: str) -> None:
    """The convolutional part of DETR offers eager attention only, and was given that of the whole."""
    model = zoo.get(name).build().module
    before = implementations(model)
    try:
        with _attention(model, other):
            assert other in implementations(model).values()
    except CaptureError:
        assert other != "eager"
    assert implementations(model) == before
