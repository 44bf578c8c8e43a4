"""How little runs of layers turn the stream: the angle between what enters and what leaves."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shearfx.depth.skipping import stream_of
from shearfx.errors import PlanError, message
from shearfx.layers import Layer
from shearfx.tracing import evaluation


@dataclass(frozen=True)
class AngularDistances:
    """``distances[n][i]``: between what enters layer ``i`` and what leaves layer ``i + n - 1``, from 0 to 1."""

    paths: tuple[str, ...]
    distances: dict[int, tuple[float, ...]]
    samples: int
    """Sequences that they are means over."""

    def best(self, count: int) -> list[str]:
        """The run of so many layers that turns the stream the least."""
        found = self.distances[_checked(self.paths, count)]
        start = min(range(len(found)), key=found.__getitem__)
        return list(self.paths[start : start + count])

    def deepest(self, count: int) -> list[str]:
        """As :func:`deepest_run`."""
        return deepest_run(self.paths, count)


def deepest_run(paths: Sequence[str], count: int) -> list[str]:
    """The last layers but the very last: the simpler choice of the paper, which nothing is measured for.

    Args:
        paths: of the layers of one list, in order.
        count: how many go.
    """
    end = len(paths) - 1
    return list(paths[end - _checked(paths, count) : end])


def _checked(paths: Sequence[str], count: int) -> int:
    if not 1 <= count < len(paths):
        what = f"{count} layers cannot go in a run: there are {len(paths)}"
        raise PlanError(message(what, where=paths[0].rpartition(".")[0], todo="drop at least one, keep one"))
    return count


def without_gaps(layers: Sequence[Layer]) -> bool:
    """Whether what leaves each layer enters the next."""
    return all(after.index == before.index + 1 for before, after in itertools.pairwise(layers))


def angular_distances(
    model: nn.Module,
    layers: list[Layer],
    batches: Sequence[Any],
    run: Callable[[nn.Module, Any], Any],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> AngularDistances:
    """One forward pass per batch; ``arccos(cos) / pi`` on the last token of each sequence, averaged over sequences.

    Args:
        model: left as it was.
        layers: of one list, in order, without gaps; what leaves one enters the next.
        batches: sequences without padding on the right.
        run: calls the model on a batch.
        progress: called as work gets done.

    Raises:
        PlanError: there are no layers or batches, or the layers follow each other with gaps.

    Source: Gromov et al. 2024, "The Unreasonable Ineffectiveness of the Deeper Layers" (arXiv 2403.17887), section 3.2,
    equation 7.
    """
    if not layers or not without_gaps(layers):
        raise PlanError(message("these are no layers one after the other", todo="pass those of one list"))
    sums: dict[int, Tensor] = {}
    samples = 0
    with _noting(model, layers) as stream, torch.no_grad(), evaluation(model):
        for done, batch in enumerate(batches, start=1):
            run(model, batch)
            states = torch.stack([stream[i] for i in range(len(layers) + 1)])  # [layers + 1, sequences, width]
            unit = torch.nn.functional.normalize(states, dim=-1)
            for n in range(1, len(layers) + 1):
                cosine = (unit[:-n] * unit[n:]).sum(-1).clamp(-1, 1)
                sums[n] = sums.get(n, torch.zeros(len(layers) + 1 - n)) + cosine.arccos().sum(-1).cpu() / math.pi
            samples += states.shape[1]
            if progress is not None:
                progress(done, len(batches))
    if not samples:
        raise PlanError(message("there are no batches to measure distances on", todo="pass at least one"))
    means = {n: tuple((total / samples).tolist()) for n, total in sums.items()}
    return AngularDistances(tuple(layer.path for layer in layers), means, samples)


def nearest_run(layers: Sequence[Layer], amount: float, pick: Callable[[int], list[str]]) -> list[str]:
    """The run of layers that comes nearest to an amount, as whole layers seldom make it.

    Args:
        layers: of one list; the number of parameters counts.
        amount: of parameters that are to go.
        pick: gives the run of so many layers: ``best`` or ``deepest`` of :class:`AngularDistances`.

    Raises:
        PlanError: there is one layer only, and it has to stay.
    """
    params = {layer.path: layer.params for layer in layers}
    runs = [pick(count) for count in range(1, max(2, len(layers)))]
    return min(runs, key=lambda run: abs(sum(params[path] for path in run) - amount))


@contextlib.contextmanager
def _noting(model: nn.Module, layers: list[Layer]) -> Iterator[dict[int, Tensor]]:
    """For the while, forward passes note the stream in front of each layer and behind the last: its last tokens."""
    found: dict[int, Tensor] = {}

    def before(index: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found[index] = _last_tokens((args, kwargs))

        return hook

    def behind(module: nn.Module, args: Any, output: Any) -> None:
        found[len(layers)] = _last_tokens(output)

    modules = [model.get_submodule(layer.path) for layer in layers]
    hooks = [m.register_forward_pre_hook(before(i), with_kwargs=True) for i, m in enumerate(modules)]
    hooks.append(modules[-1].register_forward_hook(behind))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _last_tokens(values: Any) -> Tensor:
    """``[sequences, width]`` of the stream ``[sequences, tokens, width]``."""
    return stream_of(values).detach()[:, -1].float()
