"""What reads a group by a weight: modules, whose inputs are looked at, and products that are no module's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from shearfx.contractions.products import Product, products
from shearfx.errors import PlanError, message
from shearfx.gating.contracted import is_adapter
from shearfx.gating.sites import GateSite, base_layer, input_axis, live_names, outer_path
from shearfx.graph import Graph, Group, mentions, module_path
from shearfx.live_adapters import adapters_of
from shearfx.saliency.base import refuse_unseen
from shearfx.saliency.evidence import Evidence


@dataclass(frozen=True)
class Readers:
    """Where some groups are read by weights."""

    groups: Mapping[str, Group]
    sites: tuple[GateSite, ...]
    """Inputs of modules."""
    products: Mapping[Product, tuple[tuple[str, Tensor], ...]]
    """All others; for each group that is read there, LongTensor ``[instances, features]``, the structure of each."""


def find_readers(given: Evidence, last: bool = False) -> Readers:
    """The modules and other products that read the groups of some evidence.

    A group counts as seen where anything reads it by a weight: what a norm makes of a stream is read by the layers
    after the norm.

    Args:
        last: only modules that read the last axis of their input (no convolutions) are taken for modules.

    Raises:
        PlanError: there is no model, it has no weights, or no weight reads a group.
    """
    graph, model = given.graph, given.model
    groups = {group.name: group for group in given.groups}
    found = _found(graph, groups.values())
    live, modules = live_names(model), dict(model.named_modules(remove_duplicate=False))
    sites: dict[str, tuple[int, dict[str, Tensor]]] = {}
    others: dict[Product, tuple[tuple[str, Tensor], ...]] = {}
    for product, where in found.items():
        spot = _spot(graph, product, live, modules)
        if spot is None or (last and spot[1] != -1):
            others[product] = tuple(where.items())
        else:
            path, axis = spot
            for name, index in where.items():
                sites.setdefault(path, (axis, {}))[1].setdefault(name, index.flatten())
    seen = {name for where in found.values() for name in where}
    refuse_unseen((g for name, g in groups.items() if name not in seen), given.saliency, groups.values())
    readers = Readers(
        groups,
        tuple(
            GateSite(path, modules[path], "in", axis, len(next(iter(where.values()))), tuple(where.items()))
            for path, (axis, where) in sites.items()
        ),
        others,
    )
    _check_weights(readers, graph, model, live, given.saliency)
    return readers


def unread(graph: Graph, groups: Sequence[Group]) -> list[Group]:
    """Those of some groups that no weight reads."""
    seen = {name for where in _found(graph, groups).values() for name in where}
    return [group for group in groups if group.name not in seen]


def _found(graph: Graph, groups: Iterable[Group]) -> dict[Product, dict[str, Tensor]]:
    by_atom = {group.atom: group for group in groups}
    found = {}
    for product in products(graph, lambda dim, _: bool(mentions((dim,)) & by_atom.keys())):
        if all(is_adapter(name) for name in product.made_of):
            continue  # counts with the layer that it is on
        exits = graph.records[product.node].exits
        atoms = mentions(graph.solver.resolve(exits[i].dim) for i in product.exits)
        found[product] = {
            group.name: product.where(graph, atom) for atom, group in by_atom.items() if atom in atoms
        }  # fmt: skip
    return found


def _spot(
    graph: Graph, product: Product, live: Mapping[str, str], modules: Mapping[str, nn.Module]
) -> tuple[str, int] | None:
    """Path of the module whose input the activation is, and its axis counted from the end, if it is any's."""
    tensor, owner = graph.traced.tensors.get(product.weight), module_path(product.node)
    for alias in tensor.aliases if tensor is not None and len(product.axes) == 1 else ():
        if alias.rpartition(".")[0] == owner and alias in live:
            path, _, leaf = live[alias].rpartition(".")
            axis = input_axis(modules[path], leaf, product.axes[0])
            if axis is not None:
                return outer_path(path, modules), axis
    return None


def _check_weights(readers: Readers, graph: Graph, model: nn.Module, live: Mapping[str, str], what: str) -> None:
    for site in readers.sites:
        weight = getattr(base_layer(site.module), "weight", None)
        if isinstance(weight, Tensor) and weight.is_meta:
            _refuse(what, f"{site.path} is on the meta device", "load the weights, or choose saliency='random'")
    if not readers.products:
        return
    parameters = dict(model.named_parameters(remove_duplicate=False))
    adapted = {id(getattr(one.base, one.leaf, None)) for one in adapters_of(model).values()}
    for product in readers.products:
        for name in product.made_of:
            weight = parameters.get(live.get(name, name))
            if weight is None:
                continue
            if weight.is_meta:
                _refuse(what, f"{name} is on the meta device", "load the weights, or choose saliency='random'")
            if not weight.is_floating_point():
                _refuse(what, f"{name} is kept as {weight.dtype}", "dequantise the model, or choose 'magnitude'")
            if id(weight) in adapted:
                todo = "merge it first: model.merge_and_unload()"
                _refuse(what, f"an adapter changes {name}, which is read by no plain linear layer", todo)


def _refuse(what: str, why: str, todo: str) -> None:
    raise PlanError(message(f"saliency {what!r} looks at weights, and {why}", todo=todo))
