"""Several processes that train one model, each on batches of its own: what they have to agree on.

``DistributedDataParallel`` makes gradients, and so the trained parameters, equal on all ranks. What fades must be equal
too, and that is chosen by scores which every rank has from its own batches.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor


def several() -> bool:
    """Whether there is a process group of more than one rank."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def add_up(numbers: Tensor) -> Tensor:
    """The sum over all ranks, the same bits on each; ``numbers`` itself where there is one rank only."""
    if not several():
        return numbers
    here = numbers.to(_device(), copy=True)
    dist.all_reduce(here)
    dist.broadcast(here, src=0)  # a reduction need not round alike everywhere
    return here.to(numbers.device)


def agreed(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean of every score over all ranks, the same bits on each.

    Args:
        scores: of the same groups on each rank.
    """
    if not several():
        return dict(scores)
    names = sorted(scores)
    total = add_up(torch.cat([scores[name].detach().cpu().double() for name in names])) / dist.get_world_size()
    return dict(zip(names, total.split([len(scores[name]) for name in names]), strict=True))


def _device() -> torch.device:
    if "cpu:" in str(dist.get_backend_config()):
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())
