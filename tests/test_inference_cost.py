"""Operations and memory of generation, against what they must be."""

import pytest
import torch
from torch import nn

from shearfx.errors import ShearError
from shearfx.inference_cost import inference_cost
from tests.tiny_models import llama


def test_counts_the_products_of_a_llama() -> None:
    """Weights: each token multiplies every matrix once; attention: each token with all tokens that it may see."""
    model = llama()
    cost = inference_cost(model, prompt_tokens=8, new_tokens=5, batch_size=2)
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name)
    head = model.get_submodule("lm_head").weight.numel()  # type: ignore[operator]
    layers, hidden = 2, 16
    attention = 2 * layers * hidden  # products of one query with one key, and of one weight with one value
    # the output layer sees the last token of the prompt only
    assert cost.prefill_flops == 2 * 2 * (8 * (matrices - head) + head + 8 * 8 * attention)
    seen = [9, 10, 11, 12]
    assert cost.decode_flops == 2 * 2 * round(matrices + sum(seen) / 4 * attention)
    assert cost.weights_bytes >= sum(p.nbytes for p in model.parameters())
    assert cost.working_bytes > 0
    assert "2 x 8 + 5 tokens" in str(cost)


def test_halving_the_dtype_halves_the_weights() -> None:
    model = llama()
    whole = inference_cost(model, prompt_tokens=4, new_tokens=2)
    half = inference_cost(model.to(torch.bfloat16), prompt_tokens=4, new_tokens=2)
    assert half.weights_bytes == pytest.approx(whole.weights_bytes / 2, rel=0.01)
    assert half.prefill_flops == whole.prefill_flops


def test_models_that_cannot_generate() -> None:
    with pytest.raises(ShearError, match=r"no generate\(\)"):
        inference_cost(nn.Linear(2, 2))
    with pytest.raises(ShearError, match="out of range"):
        inference_cost(llama(), prompt_tokens=400)
