"""Products whose weight is one parameter, moved about: what the weight should be, the parameter can make it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection

from torch import nn

from shearfx.contractions.patches import is_convolution
from shearfx.contractions.products import Product, products
from shearfx.dims import Dim
from shearfx.gating.contracted import is_all, origin
from shearfx.gating.sites import live_names
from shearfx.graph import Graph
from shearfx.live_adapters import adapted_in_place


def rearranged(
    graph: Graph, model: nn.Module, wanted: Callable[[Dim, str], bool], without: Collection[str] = ()
) -> dict[Product, str]:
    """The products of a graph over some dims with a parameter that nothing else reads: of fused experts, of raw
    parameters. Convolutions are left out.

    Args:
        graph: the analysis of the model, or of its base without adapters.
        model: the live model.
        wanted: as of :func:`shearfx.contractions.products.products`.
        without: names of parameters that are left out.

    Returns:
        For each product: the parameter's name in the live model. Quantised and adapted ones are left out.
    """
    live, adapted = live_names(model), adapted_in_place(model)
    found: dict[Product, str] = {}
    for product in products(graph, wanted):
        tensor = graph.traced.tensors.get(origin(product.weight))
        if tensor is None or tensor.kind != "parameter" or len(tensor.aliases) != 1 or tensor.name not in live:
            continue
        name = live[tensor.name]
        parameter = model.get_parameter(name)
        if name in without or id(parameter) in adapted or is_convolution(product.node):
            continue
        if parameter.is_floating_point() and is_all(graph, tensor.name, {product.node}):
            found[product] = name
    counts = Counter(found.values())
    return {product: name for product, name in found.items() if counts[name] == 1}
