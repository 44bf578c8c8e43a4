"""Whose an answer is: what tells apart models, and what they read with."""

from __future__ import annotations

import hashlib
import itertools
import json

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from shearfx.architectures import config_of
from shearfx.inference import bos_of, dtype_name, tokenizer_name

NOWHERE = ("_name_or_path", "transformers_version")
"""What a configuration says of where it comes from."""


def whose(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    """What answers of a model depend on beside what is asked, as JSON."""
    return {"model": weights_digest(model), "dtype": dtype_name(model), "tokenizer": tokenizer_name(tokenizer),
            "bos": bool(bos_of(tokenizer))}  # fmt: skip


def weights_digest(model: nn.Module) -> str:
    """Tells models apart by all their numbers, and by the configuration that they are computed by."""
    digest = hashlib.sha256()
    for name, tensor in sorted(
        itertools.chain(model.named_parameters(), model.named_buffers()), key=lambda one: one[0]
    ):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().reshape(-1).cpu().contiguous().view(torch.uint8).numpy().data)
    config = config_of(model)
    settings = {} if config is None else {k: v for k, v in config.to_dict().items() if k not in NOWHERE}
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]
