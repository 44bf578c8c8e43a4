"""What generating with a model costs, counted and not timed: operations and memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from shearfx.footprint import Allocations, bytes_text
from shearfx.inference import device_of, evaluating
from shearfx.speed import check_generation, prompt_ids


@dataclass(frozen=True)
class InferenceCost:
    """Operations and bytes of greedy generation, and the lengths they were counted at."""

    prefill_flops: int
    """Floating-point operations of matrix products for the prompt up to the first new token; a product and a sum are
    two."""
    decode_flops: int
    """The same for one further token, with the cache; the mean over all of them."""
    weights_bytes: int
    """Parameters and buffers, tied ones once."""
    working_bytes: int
    """Tensors beside the weights at most, the cache among them; what kernels take for themselves is not seen."""
    prompt_tokens: int
    new_tokens: int
    batch_size: int

    def __str__(self) -> str:
        lengths = f"{self.batch_size} x {self.prompt_tokens} + {self.new_tokens} tokens"
        flops = f"{self.prefill_flops / 1e9:.3g} GFLOP for the prompt, {self.decode_flops / 1e9:.3g} a further token"
        memory = f"{bytes_text(self.weights_bytes)} of weights, {bytes_text(self.working_bytes)} beside them"
        return f"{flops}; {memory} ({lengths})"


def inference_cost(
    model: nn.Module, *, prompt_tokens: int = 128, new_tokens: int = 32, batch_size: int = 1
) -> InferenceCost:
    """Count what greedy ``model.generate`` with its cache takes, for a prompt of random ids.

    Args:
        model: one that generates.
        prompt_tokens, new_tokens, batch_size: at least 1, 2 and 1.

    Raises:
        ShearError: the model cannot generate, or a length is out of range.
    """
    check_generation(model, prompt_tokens, new_tokens, batch_size)
    ids = prompt_ids(model, None, None, prompt_tokens).expand(batch_size, -1).to(device_of(model))
    flops = []
    # Attention as plain products: fused kernels are not all known to the counter.
    with evaluating(model):
        for new in (1, new_tokens):
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                _generate(model, ids, new)
            flops.append(counter.get_total_flops())
        with Allocations(device_of(model)) as allocations:
            _generate(model, ids, new_tokens)
    tensors = {t.data_ptr() if not t.is_meta else id(t): t for t in (*model.parameters(), *model.buffers())}
    return InferenceCost(
        prefill_flops=flops[0], decode_flops=round((flops[1] - flops[0]) / (new_tokens - 1)),
        weights_bytes=sum(t.nbytes for t in tensors.values()), working_bytes=allocations.most,
        prompt_tokens=prompt_tokens, new_tokens=new_tokens, batch_size=batch_size,
    )  # fmt: skip


def _generate(model: Any, ids: torch.Tensor, new_tokens: int) -> None:
    mask = torch.ones_like(ids)
    model.generate(
        input_ids=ids, attention_mask=mask, do_sample=False, num_beams=1, min_new_tokens=new_tokens,
        max_new_tokens=new_tokens, use_cache=True,
    )  # fmt: skip
