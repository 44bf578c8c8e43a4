"""Where a group can be gated in a live model: at which inputs and outputs of modules, or in which weights.

A gate multiplies every structure of a group by a number from 0 to 1. At 0 the model computes what the masked one does,
at 1 what it did. Where every exit of the group contracts it with a parameter (the columns of the next linear layer),
the inputs of those layers are gated; elsewhere everything that the group owns is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from transformers.pytorch_utils import Conv1D

from shearfx.adapters import base_name
from shearfx.errors import PlanError, message
from shearfx.gating.contracted import contracted, is_adapter, is_all
from shearfx.graph import Graph, Group, Member, coordinates, module_path
from shearfx.live_adapters import adapted_in_place


@dataclass(frozen=True, eq=False)
class GateSite:
    """The input or output of one module, which several groups may gate together."""

    path: str
    """Of the module in the live model (an adapter's layer, not the base inside it)."""
    module: nn.Module
    side: str
    """``in`` or ``out``."""
    axis: int
    """Of the activation, counted from the end."""
    size: int
    where: tuple[tuple[str, torch.Tensor], ...]
    """For each group: LongTensor ``[size]``, the structure that each index goes with, -1 where it has none."""


@dataclass(frozen=True, eq=False)
class GatedWeight:
    """One dim of a parameter that no module's input or output stands for: gated in the parameter itself."""

    group: str
    parameter: nn.Parameter
    axis: int
    where: torch.Tensor
    """LongTensor: the structure that each index goes with, -1 where it has none."""
    module: nn.Module
    leaf: str
    """What the module calls it."""
    formed: bool
    """Whether the module adds to it what an adapter has learnt whenever it runs: the sum is gated then and there. Else
    the parameter is, in place."""


@dataclass(frozen=True)
class Places:
    """Where some groups are gated."""

    sites: tuple[GateSite, ...]
    weights: tuple[GatedWeight, ...]
    inputs_only: frozenset[str]
    """The groups that are gated where they are read only: the derivative by a gate is that of the loss along them."""


def places(graph: Graph, model: nn.Module, groups: Iterable[Group]) -> Places:
    """Find where groups can be gated.

    Args:
        graph: the analysis of the model, or of its base without adapters.
        model: the live model.
        groups: of the graph.

    Raises:
        PlanError: the model lacks a parameter of a group, or keeps it in a form that cannot be gated.
    """
    live = live_names(model)
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    alone = _read_alone(graph)
    adapted = adapted_in_place(model)

    def spot_of(alias: str, dim: int) -> tuple[str, int] | None:
        owner, _, leaf = live[alias].rpartition(".")
        return _spot(modules[owner], leaf, dim) if alias in alone else None

    def is_fed(member: Member) -> bool:
        """Whether it is the input of a module."""
        aliases = [alias for alias in graph.tensors[member.name].aliases if alias in live]
        spots = [spot_of(alias, member.dim) for alias in aliases]
        return bool(spots) and all(spot is not None and spot[0] == "in" for spot in spots)

    sites: dict[tuple[str, str], dict[str, tuple[int, torch.Tensor]]] = {}
    weights: list[GatedWeight] = []
    inputs_only = set()
    for group in groups:
        read = contracted(graph, group, is_fed) if group.certificate == "exact" else []
        if not all(is_fed(one.member) or is_all(graph, one.member.name, one.nodes) for one in read):
            read = []
        if read:
            inputs_only.add(group.name)
        for member in [one.member for one in read] or _floating(graph, group):
            where = coordinates(member.term, member.atom)
            for alias in graph.tensors[member.name].aliases:
                name = live.get(alias)
                if name is None:
                    raise PlanError(
                        message(f"this model has no parameter {alias}", todo="pass the model that was traced")
                    )
                owner, _, leaf = name.rpartition(".")
                spot = spot_of(alias, member.dim)
                if spot is None:
                    parameter = getattr(modules[owner], leaf)
                    formed = id(parameter) in adapted
                    if not parameter.is_floating_point():
                        what = f"{name} is kept as {parameter.dtype}, and is not read by a linear layer"
                        raise PlanError(message(what, todo=f"leave out groups of kind {group.kind!r}"))
                    if formed and alias not in alone:
                        what = f"an adapter changes {name}, which is read elsewhere than in its module too"
                        raise PlanError(message(what, todo="merge it first: model.merge_and_unload()"))
                    weights.append(GatedWeight(group.name, parameter, member.dim, where, modules[owner], leaf, formed))
                    break  # aliases are the very same tensor
                side, axis = spot
                outer = outer_path(owner, modules)
                sites.setdefault((outer, side), {}).setdefault(group.name, (axis, where))
    found = []
    for (path, side), of in sites.items():
        axis = next(iter(of.values()))[0]
        where_of = tuple((group, where) for group, (_, where) in of.items())
        found.append(GateSite(path, modules[path], side, axis, len(where_of[0][1]), where_of))
    return Places(tuple(found), tuple(weights), frozenset(inputs_only))


def live_names(model: nn.Module) -> dict[str, str]:
    """From the names that parameters have without adapters (and as they are) to those in the live model.

    Where PEFT trains a copy of a whole module (``modules_to_save``), the copy that is active is what the model uses.
    """
    found: dict[str, str] = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        short = base_name(name)
        if short is not None:
            found.setdefault(short, name)
        found[name] = name
    for path, module in model.named_modules():
        copies, active = getattr(module, "modules_to_save", None), getattr(module, "active_adapters", ())
        if isinstance(copies, nn.ModuleDict) and active and active[0] in copies:
            for leaf, _ in copies[active[0]].named_parameters():
                short = base_name(f"{path}.{leaf}")
                if short is not None:
                    found[short] = f"{path}.modules_to_save.{active[0]}.{leaf}"
    return found


def base_layer(module: nn.Module) -> nn.Module:
    """The layer inside an adapter's, or itself."""
    getter = getattr(module, "get_base_layer", None)
    return getter() if callable(getter) else module


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _read_alone(graph: Graph) -> set[str]:
    """Names of tensors that nothing reads but calls of the modules that own them: what these take and give stands for
    them. Others are asked for from elsewhere too, or their module is never called."""
    found: set[str] = set()
    for placeholder, tensor in graph.traced.tensors.items():
        readers = {module_path(user) for user in placeholder.users}
        if readers <= {_owner(alias) for alias in tensor.aliases}:
            found |= {alias for alias in tensor.aliases if _owner(alias) in readers}
    return found


def _floating(graph: Graph, group: Group) -> list[Member]:
    tensors = graph.tensors
    own = (m for m in group.members if tensors[m.name].kind == "parameter" and tensors[m.name].dtype.is_floating_point)
    return [m for m in own if m.name not in graph.traced.ranks and not is_adapter(m.name)]


def _spot(module: nn.Module, leaf: str, dim: int) -> tuple[str, int] | None:
    """Which side of a module, and which axis of the activation there, a dim of its weight or bias stands for."""
    if leaf == "bias":
        if isinstance(module, _ConvNd):
            return "out", -1 - len(module.kernel_size)
        return ("out", -1) if isinstance(module, (nn.Linear, Conv1D)) else _norm(module)
    if leaf != "weight":
        return None
    if isinstance(module, nn.Linear):
        return ("out", "in")[dim], -1
    if isinstance(module, Conv1D):
        return ("in", "out")[dim], -1
    if isinstance(module, _ConvNd):
        if module.groups != 1 and dim != 0:
            return None
        sides = ("in", "out") if isinstance(module, _ConvTransposeNd) else ("out", "in")
        if module.groups != 1 and sides[0] == "in":
            return None
        return (sides[dim], -1 - len(module.kernel_size)) if dim < 2 else None
    if isinstance(module, nn.Embedding):
        return ("out", -1) if dim == 1 and module.max_norm is None else None
    return _norm(module)


def input_axis(module: nn.Module, leaf: str, dim: int) -> int | None:
    """The axis of what comes into a module, counted from the end, that a dim of its parameter is contracted with."""
    spot = _spot(module, leaf, dim)
    return spot[1] if spot is not None and spot[0] == "in" else None


def _norm(module: nn.Module) -> tuple[str, int] | None:
    """Norms that end in a product with the weight and a sum with the bias, so that both zero give zero."""
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and len(module.normalized_shape) == 1:
        return "out", -1
    ranks = {"BatchNorm1d": None, "BatchNorm2d": -3, "BatchNorm3d": -4}
    axis = ranks.get(type(module).__name__) if isinstance(module, _BatchNorm) else None
    return ("out", axis) if axis is not None else None


def outer_path(path: str, modules: Mapping[str, nn.Module]) -> str:
    """The adapter's layer around a base layer."""
    outer, _, last = path.rpartition(".")
    return outer if last == "base_layer" and outer in modules else path
