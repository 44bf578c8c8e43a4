"""Tiny models for tests of training, traced once each, with adapters on fresh copies of them."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Sequence
from typing import Any, cast

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import shearfx
from shearfx.graph import Graph
from shearfx.optim import LHSPG
from shearfx.precision import double_precision
from shearfx.selection import Tied

VOCAB = 32


class Convolutions(nn.Module):
    """Two convolutions with batch norm and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 10, 3, padding=1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.second(x)).mean((2, 3))
        found: Tensor = self.head(x)
        return found


class Perceptron(nn.Module):
    """Three linear layers; the last group of structures is read by one layer and written by one."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(6, 12), nn.Linear(12, 9), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.three(torch.tanh(self.two(torch.tanh(self.one(x)))))
        return found


def llama() -> nn.Module:
    """Two blocks, two groups of two heads."""
    torch.manual_seed(1)
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32, "initializer_range": 0.3,
    }  # fmt: skip
    model: nn.Module = LlamaForCausalLM(LlamaConfig(**sizes))
    return model.eval()


def gpt2() -> nn.Module:
    """One block, of transformers' transposed Conv1D, embedding and head tied."""
    torch.manual_seed(2)
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "n_inner": 24,
        "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    model: nn.Module = GPT2LMHeadModel(GPT2Config(**sizes))
    return model.eval()


def convolutions() -> nn.Module:
    torch.manual_seed(3)
    return Convolutions().eval()


def perceptron() -> nn.Module:
    torch.manual_seed(4)
    return Perceptron().eval()


BUILD = {"llama": llama, "gpt2": gpt2, "convolutions": convolutions, "perceptron": perceptron}


@functools.cache
def traced(name: str) -> tuple[nn.Module, Graph]:
    """The model, which nobody may change, and its analysis."""
    model = BUILD[name]()
    inputs = inputs_of(name)
    return model, (shearfx.trace(model, **inputs) if isinstance(inputs, dict) else shearfx.trace(model, inputs))


def inputs_of(name: str, seed: int = 0, batch: int = 3) -> Any:
    """A batch: token ids by name, images, or rows of numbers."""
    generator = torch.Generator().manual_seed(seed)
    if name in ("llama", "gpt2"):
        return {"input_ids": torch.randint(3, VOCAB, (batch, 7), generator=generator)}
    shape = (batch, 3, 8, 8) if name == "convolutions" else (batch, 6)
    return torch.randn(shape, generator=generator)


def loss_of(name: str, model: nn.Module, seed: int = 0, batch: int = 3) -> Tensor:
    """A scalar to train on."""
    inputs = inputs_of(name, seed, batch)
    if isinstance(inputs, dict):
        found: Tensor = model(**inputs, labels=inputs["input_ids"]).loss
        return found
    return model(inputs.to(next(model.parameters()).dtype)).square().mean()  # type: ignore[no-any-return]


def output_of(name: str, model: nn.Module, seed: int = 99) -> Tensor:
    """What the model computes, without a gradient; in float64 throughout where its weights are."""
    inputs, dtype = inputs_of(name, seed), next(model.parameters()).dtype
    with torch.no_grad(), double_precision() if dtype == torch.float64 else contextlib.nullcontext():
        if isinstance(inputs, dict):
            found: Tensor = model(**inputs).logits
            return found
        return model(inputs.to(dtype))  # type: ignore[no-any-return]


def fresh(name: str, lora: dict[str, Any] | None = None, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy, with an adapter on it where there is a configuration for one."""
    model = copy.deepcopy(traced(name)[0]).to(dtype)
    if lora is None:
        return model
    torch.manual_seed(5)
    defaults: dict[str, Any] = {"r": 2, "lora_alpha": 3, "target_modules": "all-linear"}
    config = LoraConfig(**(defaults | lora))
    return get_peft_model(cast(Any, model), config, autocast_adapter_dtype=False)


def learn_something(model: nn.Module, seed: int = 7, size: float = 0.1) -> nn.Module:
    """Fill the adapters' B, which start at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "lora_embedding_B" in name or "lora_embedding_A" in name:
                parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return model


def tied(name: str, kinds: Sequence[str] = ()) -> list[Tied]:
    """The exact groups of these kinds (default: all), each by itself: what the fx form can cut."""
    graph = traced(name)[1]
    return [
        Tied((g,), (1,)) for g in graph.groups
        if g.certificate == "exact" and g.size > 1 and (not kinds or g.kind in kinds)
    ]  # fmt: skip


def optimizer(name: str, model: nn.Module, **options: Any) -> LHSPG:
    """LHSPG over the feed-forward widths (or channels), by given scores unless told otherwise."""
    graph = traced(name)[1]
    wanted: tuple[str, ...] = {"llama": ("ffn", "heads"), "gpt2": ("ffn",)}.get(name, ())
    defaults: dict[str, Any] = {"tied": tied(name, wanted), "unit": "structures", "target": 9, "lr": 1e-2, "form": "fx"}
    options = defaults | options
    if not {"scores", "saliency"} & options.keys():
        options["scores"] = scores_of(name)
    return LHSPG(graph, model, **options)


def scores_of(name: str, seed: int = 0) -> dict[str, Tensor]:
    """Random scores."""
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.rand(g.size, generator=generator, dtype=torch.float64) for g in traced(name)[1].groups}


def train(name: str, model: nn.Module, opt: torch.optim.Optimizer, steps: int, start: int = 0) -> list[float]:
    """Steps on batches that depend on the number of the step alone; the losses."""
    losses = []
    for step in range(start, start + steps):
        loss = loss_of(name, model, step)
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(float(loss.detach()))
    return losses


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def by_hand(model: nn.Module, seed: int) -> None:
    """The same random gradients for parameters of the same name."""
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter)


def furthest(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest number of the second."""
    return float((a - b).abs().max() / b.abs().max())
