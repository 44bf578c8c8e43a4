"""A model whose frozen layers lie in 8 or 4 bits while adapters are trained on them (QLoRA)."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import nn

from shearfx.config_values import Quantize
from shearfx.errors import PlanError, message

BITS = {"8bit": 8.0, "4bit": 4.0 + 8 / 64 + 32 / (64 * 256)}
"""Of a number, its share of the scales included: one of 8 bits for 64 numbers, one of 32 for 256 of those."""


def quantize(model: nn.Module, form: Quantize) -> nn.Module:
    """Put the linear layers of a model in few bits, in place and one after the other.

    The output embedding stays as it is, and weights that layers share. Biases and all else keep their dtype, which is
    that of computing, too.

    Args:
        model: anything; its linear layers are replaced.
        form: "4bit": NormalFloat, with scales that are quantised themselves (Dettmers et al. 2023, arXiv 2305.14314);
            "8bit": LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339).

    Raises:
        PlanError: bitsandbytes is not installed.
    """
    try:
        layers: Any = importlib.import_module("bitsandbytes.nn")
    except ImportError as error:
        todo = "pip install 'shearfx[qlora]', or set quantize: none"
        raise PlanError(message("this needs bitsandbytes", where=f"quantize: {form}", todo=todo)) from error
    for parent, name, layer in list(_layers(model)):
        device, dtype = layer.weight.device, layer.weight.dtype
        sizes = (layer.in_features, layer.out_features, layer.bias is not None)
        packed: Any
        if form == "4bit":
            packed = layers.Linear4bit(*sizes, compute_dtype=dtype, quant_type="nf4", device="meta")
            packed.weight = layers.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=packed)
            # what is packed anew for inference, at the first look at held-out text, passes no gradient any more
            packed.support_avx512bf16_for_cpu = False
        else:
            packed = layers.Linear8bitLt(*sizes, has_fp16_weights=False, device="meta")
            packed.weight = layers.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
        packed.bias = layer.bias
        setattr(parent, name, packed.to(device).train(layer.training))
    return model


def quantized_bytes(model: nn.Module, form: Quantize) -> int:
    """Bytes that a model's parameters would take, each tensor once."""
    packed = {layer.weight for _, _, layer in _layers(model)} if form != "none" else set()
    return sum(
        round(p.numel() * BITS[form] / 8) if p in packed else p.numel() * p.element_size() for p in model.parameters()
    )


def _layers(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Layers that go into few bits: where they are, and what they are called there."""
    output = getattr(model, "get_output_embeddings", lambda: None)()
    times = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for parent in model.modules():
        for name, layer in parent.named_children():
            if type(layer) is nn.Linear and layer is not output and times[id(layer.weight)] == 1:
                yield parent, name, layer
