"""Small helpers shared by everything that runs a model to judge it."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from shearfx.errors import ShearError, message

__all__ = [
    "bos_of", "check_tokenizer", "computes_bfloat16", "device_of", "dtype_name", "evaluating", "logits_of",
    "positions", "rows_at_once", "tokenizer_name",
]  # fmt: skip


CACHED, LAUNCHED = 2**19, 2**22


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter, the CPU if it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the hardware has instructions for products in bfloat16; elsewhere torch is many times slower in it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def dtype_name(model: nn.Module) -> str:
    """Name the dtypes of the model's floating parameters.

    >>> dtype_name(nn.Linear(2, 2)), dtype_name(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).bfloat16()))
    ('float32', 'bfloat16+float32')
    """
    dtypes = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()}
    return "+".join(sorted(dtypes)) or "none"


def positions(model: nn.Module) -> int | None:
    """Return how many positions a Hugging Face model has; None where its config does not say."""
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def rows_at_once(logits: Tensor) -> int:
    """How many rows of logits ``[rows, vocabulary]`` to work out probabilities of at a time.

    On a CPU few enough to stay in its cache, up to three times as fast; elsewhere enough that launches of kernels
    take no time. Never a float32 copy of all of them.
    """
    return max(1, (CACHED if logits.device.type == "cpu" else LAUNCHED) // logits.shape[-1])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module of ``model`` in eval mode, without gradients, and restore each one's own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def check_tokenizer(tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    """Return the tokenizer; raise ShearError where there is none."""
    if tokenizer is None:
        todo = "put the tokenizer's files beside the weights, or pass a tokenizer"
        raise ShearError(message("there is no tokenizer to read text with", where="evaluation", todo=todo))
    return tokenizer


def bos_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the beginning-of-sequence id in a list if the tokenizer itself puts it before text, else nothing."""
    bos = tokenizer.bos_token_id
    return [bos] if isinstance(bos, int) and list(tokenizer("a").input_ids)[:1] == [bos] else []


def tokenizer_name(tokenizer: PreTrainedTokenizerBase) -> str:
    """Name the tokenizer by its folder or hub id and its size; its class alone says little."""
    return f"{Path(tokenizer.name_or_path or type(tokenizer).__name__).name} tokenizer of {len(tokenizer)}"


def logits_of(model: nn.Module, ids: Tensor, last: int | None = None) -> Tensor:
    """Call ``model`` on int64 token ids ``[batch, tokens]`` and return its logits ``[batch, tokens, vocabulary]``.

    With ``last``, only those of the last positions: a model that takes ``logits_to_keep`` works out no others.
    The logits are the output's ``logits`` (attribute or key), else the output itself or its first tensor.

    Raises:
        ShearError: the call fails, or its output has another shape.
    """
    known = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {"use_cache": False} if "use_cache" in known else {}
    tokens = ids.shape[1] if last is None else last
    if tokens < ids.shape[1] and "logits_to_keep" in known:
        options["logits_to_keep"] = tokens
    where = f"{type(model).__name__}, input_ids {list(ids.shape)}"
    try:
        output: Any = model(input_ids=ids, **options)
    except (IndexError, RuntimeError, TypeError) as error:
        what = f"the model cannot be called on these token ids: {type(error).__name__}: {error}".splitlines()[0]
        todo = "use the tokenizer that belongs to the model (ids within its vocabulary), and a causal language model"
        raise ShearError(message(what, where=where, todo=todo)) from error
    logits = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", output)
    if isinstance(logits, (tuple, list)) and logits:
        logits = logits[0]
    found = logits.shape if isinstance(logits, Tensor) and logits.ndim == 3 else (0, 0)
    if not isinstance(logits, Tensor) or found[0] != ids.shape[0] or found[1] not in (ids.shape[1], tokens):
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        what = f"the model returns {got}, not logits [batch, tokens, vocabulary]"
        raise ShearError(message(what, where=where, todo="evaluate a causal language model"))
    return logits[:, -tokens:]
