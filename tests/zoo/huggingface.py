"""Factories for Hugging Face models: a config of tiny sizes, a class, example inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Generator, Tensor, nn

from tests.zoo.entry import Call, Entry, Family, Model, register

transformers.logging.set_verbosity_error()

VOCAB = 97
BATCH, LENGTH = 5, 7
OTHER_BATCH, OTHER_LENGTH = 4, 11

Inputs = Callable[[nn.Module], tuple[dict[str, Any], list[dict[str, Any]]]]


def token_ids(batch: int, length: int, seed: int = 0) -> Tensor:
    """Random token ids, (batch, length); 0..3 are left out because configs give them meanings such as padding."""
    return torch.randint(4, VOCAB, (batch, length), generator=Generator().manual_seed(seed))


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal float32 values."""
    return torch.randn(*shape, generator=Generator().manual_seed(seed))


def padding_mask(batch: int, length: int) -> Tensor:
    """Ones, with the end of row 1 and the tokens after the first of row 2 masked.

    Every query keeps a key to look at: with padding on the left, Gemma 2, BLOOM and MPT themselves return NaN.
    """
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[1, -3:] = 0
    mask[2, 1:3] = 0
    return mask


def tokens(module: nn.Module) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """`input_ids`; elsewhere another size, and that with a padding mask."""
    other = {"input_ids": token_ids(OTHER_BATCH, OTHER_LENGTH, seed=1)}
    padded = {**other, "attention_mask": padding_mask(OTHER_BATCH, OTHER_LENGTH)}
    takes_mask = "attention_mask" in inspect.signature(module.forward).parameters
    return {"input_ids": token_ids(BATCH, LENGTH)}, [other, padded] if takes_mask else [other]


def encoder_decoder_tokens(module: nn.Module) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """`input_ids` and `decoder_input_ids` of different lengths."""
    other = {
        "input_ids": token_ids(OTHER_BATCH, OTHER_LENGTH, seed=1),
        "decoder_input_ids": token_ids(OTHER_BATCH, 5, seed=2),
    }
    padded = {**other, "attention_mask": padding_mask(OTHER_BATCH, OTHER_LENGTH)}
    first = {"input_ids": token_ids(BATCH, LENGTH), "decoder_input_ids": token_ids(BATCH, 9, seed=3)}
    return first, [other, padded]


def pixels(size: int, other: int | None = None, channels: int = 3) -> Inputs:
    """`pixel_values` of `size` square; elsewhere of `other` (the same where the model takes one size only)."""

    def inputs(module: nn.Module) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        far = other or size
        return (
            {"pixel_values": normal(2, channels, size, size)},
            [{"pixel_values": normal(OTHER_BATCH, channels, far, far, seed=1)}],
        )

    return inputs


def hf(
    name: str,
    family: Family,
    model_class: str,
    structures: frozenset[str],
    inputs: Inputs,
    *,
    causal: bool = False,
    exports: bool = True,
    attention: bool = True,
    trap: bool = False,
    after: Callable[[nn.Module], nn.Module] | None = None,
    **config: Any,
) -> Entry:
    """Register `transformers.<model_class>` built from its config class with `config`.

    `after` may wrap the module (PEFT). Experts run as batched matrix products: the default kernel refuses float64.
    """

    def build() -> Model:
        cls = getattr(transformers, model_class)
        settings = cls.config_class(**config)
        if hasattr(settings, "use_cache"):
            settings.use_cache = False
        torch.manual_seed(0)  # initialisation matters where `randomize` only jitters
        module: nn.Module = cls(settings)
        if cls._can_set_experts_implementation():
            module.set_experts_implementation("batched_mm")  # type: ignore[operator]
        takes_cache = "use_cache" in inspect.signature(module.forward).parameters
        fixed: dict[str, Any] = {"use_cache": False} if takes_cache else {}
        first, others = inputs(module)
        if after is not None:
            module = after(module)
        alternatives: list[Call] = [((), {**other, **fixed}) for other in others]
        return Model(module.eval(), (), {**first, **fixed}, alternatives)

    return register(Entry(name, family, build, structures, causal, exports, attention, trap))
