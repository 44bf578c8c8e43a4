"""scikit-learn's digits, 1,797 images of 8x8 that come with its wheel, for benchmarks that train vision models."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@functools.cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images ``[n, 1, 8, 8]`` from 0 to 1 and labels: half to learn from, half held out, split alike in every run."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        sys.exit("this benchmark learns scikit-learn's digits: pip install scikit-learn")
    found = load_digits()
    images, labels = torch.tensor(found.images).float()[:, None] / 16, torch.tensor(found.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    learnt, held = order[: len(order) // 2], order[len(order) // 2 :]
    return images[learnt], labels[learnt], images[held], labels[held]


def enlarged(images: Tensor, side: int) -> Tensor:
    """Square images of so many pixels a side, from -1 to 1."""
    same = images.shape[-1] == side
    return (images if same else F.interpolate(images, size=(side, side), mode="bilinear")) * 2 - 1


@dataclass
class Images:
    """Batches of training images, each batch moved by up to a pixel, drawn from a seed."""

    side: int
    seed: int
    size: int = 64
    random: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.random = torch.Generator().manual_seed(self.seed)

    def next(self) -> dict[str, Tensor]:
        """``pixel_values`` and ``labels``."""
        images, labels, *_ = digits()
        drawn = torch.randint(len(labels), (self.size,), generator=self.random)
        x, y = torch.randint(0, 3, (2,), generator=self.random).tolist()
        moved = F.pad(images[drawn], (1, 1, 1, 1))[..., y : y + 8, x : x + 8]
        return {"pixel_values": enlarged(moved, self.side), "labels": labels[drawn]}

    def state_dict(self) -> dict[str, Any]:
        """Where the draws are."""
        return {"random": self.random.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.random.set_state(state["random"])
