"""Example inputs for a Hugging Face model, made from its config alone: small, valid, the same every time.

They are made from what a model says of itself (the name of its main input, sizes in its config), never from
its name.  A model that says too little gets a clear error that points to a factory of the user's own.
"""

import inspect
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shearfx.errors import TraceError, message

__all__ = ["Kind", "example_inputs", "kind_of"]

Kind = Literal["causal-lm", "seq2seq-lm", "text", "vision", "speech", "other"]

BATCH = 2
SEQUENCE = 16  # tokens
IMAGE_SIZE = 224  # pixels, where a config names no size: such models take any
SAMPLES = 16_000  # one second of sound at 16 kHz


def kind_of(model: nn.Module) -> Kind:
    """Return what sort of input and output ``model`` has, as far as a Hugging Face model tells; else ``"other"``."""
    match getattr(model, "main_input_name", None):
        case "input_ids":
            if getattr(_config(model), "is_encoder_decoder", False):
                return "seq2seq-lm" if _can_generate(model) else "text"
            return "causal-lm" if _can_generate(model) else "text"
        case "pixel_values" | "pixel_values_videos":
            return "vision"
        case "input_features" | "input_values":
            return "speech"
    return "other"


def example_inputs(model: nn.Module, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return the keyword arguments of one small call of a Hugging Face ``model``.

    - token ids ``[2, 16]`` (fewer if the model has fewer positions), int64, within the vocabulary and without the
      padding token; encoder-decoders get ``decoder_input_ids`` of the same shape;
    - images ``[2, channels, height, width]`` (videos ``[2, frames, channels, height, width]``);
    - log-mel features ``[2, mel bins, frames]`` or raw sound ``[2, 16000]`` samples.

    Floating inputs have the dtype of the model's first floating parameter.  ``use_cache=False`` is added where the
    signature has it.  The values come from a generator with a fixed seed.

    Raises:
        TraceError: the model's main input is none of these, or its config lacks a size.
    """
    config = _config(model)
    generator = torch.Generator().manual_seed(0)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    name = str(getattr(model, "main_input_name", ""))

    def floats(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    inputs: dict[str, Any]
    match name:
        case "input_ids":
            inputs = {name: _token_ids(config, generator).to(device)}
        case "pixel_values" | "pixel_values_videos":
            frames = getattr(config, "num_frames", None)
            height, width = _image_size(config)
            lead = (BATCH,) if frames is None else (BATCH, int(frames))
            inputs = {name: floats(*lead, int(getattr(config, "num_channels", 3)), height, width)}
        case "input_features" if hasattr(config, "num_mel_bins") and hasattr(config, "max_source_positions"):
            # the encoder halves the number of frames, and wants exactly its number of positions
            inputs = {name: floats(BATCH, config.num_mel_bins, 2 * config.max_source_positions)}
        case "input_values":
            inputs = {name: floats(BATCH, SAMPLES)}
        case _:
            raise TraceError(
                message(
                    f"cannot make example inputs for a {type(model).__name__}: its main input is {name or 'unnamed'!r}",
                    where="load_model",
                    todo="name a factory instead, `package.module:factory`, that returns (model, example inputs)",
                )
            )
    parameters = inspect.signature(model.forward).parameters
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in parameters:
        inputs["decoder_input_ids"] = _token_ids(config, generator).to(device)
    if "use_cache" in parameters:
        inputs["use_cache"] = False
    return inputs


def _config(model: nn.Module) -> Any:
    return getattr(model, "config", None)


def _can_generate(model: nn.Module) -> bool:
    can_generate = getattr(model, "can_generate", None)
    return bool(can_generate()) if callable(can_generate) else False


def _token_ids(config: Any, generator: torch.Generator) -> Tensor:
    """Return int64 ids ``[batch, sequence]``, none of them the padding token (some models mask it by themselves)."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    vocabulary = getattr(text, "vocab_size", None)
    if not isinstance(vocabulary, int) or vocabulary < 2:
        raise TraceError(
            message(
                f"cannot make token ids: the config's vocab_size is {vocabulary!r}",
                where=type(config).__name__,
                todo="name a factory instead, `package.module:factory`, that returns (model, example inputs)",
            )
        )
    positions = getattr(text, "max_position_embeddings", None)
    length = min(SEQUENCE, positions) if isinstance(positions, int) and positions > 0 else SEQUENCE
    ids = torch.randint(vocabulary, (BATCH, length), generator=generator)
    padding = getattr(text, "pad_token_id", None)
    return ids if padding is None else torch.where(ids == padding, (padding + 1) % vocabulary, ids)


def _image_size(config: Any) -> tuple[int, int]:
    """Return (height, width) in pixels; configs state one number, a pair, or a mapping."""
    match getattr(config, "image_size", None):
        case None:
            return IMAGE_SIZE, IMAGE_SIZE
        case int(size):
            return size, size
        case {"height": int(height), "width": int(width)}:
            return height, width
        case [int(height), int(width), *_]:
            return height, width
        case other:
            raise TraceError(
                message(
                    f"cannot make an image: the config's image_size is {other!r}",
                    where=type(config).__name__,
                    todo="name a factory instead, `package.module:factory`, that returns (model, example inputs)",
                )
            )
