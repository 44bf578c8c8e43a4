"""Closed-form compensation at the cut: what stays takes over, by least squares, what the removed structures did.

A layer that reads a cut group computes ``y = W x``. Without the removed inputs the best it can do is
``W' x_S`` with ``W' = W H[:, S] (H[S, S] + ridge)^-1`` and ``H = sum of x x^T`` over calibration data.

Source: the reconstruction of SparseGPT (arXiv 2301.00774), equation 2, and of channel pruning (He et al. 2017, arXiv
1707.06168), equation 4; LoRAShear has no such step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from shearfx.errors import PlanError, message
from shearfx.gating.moments import parted, second_moments
from shearfx.gating.sites import GateSite, base_layer, places
from shearfx.graph import Graph
from shearfx.pruning_plan import PruningPlan

RIDGE = 1e-2
"""Of the mean of the diagonal of H: what keeps the solution from chasing the calibration data."""


class Moments:
    """Second moments of the inputs of the layers that read some groups, gathered as the model runs.

    Args:
        graph: the analysis of the model, or of its base without adapters.
        model: the live model.
        plan: what will be cut; only layers that read one of its groups are watched.

    Memory: float32 ``[inputs, inputs]`` for each such layer.
    """

    def __init__(self, graph: Graph, model: nn.Module, plan: PruningPlan) -> None:
        cut = {c.name: c for c in plan.cuts}
        groups = [g for g in graph.groups if g.name in cut]
        self.kept: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}
        self.sites: list[GateSite] = []
        """Inputs of the layers that are watched."""
        for site in places(graph, model, groups).sites:
            if site.side != "in" or not isinstance(base_layer(site.module), (nn.Linear, Conv1D)):
                continue
            gone = torch.zeros(site.size, dtype=torch.bool)
            for name, where in site.where:
                stays = torch.zeros(cut[name].size + 1, dtype=torch.bool)
                stays[list(cut[name].kept)] = True
                stays[-1] = True
                gone |= ~stays[where]
            self.kept[site.path] = (~gone).nonzero().flatten()
            self.sites.append(site)

    def parts(self, memory: int | None) -> list[list[str]]:
        """The layers by path, in parts whose moments take no more than so many bytes (but one layer at least)."""
        return [[site.path for site in part] for part in parted(self.sites, memory)]

    @contextmanager
    def watching(self, paths: Collection[str] | None = None) -> Iterator[Moments]:
        """For the while, forward passes add to the moments: of these layers, or of all."""
        with second_moments(site for site in self.sites if paths is None or site.path in paths) as self.sums:
            yield self

    def solve(self, path: str, weight: Tensor, ridge: float = RIDGE) -> Tensor:
        """The weight for the kept inputs that comes closest to the full one, in the weight's dtype.

        Args:
            path: of the layer in the live model.
            weight: the full one, ``[out, in]``.
            ridge: share of the mean of the diagonal.

        Returns:
            ``[out, kept]``.
        """
        kept = self.kept[path].to(weight.device)
        moments = self.sums[path].to(weight.device).double()
        # The ridge pulls towards the plain cut, not towards zero: what the data does not show stays as it was.
        removed = torch.ones(len(moments), dtype=torch.bool, device=weight.device)
        removed[kept] = False
        columns = moments[:, kept]
        del moments  # as large as all else together, where layers are wide
        damped, cross = columns[kept], columns[removed]
        del columns
        diagonal = damped.diagonal()
        diagonal += ridge * diagonal.mean().clamp(min=1e-12)
        full = weight.double()
        change = torch.linalg.solve(damped, (full[:, removed] @ cross).T).T
        fitted: Tensor = full[:, kept] + change
        return fitted.to(weight.dtype)


Run = Callable[[nn.Module, Any], Any]
"""Calls a model on a batch."""


def compensate_cut(
    graph: Graph,
    model: nn.Module,
    small: nn.Module,
    plan: PruningPlan,
    batches: Iterable[Any],
    run: Run,
    *,
    ridge: float = RIDGE,
) -> int:
    """Replace the weights of the layers that read what was cut, in the small model, by their least-squares fit.

    Args:
        graph: the analysis of the model.
        model: the full model; left as it was.
        small: what :func:`shearfx.construct` made of it, in the original class; changed in place.
        plan: the plan it was made with.
        batches: calibration data.
        run: calls a model on a batch.
        ridge: share of the mean of the diagonal that is added.

    Returns:
        The number of layers that were fitted.

    Raises:
        PlanError: no layer can be fitted.
    """
    fits = fitted(graph, model, plan, batches, run, ridge=ridge)
    put(small, fits)
    return len(fits)


def fitted(
    graph: Graph,
    model: nn.Module,
    plan: PruningPlan,
    batches: Iterable[Any],
    run: Run,
    *,
    ridge: float = RIDGE,
    memory: int | None = None,
) -> dict[str, Tensor]:
    """The least-squares fits by themselves, before anything is cut.

    Args:
        graph, model, plan, batches, run, ridge: as of :func:`compensate_cut`; the batches are run once for each part.
        memory: bytes that moments may take at a time, beyond which layers are fitted part by part.

    Returns:
        By path of the layer: its weight after the cut, ``[out, in]`` (``[in, out]`` of a Conv1D), on the CPU.

    Raises:
        PlanError: no layer can be fitted.
    """
    fits = solved(graph, model, plan, batches, run, ridge=ridge, memory=memory)
    return {path: as_cut(new, plan, f"{path}.weight", is_turned(model, path)) for path, (_, new) in fits.items()}


@torch.no_grad()
def solved(
    graph: Graph,
    model: nn.Module,
    plan: PruningPlan,
    batches: Iterable[Any],
    run: Run,
    *,
    ridge: float = RIDGE,
    memory: int | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """By path of each layer that reads what is cut: the inputs that stay, and its fit ``[out, kept]``, all rows.

    Args, errors: as of :func:`fitted`.
    """
    moments = Moments(graph, model, plan)
    if not moments.kept:
        todo = "leave out compensation"
        raise PlanError(message("no linear layer reads what the plan cuts", where="compensation", todo=todo))
    moments.sites = [site for site in moments.sites if len(moments.kept[site.path])]  # else there is nothing to fit
    parts = moments.parts(memory)
    batches = list(batches) if len(parts) > 1 else batches
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for part in parts:
        with moments.watching(part):
            for batch in batches:
                run(model, batch)
        for path in part:
            if path in moments.sums:
                weight: Tensor = base_layer(model.get_submodule(path)).weight  # type: ignore[assignment]
                full = weight.T if is_turned(model, path) else weight
                found[path] = moments.kept[path], moments.solve(path, full, ridge)
                del moments.sums[path]
    return found


@torch.no_grad()
def put(small: nn.Module, fits: Mapping[str, Tensor]) -> None:
    """Give the layers of a cut model their fits, in place."""
    for path, new in fits.items():
        target: Tensor = base_layer(small.get_submodule(path)).weight  # type: ignore[assignment]
        target.copy_(new.to(target.device, target.dtype))


def as_cut(new: Tensor, plan: PruningPlan, name: str, turned: bool) -> Tensor:
    """A layer's weight ``[out, kept]`` without the rows that a plan cuts, on the CPU, in the layer's own layout.

    Args:
        new: the weight.
        plan: what stays of rows.
        name: of the weight, in the plan.
        turned: whether the layer keeps it as ``[in, out]``.
    """
    rows = plan.kept.get(name, {}).get(1 if turned else 0)
    new = new if rows is None else new[rows.to(new.device)]
    return (new.T if turned else new).cpu()


def is_turned(model: nn.Module, path: str) -> bool:
    """Whether a layer keeps its weight as ``[in, out]``."""
    return isinstance(base_layer(model.get_submodule(path)), Conv1D)
