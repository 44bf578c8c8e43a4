"""Runs of the pipeline that take seconds: a Llama of a few thousand parameters, a byte tokenizer, made-up text."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from shearfx.config import ShearConfig
from shearfx.models import LoadedModel
from shearfx.optim import LHSPG
from shearfx.pipeline import Sheared, Shearing, Silent
from shearfx.pipeline.given import given
from shearfx.pipeline.subject import Known
from shearfx.run_directory import RunDirectory
from tests.tiny_tokenizers import byte_tokenizer

WORDS = ("tree", "house", "river", "stone", "cloud", "bird", "green", "small", "runs", "sings", "and", "under")


def tiny_llama(**sizes: Any) -> LlamaForCausalLM:
    torch.manual_seed(3)
    asked: dict[str, Any] = {
        "vocab_size": 264, "hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2,
    }  # fmt: skip
    model: LlamaForCausalLM = LlamaForCausalLM(LlamaConfig(**(asked | sizes))).eval()
    return model


def write_model(folder: Path, **sizes: Any) -> Path:
    model = tiny_llama(**sizes)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def write_text(path: Path, seed: int = 0) -> Path:
    draw = random.Random(seed)
    path.write_text("\n\n".join(" ".join(draw.choices(WORDS, k=40)) for _ in range(60)))
    return path


def options(text: Path, **more: Any) -> dict[str, Any]:
    return {
        "pretrain": (str(text),), "kinds": ("ffn",), "tokens": 6 * 2 * 32, "sequence_length": 32, "batch_size": 2,
        "scoring_windows": 4, "fitting_windows": 8, "validation": 2, "rounds": 1, "dtype": "float32", "distill": 0.0,
        "check_tokenizer": False,
    } | more  # fmt: skip


ANALYSED: dict[tuple[str, str, str], Known] = {}
"""What a process found out about models of one configuration, by options that it depends on."""


class Runs:
    """Runs with one model; all of one configuration are analysed once."""

    def __init__(self, model: Path, text: Path) -> None:
        self.model, self.text = model, text
        self.known: dict[str, Known] = {}

    def __call__(
        self, out: Path, model: Any = None, *, resume: bool = False, teller: Any = None, **more: Any
    ) -> Sheared:
        """Shear the model in the folder, or another of its shape."""
        config = ShearConfig.of_mapping(options(self.text, **more))
        teller = teller or Silent()
        loaded, reopen = given(model or str(self.model), byte_tokenizer(), teller)
        run = RunDirectory(out, loaded.source, config, resume=resume)
        sizes: Any = loaded.module.config
        key = (sizes.to_json_string(), config.scope, str((config.kinds, config.exclude)))
        known = self.known.get(config.scope) or ANALYSED.get(key)
        shearing = Shearing(loaded, config, run, teller, known, reopen)
        if not config.layers:  # else it is the shorter model whose analysis takes long
            ANALYSED.setdefault(key, (shearing.graph, shearing.tied))
            self.known.setdefault(config.scope, ANALYSED[key])
        with patch("shearfx.pipeline.cutting.TURNS", 1):
            return shearing.run()


@contextlib.contextmanager
def faded_logits(ids: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """What models give for some tokens when LHSPG has faded their structures and is about to leave them."""
    found: list[torch.Tensor] = []
    detach = LHSPG.detach

    def watched(self: LHSPG) -> None:
        if self.gates.attached and not self.model.training:
            with torch.no_grad():
                found.append(self.model(input_ids=ids).logits)
        detach(self)

    with patch.object(LHSPG, "detach", watched):
        yield found


class Telling(Silent):
    """Keeps what is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


def as_loaded(model: Any) -> LoadedModel:
    return given(model, byte_tokenizer(), Silent())[0]
