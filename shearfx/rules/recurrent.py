"""Recurrent layers. The hidden width passes: a zeroed unit that starts at zero stays at zero; gates are never cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx

from shearfx.dims import Dim, prod
from shearfx.rules.registry import Dims, Site, rule
from shearfx.values import Value, multiply

aten = torch.ops.aten
_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
_STEPS = "a recurrent layer goes along it step by step"


def _samples() -> Iterable[tuple[Any, ...]]:
    for name, module in (("lstm", torch.nn.LSTM), ("gru", torch.nn.GRU), ("rnn_tanh", torch.nn.RNN)):
        for layers, both, bias, first in ((1, False, True, True), (2, True, True, False), (1, True, False, True)):
            layer = module(5, 4, layers, bias=bias, bidirectional=both, batch_first=first).double()
            params = [p.detach() for p in layer.parameters()]
            x = torch.randn(2, 3, 5, dtype=torch.float64)
            batch = 2 if first else 3
            states = [torch.randn(layers * (1 + both), batch, 4, dtype=torch.float64) for _ in range(2)]
            hx = states if name == "lstm" else states[0]
            yield getattr(aten, name).input, (x, hx, params, bias, layers, 0.0, False, both, first), {}
    relu = torch.nn.RNN(5, 4, nonlinearity="relu").double()
    params = [p.detach() for p in relu.parameters()]
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    yield aten.rnn_relu.input, (x, torch.zeros(1, 3, 4).double(), params, True, 1, 0.0, False, False, False), {}


@rule(aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input, samples=_samples)
def recurrent(site: Site) -> list[Dims | None]:
    """``t n i, [s n h], gates*h i, gates*h h, ... -> t n d*h, s n h`` with ``s`` layers times ``d`` directions.

    Where all of a unit's weights are zero, its gates let through zero candidates only: it decays from its initial
    state, and stays zero if that is zero. What it feeds back is multiplied by zero weights.
    """
    both, layers = bool(site.arg("bidirectional")), site.arg("num_layers")
    states: list[fx.Node] = list(site.arg("hx")) if isinstance(site.arg("hx"), (list, tuple)) else [site.arg("hx")]
    params: list[fx.Node] = list(site.arg("params"))
    x, state = site.dims("input"), site.dims(states[0])
    directions, hidden = site.fresh(1 + both), state[-1]
    site.pin(directions, "the two directions of a recurrent layer")
    features, steps = x[-1], x[1] if site.arg("batch_first") else x[0]
    batch = x[0] if site.arg("batch_first") else x[1]
    site.pin((steps, state[0]), _STEPS)
    each = len(params) // (layers * (1 + both))
    if each != (4 if site.arg("has_biases") else 2):
        out = site.fresh(site.node.meta["val"][0].shape[-1])
        free = [d for node in (*states, *params) for d in site.dims(node)]
        site.pin((features, out, *free), "a recurrent layer with a projection")
        return [(*x[:-1], out), *(site.dims(node) for node in states)]
    for other in states[1:]:
        for a, b in zip(state, site.dims(other), strict=True):
            site.equate(a, b)
    site.equate(state[1], batch)
    out = prod((directions, hidden))
    for layer in range(layers):
        for i in range(layer * (1 + both) * each, (layer + 1) * (1 + both) * each, each):
            _cell(site, features if layer == 0 else out, hidden, params[i : i + each])
    site.operands(site.arg("input"), *states, *params, transfer=lambda v: _stays(v[1:]))
    first = len(states) + 1
    entry = [first + i * each for i in range(1 + both)]
    site.contracts(features, lambda v: _fed([v[0]], [v[i] for i in entry]), carriers=(0, *entry))
    fed = [i for i in range(first, first + len(params)) if (i - first) % each < 2 and i not in entry]
    site.contracts(hidden, lambda v: _fed([Value.FINITE], [v[i] for i in fed]))
    site.role("contracted", features)
    site.role("contracted", hidden)
    return [(*x[:-1], out), *(site.dims(node) for node in states)]


def _cell(site: Site, features: Dim, hidden: Dim, params: Sequence[fx.Node]) -> None:
    name = str(site.node.target).split(".")[1]
    gates = site.fresh(_GATES[name.removesuffix("_cell")])
    site.pin(gates, f"the gates of {'an LSTM' if 'lstm' in name else 'a recurrent layer'} share a weight")
    rows = prod((gates, hidden))
    for i, node in enumerate(params):
        dims = site.dims(node)
        site.equate(dims[0], rows)
        if i < 2:
            site.equate(dims[1], hidden if i else features)


def _fed(sources: list[Value], weights: list[Value]) -> Value:
    """What a zeroed index adds to the gates: nothing, where each product is zero."""
    products = [multiply([*sources, weight]) for weight in weights]
    return Value.ZERO if all(p is Value.ZERO for p in products) else max(products)


def _stays(values: list[Value]) -> Value:
    if max(values) > Value.FINITE:
        return Value.UNKNOWN
    return Value.ZERO if all(v is Value.ZERO for v in values) else Value.FINITE


def _cell_samples() -> Iterable[tuple[Any, ...]]:
    def t(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64)

    for name, gates in _GATES.items():
        params = t(gates * 4, 5), t(gates * 4, 4), t(gates * 4), t(gates * 4)
        hx = [t(3, 4), t(3, 4)] if name == "lstm" else t(3, 4)
        yield getattr(aten, f"{name}_cell").default, (t(3, 5), hx, *params), {}
        yield getattr(aten, f"{name}_cell").default, (t(3, 5), hx, *params[:2]), {}


@rule(
    aten.lstm_cell.default, aten.gru_cell.default, aten.rnn_tanh_cell.default, aten.rnn_relu_cell.default,
    samples=_cell_samples,
)  # fmt: skip
def cell(site: Site) -> Any:
    """One step of a recurrent layer: ``n i, [n h], gates*h i, gates*h h, [gates*h] -> n h``."""
    states = list(site.arg("hx")) if isinstance(site.arg("hx"), (list, tuple)) else [site.arg("hx")]
    params = [site.arg(name) for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
    params = [p for p in params if isinstance(p, fx.Node)]
    x, state = site.dims("input"), site.dims(states[0])
    for other in states[1:]:
        for a, b in zip(state, site.dims(other), strict=True):
            site.equate(a, b)
    site.equate(x[0], state[0])
    _cell(site, x[-1], state[-1], params)
    site.operands(site.arg("input"), *states, *params, transfer=lambda v: _stays(v[1:]))
    first = len(states) + 1
    site.contracts(x[-1], lambda v: _fed([v[0]], [v[first]]), carriers=(0, first))
    site.contracts(state[-1], lambda v: _fed([v[1]], [v[first + 1]]), carriers=(1, first + 1))
    site.role("contracted", x[-1])
    site.role("contracted", state[-1])
    return [state for _ in states] if len(states) > 1 else state
