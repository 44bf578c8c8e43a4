"""Attributes that repeat the shape of a parameter beside them (``out_features``, ``num_channels``, ...)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from shearfx.dims import Atom, Dim, Prod
from shearfx.graph import new_size
from shearfx.overlay import write
from shearfx.plan_text import parse_term
from shearfx.pruning_plan import PruningPlan

Shape = tuple[int, ...]


def mirror(model: nn.Module, plan: PruningPlan) -> None:
    """Adjust, in a model whose parameters are cut already, the attributes that repeat their shapes."""
    owners: dict[str, list[str]] = {}
    for name in plan.kept:
        path, _, leaf = name.rpartition(".")
        owners.setdefault(path, []).append(leaf)
    for path, leaves in owners.items():
        module = model.get_submodule(path)
        for name, value in mirrored(module, path, leaves, plan).items():
            write(module, name, value, path)
        _around(model, path)


def mirrored(module: nn.Module, path: str, leaves: list[str], plan: PruningPlan) -> dict[str, int]:
    """New values of the attributes of one module that owns some cut tensors."""
    prefix = f"{path}." if path else ""
    for kind, documented in _DOCUMENTED:
        if isinstance(module, kind):
            weight = getattr(module, "weight", None)
            weight = getattr(module, "running_mean", None) if weight is None else weight
            if weight is None:
                return {}
            leading = _leading(plan, prefix, leaves, getattr(module, "groups", getattr(module, "num_groups", 1)))
            values = documented(tuple(weight.shape), leading)
            return {name: value for name, value in values.items() if name.split(".")[0] in vars(module)}
    if type(module).__name__ == "Conv1D" and {"nf", "nx"} <= vars(module).keys():  # transformers.pytorch_utils
        rows, columns = module.get_parameter("weight").shape
        return {"nx": int(rows), "nf": int(columns)}
    return {}


# For each layer class: from the shape of its weight and its new number of groups to what its documentation says.
_DOCUMENTED: list[tuple[Any, Callable[[Shape, int], Mapping[str, int]]]] = [
    (nn.Linear, lambda s, g: {"out_features": s[0], "in_features": s[1]}),
    (nn.Bilinear, lambda s, g: {"out_features": s[0], "in1_features": s[1], "in2_features": s[2]}),
    (nn.modules.conv._ConvTransposeNd, lambda s, g: {"in_channels": s[0], "out_channels": s[1] * g, "groups": g}),
    (nn.modules.conv._ConvNd, lambda s, g: {"out_channels": s[0], "in_channels": s[1] * g, "groups": g}),
    (nn.modules.batchnorm._NormBase, lambda s, g: {"num_features": s[0]}),
    (nn.GroupNorm, lambda s, g: {"num_channels": s[0], "num_groups": g}),
    ((nn.LayerNorm, nn.RMSNorm), lambda s, g: {f"normalized_shape.{i}": size for i, size in enumerate(s)}),
    ((nn.Embedding, nn.EmbeddingBag), lambda s, g: {"num_embeddings": s[0], "embedding_dim": s[1]}),
    (nn.PReLU, lambda s, g: {"num_parameters": s[0]}),
]


def _leading(plan: PruningPlan, prefix: str, leaves: list[str], old: int) -> int:
    """What is left of the ``old`` groups into which dim 0 of a weight falls."""
    atoms, masks = plan._atoms
    sizes = {atom: int(mask.sum()) for atom, mask in masks.items()}
    for leaf in sorted(leaves, key=lambda leaf: leaf != "weight"):
        term = _term(plan, prefix + leaf, 0, atoms)
        if term is None:
            continue
        factors = term.factors if isinstance(term, Prod) else (term,)
        for count in range(1, len(factors) + 1):
            if math.prod(f.size for f in factors[:count]) == old:
                return int(math.prod(new_size(f, sizes) for f in factors[:count]))
    return old


def _term(plan: PruningPlan, name: str, axis: int, atoms: list[Atom]) -> Dim | None:
    first = next((first for first, names in plan.aliases.items() if name in names), name)
    terms = plan.terms.get(first)
    text = terms[axis] if terms is not None and axis < len(terms) else None
    return None if text is None else parse_term(text, atoms)


def _around(model: nn.Module, path: str) -> None:
    """A wrapper that keeps a layer as its base layer (an adapter) repeats the layer's own attributes."""
    parent, _, leaf = path.rpartition(".")
    if leaf != "base_layer":
        return
    wrapper, base = model.get_submodule(parent), model.get_submodule(path)
    for ours, theirs in (("in_features", ("in_features", "nx", "in_channels", "num_embeddings")),
                         ("out_features", ("out_features", "nf", "out_channels", "embedding_dim"))):  # fmt: skip
        value = next((vars(base)[name] for name in theirs if name in vars(base)), None)
        if ours in vars(wrapper) and isinstance(value, int):
            setattr(wrapper, ours, value)
