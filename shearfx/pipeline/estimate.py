"""What training will take of a device's memory, before it begins."""

from __future__ import annotations

import gc
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from shearfx.config import ShearConfig
from shearfx.footprint import Allocations, available, bytes_text
from shearfx.inference import device_of
from shearfx.pipeline.adapting import adapting
from shearfx.pipeline.held import weight_bytes
from shearfx.pipeline.quantized import quantized_bytes
from shearfx.training import Mixture
from shearfx.training.losses import Teacher, causal_loss, scratch_bytes

WINDOWS = 2
"""Windows of the step that is measured."""
STATES = 3
"""Besides an adapter's numbers: their gradient, and the two moments of AdamW."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a training step, apart from what Python and its libraries take themselves."""

    weights: int
    """Of all models that are in memory while one is trained."""
    adapters: int
    """With their gradients and AdamW's moments."""
    activations: int
    """Everything that operators allocate in a step besides: measured on a step of ``windows`` windows."""
    logits: int
    """Those of the model and their gradient, and those of the full model where it teaches."""
    windows: int
    batch_size: int
    available: int | None
    """What the device had left when the model was in memory."""
    present: int
    """Of ``weights``: what was in memory already."""
    device: str

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.step

    @property
    def step(self) -> int:
        """What a training step takes beside the weights."""
        return self.adapters + self.activations + self.logits

    @property
    def missing(self) -> int:
        """What will not be there; 0 where all fits."""
        if self.available is None:
            return 0
        return max(0, self.total - self.present - self.available)

    def to_record(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "step": self.step, "total": self.total}

    def __str__(self) -> str:
        parts = {"weights": self.weights, "adapters and AdamW": self.adapters, "activations": self.activations,
                 "logits": self.logits}  # fmt: skip
        listed = ", ".join(f"{name} {bytes_text(size)}" for name, size in parts.items())
        left = (
            "" if self.available is None else f"; {self.device} has {bytes_text(self.available)} left beside the model"
        )
        return f"training takes about {bytes_text(self.total)} of memory: {listed}{left}"


def estimate(
    config: ShearConfig,
    model: nn.Module,
    sources: Any,
    teacher: Teacher | None,
    others: int = 0,
) -> MemoryEstimate:
    """Measure a training step of one or two windows, and scale it to the batch.

    What operators allocate grows with the windows; adapters do not.

    Args:
        config: of the run.
        model: in its training form; left as it was.
        sources: windows to train on.
        teacher: the full model's word, where it is asked for.
        others: bytes of weights that lie in the same memory while training runs.

    Raises:
        PlanError: no adapters fit the model.
    """
    windows, device = min(WINDOWS, config.batch_size), device_of(model)
    batch = Mixture(sources, windows, seed=config.seed).next()
    with adapting(config, model) as wrapped:
        trained = [p for p in wrapped.parameters() if p.requires_grad]
        thin = sum(p.numel() * p.element_size() for p in trained)
        wrapped.train()
        with Allocations(device) as allocations:
            causal_loss(wrapped, batch, teacher, config.distill).backward()
        del trained
    gc.collect()
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    vocabulary = int(getattr(embedding, "num_embeddings", 0))
    positions = windows * config.sequence_length
    scratch = scratch_bytes(positions, vocabulary, device, teacher is not None) if vocabulary else 0
    most = max(0, allocations.most - thin - scratch) * config.batch_size // windows + scratch
    size = next((p.element_size() for p in model.parameters() if p.is_floating_point()), 4)
    tensors = 2 if teacher is None else 3
    logits = min(most, tensors * config.batch_size * config.sequence_length * vocabulary * size)
    own = weight_bytes(model)
    trained_on = own if config.prune_share > 0 else quantized_bytes(model, config.quantize)  # LHSPG's base is plain
    return MemoryEstimate(
        weights=trained_on + others, adapters=(1 + STATES) * thin, activations=most - logits, logits=logits,
        windows=windows, batch_size=config.batch_size, available=available(device), present=own, device=_named(device),
    )  # fmt: skip


def _named(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "this machine"
