"""What is lost without parts, measured: one goes after the other, each time the one that is missed the least."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from shearfx.depth.skipping import skipping
from shearfx.errors import PlanError, message
from shearfx.layers import Layer

CANDIDATES = 8
"""What is tried again once something is gone: what was missed the least alone."""


@dataclass(frozen=True)
class Damages:
    """What goes, in this order, and the loss without the first ``n`` of them."""

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
    screen: Callable[[], float] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Damages:
    """Greedily, the layers whose absence costs the least.

    Args:
        model: the live model; left as it was.
        layers: those that may go, of one list or of several; of each list one stays.
        loss: of the model as it is, without gradients.
        until, progress: as of :func:`least_missed`.
        screen: a cheaper loss of the model as it is, for each layer alone.

    Raises:
        PlanError: there are no layers.
    """
    if not layers:
        raise PlanError(message("no layer can go whole", where="layers", todo="set layers: 0"))
    lists = {layer.path: layer.list_path for layer in layers}

    def of(measure: Callable[[], float]) -> Callable[[Sequence[str]], float]:
        def without(paths: Sequence[str]) -> float:
            with skipping(model, paths):
                return measure()

        return without

    return least_missed(
        {layer.path: layer.params for layer in layers}, of(loss), until=until, screen=of(screen) if screen else None,
        progress=progress, free=lambda path, gone: not _last(model, lists[path], gone),
    )  # fmt: skip


def least_missed(
    params: Mapping[str, int],
    without: Callable[[Sequence[str]], float],
    *,
    until: Callable[[Damages], bool],
    screen: Callable[[Sequence[str]], float] | None = None,
    free: Callable[[str, Sequence[str]], bool] = lambda path, gone: True,
    progress: Callable[[int, int], None] | None = None,
) -> Damages:
    """Greedily, what is missed the least.

    Each is tried alone; from then on only the candidates that were missed the least then, together with those that are
    gone already. Costs ``len(params)`` losses by which candidates are found, and ``CANDIDATES`` for each that goes.

    Args:
        params: what may go, and the parameters that go with it.
        without: the loss without some.
        until: told what went so far; true where that is enough.
        screen: a cheaper loss without some, by which candidates are found.
        free: whether one may still go, once others are gone.
        progress: told the losses that are worked out, and those that are known to be needed.

    >>> worth = {"a": 3.0, "b": 1.0, "c": 2.0}
    >>> least_missed(dict.fromkeys(worth, 1), lambda gone: sum(map(worth.get, gone)), until=lambda f: len(f.paths) == 2)
    Damages(paths=('b', 'c'), losses=(0, 1.0, 3.0), params=(1, 1))
    """
    done, wanted = 0, 1 + len(params)

    def tried(paths: Sequence[str], measure: Callable[[Sequence[str]], float] = without) -> float:
        nonlocal done
        found = measure(paths)
        done += 1
        if progress is not None:
            progress(done, wanted)
        return found

    gone: list[str] = []
    losses = [tried(())]
    alone = {path: tried([path], screen or without) for path in params}
    order = sorted(alone, key=lambda path: alone[path])
    while not until(found := Damages(tuple(gone), tuple(losses), tuple(params[p] for p in gone))):
        left = [path for path in order if path not in gone and free(path, gone)][:CANDIDATES]
        if not left:
            break
        known = screen is None and not gone
        wanted += 0 if known else len(left)
        costs = alone if known else {path: tried([*gone, path]) for path in left}
        best = min(left, key=lambda path: costs[path])
        gone.append(best)
        losses.append(costs[best])
    return found


def _last(model: nn.Module, list_path: str, gone: Sequence[str]) -> bool:
    """Whether a list would be empty with one layer less."""
    size = len(model.get_submodule(list_path))  # type: ignore[arg-type]
    return sum(path.rpartition(".")[0] == list_path for path in gone) == size - 1
