"""Example arguments for a traced call, made from the graph alone."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import fx

from shearfx.budget import open_sizes
from shearfx.errors import TraceError, message
from shearfx.graph import Graph
from shearfx.rules.registry import shape_of

_SIZES = (3, 7, 5, 11, 13, 17)
"""What open dims are taken for, in the order of their appearance: primes, so that nothing coincides."""


def example(graph: Graph, device: torch.device | str = "cpu") -> tuple[dict[str, Any], dict[str, int]]:
    """Arguments by name like those of the traced call, and the size that each open dim has in them, by symbol.

    Tokens are zero or one, floating inputs zero.

    Raises:
        TraceError: arguments that are neither tensors nor plain values cannot be made again.
    """
    sizes: dict[str, int] = {}
    if graph.traced.conditions:
        sizes = graph.traced.input_sizes().chosen(open_sizes(graph), _SIZES)
    arguments: dict[str, Any] = {}
    names = {node.name: name for name, node in graph.traced.inputs.items()}
    for name, value in graph.traced.call.items():
        if isinstance(value, dict):
            node = graph.traced.inputs[names.get(name, name)]
            arguments[names.get(name, name)] = _tensor(node, sizes, device)
        elif isinstance(value, str) and value.startswith(("<", "{", "[", "(")):
            raise TraceError(message(f"argument {name!r} cannot be made again from the trace", todo="pass example="))
        else:
            arguments[name] = value
    return arguments, sizes


def _tensor(node: fx.Node, sizes: dict[str, int], device: torch.device | str) -> torch.Tensor:
    value = node.meta["val"]
    shape = []
    for size in shape_of(value):
        if not isinstance(size, int):
            for symbol in sorted(size.free_symbols, key=str):
                sizes.setdefault(str(symbol), _SIZES[len(sizes) % len(_SIZES)])
            size = int(sympy.sympify(size).subs({s: sizes[str(s)] for s in size.free_symbols}))
        shape.append(size)
    make = torch.zeros if value.dtype.is_floating_point else torch.ones
    return make(shape, dtype=value.dtype, device=device)
