"""Closed-form compensation at the cut: what stays takes over, by least squares, what the removed structures did.

A layer that reads a cut group computes ``y = W x``. Without the removed inputs the best it can do is
``W' x_S`` with ``W' = W H[:, S] (H[S, S] + ridge)^-1`` and ``H = sum of x x^T`` over calibration data. Linear layers
are fitted, and parameters of no layer that are multiplied with the group and read by nothing else: each fused expert.

Source: the reconstruction of SparseGPT (arXiv 2301.00774), equation 2, and of channel pruning (He et al. 2017, arXiv
1707.06168), equation 4; LoRAShear has no such step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from shearfx.adapters import base_name
from shearfx.contractions.gathering import Sums, run_and_replay, squares
from shearfx.contractions.products import Product
from shearfx.contractions.rearranged import rearranged
from shearfx.contractions.replaying import Replay
from shearfx.errors import PlanError, message
from shearfx.gating.moments import parted_by
from shearfx.gating.sites import GateSite, base_layer, places
from shearfx.graph import Graph, Group, mentions
from shearfx.pruning_plan import PruningPlan
from shearfx.slicing import cut_tensor

RIDGE = 1e-2
"""Of the mean of the diagonal of H: what keeps the solution from chasing the calibration data."""


class LinearReaders:
    """The linear layers that read what a plan cuts.

    Args:
        graph: the analysis of the model, or of its base without adapters.
        model: the live model.
        plan: what will be cut.
    """

    def __init__(self, graph: Graph, model: nn.Module, plan: PruningPlan) -> None:
        self.stays = Staying(plan)
        self.kept: dict[str, Tensor] = {}
        """By path of the layer: LongTensor of the inputs that stay."""
        self.sites: list[GateSite] = []
        """Their inputs."""
        for site in places(graph, model, self.stays.groups(graph)).sites:
            if site.side == "in" and isinstance(base_layer(site.module), (nn.Linear, Conv1D)):
                self.kept[site.path] = self.stays.of(site.where)
                self.sites.append(site)


class Staying:
    """Which inputs of what reads some groups stay in a cut."""

    def __init__(self, plan: PruningPlan) -> None:
        self._stays: dict[str, Tensor] = {}
        for cut in plan.cuts:
            stays = torch.zeros(cut.size + 1, dtype=torch.bool)
            stays[list(cut.kept)] = True
            stays[-1] = True  # what is no structure's
            self._stays[cut.name] = stays

    def groups(self, graph: Graph) -> list[Group]:
        """The groups that are cut."""
        return [group for group in graph.groups if group.name in self._stays]

    def of(self, where_of: Iterable[tuple[str, Tensor]]) -> Tensor:
        """LongTensor of the inputs that stay.

        Args:
            where_of: for each group that is cut, LongTensor ``[inputs]``: the structure of each, -1 for none.
        """
        found = torch.stack([self._stays[name][where] for name, where in where_of]).all(0)
        return found.nonzero().flatten()


def least_squares(moments: Tensor, weight: Tensor, kept: Tensor, ridge: float = RIDGE) -> Tensor:
    """The weight for the kept inputs that comes closest to the full one, in the weight's dtype, ``[out, kept]``.

    Args:
        moments: ``sum of x x^T`` over what it reads, ``[in, in]``.
        weight: the full one, ``[out, in]``.
        kept: LongTensor of inputs.
        ridge: share of the mean of the diagonal.
    """
    kept, moments = kept.to(weight.device), moments.to(weight.device).double()
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
    """Replace the weights that read what was cut, in the small model, by their least-squares fit.

    Args:
        graph: the analysis of the model.
        model: the full model; left as it was.
        small: what :func:`shearfx.construct` made of it, in the original class; changed in place.
        plan: the plan it was made with.
        batches: calibration data.
        run: calls a model on a batch.
        ridge: share of the mean of the diagonal that is added.

    Returns:
        The number of weights that were fitted.

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
        By name: each weight that reads what is cut, after the cut, on the CPU.

    Raises:
        PlanError: no layer can be fitted.
    """
    fits = solved(graph, model, plan, batches, run, ridge=ridge, memory=memory)
    found = {}
    for name, new in fits:
        planned = name if name in plan.shapes else base_name(name) or name
        found[planned] = cut_tensor(new, plan.kept.get(planned, {})).cpu()
    return found


def solved(
    graph: Graph,
    model: nn.Module,
    plan: PruningPlan,
    batches: Iterable[Any],
    run: Run,
    *,
    ridge: float = RIDGE,
    memory: int | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Name and fit of each weight that reads what is cut, in its own shape; what it reads no more is as it was.

    Args, errors: as of :func:`fitted`.
    """
    layers = LinearReaders(graph, model, plan)
    stays = layers.stays
    atoms = {group.atom: group.name for group in stays.groups(graph)}
    own = {_weight(site)[0] for site in layers.sites}
    others = rearranged(graph, model, lambda dim, _: bool(mentions((dim,)) & atoms.keys()), own)
    if not layers.kept and not others:
        todo = "leave out compensation"
        raise PlanError(
            message("no linear layer, and no such parameter, reads what the plan cuts", where="compensation", todo=todo)
        )
    replay = Replay(graph, model, tuple(others))
    readers = Counter(id(_weight(site)[1]) for site in layers.sites)
    sites = [site for site in layers.sites  # where there is something to fit, for one reader alone
             if len(layers.kept[site.path]) and readers[id(_weight(site)[1])] == 1]  # fmt: skip
    reading: list[GateSite | Product] = [*sites, *others]
    parts = parted_by(reading, squares, memory)
    batches = list(batches) if len(parts) > 1 else batches
    for part in parts:
        sums = Sums(part)
        go = run_and_replay(run, replay, sums.products, sums.watching, sums.read)
        with torch.no_grad():
            for batch in batches:
                go(model, batch)
        for site in sums.sites:
            if site.path in sums.inputs:  # no data may have come by an expert
                name, weight = _weight(site)
                new = weight.detach().clone()
                rows, at = (new.T if is_turned(model, site.path) else new), layers.kept[site.path].to(new.device)
                rows[:, at] = least_squares(sums.inputs.pop(site.path), rows, at, ridge)
                yield name, new
        for product, found in sums.taken():
            exits = graph.records[product.node].exits
            read = mentions(graph.solver.resolve(exits[i].dim) for i in product.exits)
            where_of = [(name, product.where(graph, atom)) for atom, name in atoms.items() if atom in read]
            count = max(len(where) for _, where in where_of)  # one for all instances, or each its own
            kept = [stays.of((name, where[i]) for name, where in where_of) for i in range(count)]
            refit = _refit(replay, product, found, [kept[i if count > 1 else 0] for i in found], ridge)
            if refit is not None:
                yield others[product], refit


def _weight(site: GateSite) -> tuple[str, Tensor]:
    """Of a layer: its name in the live model, and it."""
    layer: Any = base_layer(site.module)
    return f"{site.path}.weight" if layer is site.module else f"{site.path}.base_layer.weight", layer.weight


def _refit(
    replay: Replay, product: Product, found: Mapping[int, Tensor], kept: Sequence[Tensor], ridge: float
) -> Tensor | None:
    """The parameter of a product with the least-squares fit of each instance that has read something; None where its
    numbers are more than moved about."""
    if not replay.is_moved(product):
        return None
    new = replay.weight(product).clone()
    for (number, moments), stay in zip(found.items(), kept, strict=True):
        at = stay.to(new.device)
        if len(at):
            new[number][:, at] = least_squares(moments, new[number], at, ridge)
    return replay.parameter(product, new)


def parameter_named(model: nn.Module, name: str) -> nn.Parameter:
    """A parameter by its name, or by its layer's, as runs of earlier versions wrote it."""
    owner, _, leaf = name.rpartition(".")
    found = getattr(model.get_submodule(owner), leaf)
    return found if isinstance(found, nn.Parameter) else found.weight


@torch.no_grad()
def put(small: nn.Module, fits: Mapping[str, Tensor]) -> None:
    """Give the weights of a cut model their fits, in place, by name."""
    for name, new in fits.items():
        target = parameter_named(small, name)
        target.copy_(new.to(target.device, target.dtype))


def is_turned(model: nn.Module, path: str) -> bool:
    """Whether a layer keeps its weight as ``[in, out]``."""
    return isinstance(base_layer(model.get_submodule(path)), Conv1D)
