"""Places where cutting a channel is not the same as zeroing it. Each stands after an honest feed-forward block.

A tool that treats what it does not know as element-wise gets these silently wrong: the zeroed channel still counts
(sigmoid(0) = 1/2, exp(0) = 1, a mean over n channels), or is not finite (1/0, log 0).
"""

# Calling a module returns Any, so every forward does.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.custom_mlp import FeedForward
from tests.zoo.handmade import custom, sequences


class Trap(nn.Module):
    """Feed-forward; then `inner` (20 channels), `read` of them to `width` features, and `out`."""

    def __init__(self, read: Callable[[Tensor], Tensor], width: int = 20) -> None:
        super().__init__()
        self.honest, self.inner, self.out = FeedForward(12, 44), nn.Linear(12, 20), nn.Linear(width, 7)
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.read(self.inner(x + self.honest(x))))


def trap(name: str, read: Callable[[Tensor], Tensor], width: int = 20, honest: bool = False) -> None:
    """Register a trap whose `read` turns (batch, length, 20) into (batch, length, width)."""
    custom(f"trap_{name}", lambda: Trap(read, width), {"ffn"}, sequences(12), trap=not honest)


# sums over channels of something that is not zero at zero
trap("sum_sigmoid", lambda x: x.sigmoid().sum(-1, keepdim=True), 1)
trap("sum_exp", lambda x: x.tanh().exp().sum(-1, keepdim=True).log(), 1)
trap("logsumexp", lambda x: x.logsumexp(-1, keepdim=True), 1)
trap("product", lambda x: (1.2 + 0.3 * x.tanh()).prod(-1, keepdim=True).tanh(), 1)
# not finite at zero, then met by a zero weight: 0 * inf
trap("reciprocal", lambda x: 1.0 / (x + 3.0 * x.sign()))
trap("divide_by_channel", lambda x: x.roll(1, 0).tanh() / (x.abs() + x.square()).sqrt())
trap("log", lambda x: x.abs().log().clamp(min=-3.0))
trap("log_unclamped", lambda x: x.abs().log())
trap("rsqrt", lambda x: x.square().rsqrt().sqrt().tanh())
# the number of channels is read
trap("mean", lambda x: x.mean(-1, keepdim=True), 1)
trap("variance", lambda x: x.var(-1, keepdim=True).sqrt(), 1)
trap("softmax", lambda x: 5 * x.softmax(-1))
trap("layer_norm", lambda x: functional.layer_norm(x, (20,)))
trap("standardise", lambda x: (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True))
trap("size", lambda x: x * x.shape[-1] ** 0.5 / 4)
# the order or the place of channels matters
trap("maximum", lambda x: x.amax(-1, keepdim=True), 1)
trap("negative_maximum", lambda x: (x.abs() + 0.2).amin(-1, keepdim=True), 1)
trap("cumsum", lambda x: x.cumsum(-1) / 3)
trap("sort", lambda x: x.sort(-1).values)
trap("topk", lambda x: x.topk(6, -1).values, 6)
trap("argmax", lambda x: x * x.argmax(-1, keepdim=True) / 9)
trap("flip", lambda x: x + x.flip(-1))
trap("roll", lambda x: x + x.roll(1, -1))
trap("shifted_difference", lambda x: x[..., 1:] - x[..., :-1], 19)
trap("strided", lambda x: x[..., ::2] * x[..., 1::2], 10)
trap("pick", lambda x: x[..., [3, 3, 8, 1]], 4)
trap("positional", lambda x: x * torch.arange(20, device=x.device, dtype=x.dtype) / 10)
trap("unfold", lambda x: x.unfold(-1, 4, 2).mean(-1), 9)
# honest ones among them: unmoved by zeros
trap("normalize", lambda x: 4 * functional.normalize(x, dim=-1), honest=True)
trap("weighted_sigmoid", torch.sigmoid, honest=True)
