"""How fast a model generates: prefill and decode, in tokens per second."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from shearfx.errors import ShearError, message
from shearfx.inference import device_of, dtype_name, evaluating, positions

__all__ = ["Speed", "alternating", "generation_speed"]


@dataclass(frozen=True)
class Speed:
    """Greedy generation in tokens per second, medians over repeats, and the conditions of the measurement."""

    prefill: float  # prompt tokens per second, up to and including the first new token
    decode: float  # new tokens per second after the first, with the cache
    prompt_tokens: int
    new_tokens: int
    batch_size: int
    repeats: int
    dtype: str
    device: str
    threads: int  # of torch on the CPU

    @property
    def milliseconds(self) -> float:
        """Of a generation, the prompt's tokens and the new ones."""
        seconds = self.prompt_tokens / self.prefill + (self.new_tokens - 1) / self.decode
        return 1e3 * self.batch_size * seconds

    def __str__(self) -> str:
        lengths = f"{self.batch_size} x {self.prompt_tokens} + {self.new_tokens} tokens, median of {self.repeats}"
        where = f"{self.dtype}, {self.device}, {self.threads} threads"
        return f"prefill {self.prefill:.0f} tokens/s, decode {self.decode:.1f} tokens/s ({lengths}, {where})"


def generation_speed(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    prompt: str | None = None,
    prompt_tokens: int = 128,
    new_tokens: int = 32,
    batch_size: int = 1,
    repeats: int = 3,
    warm_up: bool = True,
) -> Speed:
    """Time greedy ``model.generate`` with its cache: one untimed run (``warm_up``), then the medians of ``repeats``.

    The prompt is ``prompt`` (needs ``tokenizer``), repeated or cut to ``prompt_tokens`` tokens; without one, fixed
    random ids, which cost the same.  Prefill is the time to the first new token; decode, that of the other
    ``new_tokens - 1``.  Generation does not stop early.

    Raises:
        ShearError: the model cannot generate, or a length is out of range.
    """
    generate: Any = check_generation(model, prompt_tokens, new_tokens, batch_size, repeats)
    ids = prompt_ids(model, tokenizer, prompt, prompt_tokens).expand(batch_size, -1).to(device_of(model))
    prefill: list[float] = []
    decode: list[float] = []
    with evaluating(model):
        for repeat in range(-int(warm_up), repeats):
            clock = _Clock()
            generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                num_beams=1,
                min_new_tokens=new_tokens,
                max_new_tokens=new_tokens,
                use_cache=True,
                streamer=clock,
            )
            start, first, *_, last = clock.times
            if repeat >= 0:
                prefill.append(batch_size * prompt_tokens / (first - start))
                decode.append(batch_size * (new_tokens - 1) / (last - first))
    return Speed(
        prefill=statistics.median(prefill),
        decode=statistics.median(decode),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        batch_size=batch_size,
        repeats=repeats,
        dtype=dtype_name(model),
        device=str(device_of(model)),
        threads=torch.get_num_threads(),
    )


class _Clock(BaseStreamer):
    """Notes the time at the prompt and at each new token, which ``generate`` hands over on the CPU, so synchronised."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def check_generation(
    model: nn.Module, prompt_tokens: int, new_tokens: int, batch_size: int = 1, repeats: int = 1
) -> Callable[..., Any]:
    """The model's ``generate``.

    Raises:
        ShearError: there is none, or a length is out of range.
    """
    generate: Callable[..., Any] | None = getattr(model, "generate", None)
    if generate is None:
        todo = 'measure the model in its original class (construct with form="module")'
        raise ShearError(message(f"a {type(model).__name__} has no generate()", where="generation", todo=todo))
    limit = positions(model)
    if min(prompt_tokens, batch_size, repeats) < 1 or new_tokens < 2 or (limit and prompt_tokens + new_tokens > limit):
        todo = f"use positive numbers, at least 2 new tokens, and at most {limit or 'any number of'} tokens in all"
        what = f"{prompt_tokens} + {new_tokens} tokens, batch size {batch_size}, {repeats} repeats: out of range"
        raise ShearError(message(what, where="generation", todo=todo))
    return generate


def prompt_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase | None, prompt: str | None, length: int) -> Tensor:
    """Return int64 ids ``[1, length]``: the prompt's, repeated or cut, or random ones within the vocabulary."""
    if prompt is None:
        get_embedding: Any = getattr(model, "get_input_embeddings", None)
        embedding = get_embedding() if get_embedding else None
        vocabulary = int(getattr(embedding, "num_embeddings", 2))
        return torch.randint(vocabulary, (1, length), generator=torch.Generator().manual_seed(0))
    ids = list(tokenizer(prompt, verbose=False).input_ids) if tokenizer is not None else []
    if not ids:
        todo = "pass the model's tokenizer and some text, or no prompt"
        raise ShearError(message("the prompt gives no tokens", where="generation_speed", todo=todo))
    return torch.tensor([(ids * (length // len(ids) + 1))[:length]])


def alternating(
    first: nn.Module, second: nn.Module, rounds: int = 5, progress: Callable[[int, int], None] | None = None
) -> tuple[list[Speed], list[Speed]]:
    """Time two models by turns, so that what else the machine does meets both alike."""
    one, other = by_turns((first, second), rounds, progress)
    return one, other


def by_turns(
    models: Sequence[nn.Module], rounds: int = 5, progress: Callable[[int, int], None] | None = None
) -> list[list[Speed]]:
    """Time models by turns: for each, as many speeds as rounds. Prompts are as long as the positions of all allow."""
    prompt, new = lengths(models)
    speeds: list[list[Speed]] = [[] for _ in models]
    for done in range(rounds):
        for model, found in zip(models, speeds, strict=True):
            found.append(generation_speed(model, prompt_tokens=prompt, new_tokens=new, repeats=1))
        if progress is not None:
            progress(done + 1, rounds)
    return speeds


def lengths(models: Sequence[nn.Module]) -> tuple[int, int]:
    """Tokens of a prompt and new ones: 128 and 24, or what the positions of all models allow."""
    limit = min((positions(model) or 128 + 24 for model in models), default=0)
    prompt = min(128, limit - 24) if limit > 48 else max(1, limit // 2)
    return prompt, min(24, limit - prompt)
