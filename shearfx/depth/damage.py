"""What is lost without layers, measured: one goes after the other, each time the one that is missed the least."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from shearfx.depth.layers import Layer
from shearfx.depth.skipping import skipping
from shearfx.errors import PlanError, message

CANDIDATES = 8
"""Layers that are tried again once one is gone: those that were missed the least alone."""


@dataclass(frozen=True)
class Damages:
    """Layers in the order in which they go, and the loss without the first ``n`` of them."""

    paths: tuple[str, ...]
    losses: tuple[float, ...]
    """One more than paths: the first is that of the whole model."""
    params: tuple[int, ...]
    """Parameters of each."""


def least_damage(
    model: nn.Module,
    layers: Sequence[Layer],
    loss: Callable[[], float],
    *,
    until: Callable[[Damages], bool],
    progress: Callable[[int, int], None] | None = None,
) -> Damages:
    """Greedily, the layers whose absence costs the least.

    Every layer is tried alone; from then on only the candidates that were missed the least, together with those that
    are gone already. Costs ``layers + CANDIDATES`` losses a layer after the first.

    Args:
        model: the live model; left as it was.
        layers: those that may go, of one list or of several; of each list one stays.
        loss: of the model as it is, without gradients.
        until: told what went so far; true where that is enough.
        progress: told the losses that are worked out, and those that are known to be needed.

    Raises:
        PlanError: there are no layers.
    """
    if not layers:
        raise PlanError(message("no layer can go whole", where="layers", todo="set layers: 0"))
    by_path = {layer.path: layer for layer in layers}
    done, wanted = 0, 1 + len(layers)

    def tried(paths: Sequence[str]) -> float:
        nonlocal done
        with skipping(model, paths):
            found = loss()
        done += 1
        if progress is not None:
            progress(done, wanted)
        return found

    gone: list[str] = []
    losses = [tried(())]
    alone = {path: tried([path]) for path in by_path}
    order = sorted(alone, key=lambda path: alone[path])
    while not until(found := Damages(tuple(gone), tuple(losses), tuple(by_path[p].params for p in gone))):
        left = [path for path in order if path not in gone]
        free = [path for path in left if not _last(model, by_path[path].list_path, gone)][:CANDIDATES]
        if not free:
            break
        if gone:
            wanted += len(free)
        costs = {path: tried([*gone, path]) for path in free} if gone else alone
        best = min(free, key=lambda path: costs[path])
        gone.append(best)
        losses.append(costs[best])
    return found


def _last(model: nn.Module, list_path: str, gone: Sequence[str]) -> bool:
    """Whether a list would be empty with one layer less."""
    size = len(model.get_submodule(list_path))  # type: ignore[arg-type]
    return sum(path.rpartition(".")[0] == list_path for path in gone) == size - 1
