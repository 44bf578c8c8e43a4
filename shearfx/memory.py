"""What is found out about a model's code once, before any plan: what it reads, and how it can be probed."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from shearfx.acceptance import Failure, UnsupportedError, difference, of_plan, of_traced
from shearfx.architectures import shapes
from shearfx.capture import CaptureError, capture
from shearfx.errors import TraceError
from shearfx.examples import example
from shearfx.graph import Graph
from shearfx.hollow import hollow
from shearfx.probes import Probe, probes_of
from shearfx.reads import recording
from shearfx.shallow import analysed, shallow


@dataclass
class Memory:
    """What is known of one analysed model, kept as long as its graph."""

    model: nn.Module
    """The model as it is probed: without weights, with few layers."""
    graph: Graph
    read: dict[tuple[str, str], int]
    call: dict[str, Any]
    sizes: dict[str, int]
    probes: list[Probe]
    usable: str = ""
    """Why the model's code cannot be re-captured; empty where it can."""
    chosen: dict[Any, dict[tuple[str, str, str], int]] = field(default_factory=dict)
    """For kinds of groups cut: the choice that was accepted for each attribute of a class."""
    probed: set[Any] = field(default_factory=set)
    deep: list[Probe] | None = None
    """The probes of the model with all its layers, once they were asked for."""

    def probes_of_all(self, full: nn.Module) -> list[Probe]:
        """Probes of the model with all its layers, where few do not speak for the rest.

        Args:
            full: it, without weights.
        """
        if self.deep is None:
            self.deep = probes_of(full, self.call, {})
        return self.deep


_MEMORY: weakref.WeakKeyDictionary[fx.Graph, Memory] = weakref.WeakKeyDictionary()


def memory_of(model: nn.Module, graph: Graph, example_call: Mapping[str, Any] | None = None) -> Memory:
    """What is known of an analysed model: found out at the first call, once."""
    key = graph.traced.graph
    if key not in _MEMORY:
        _MEMORY[key] = _remember(model, graph, example_call)
    return _MEMORY[key]


def _remember(model: nn.Module, graph: Graph, example_call: Mapping[str, Any] | None) -> Memory:
    """Run the uncut model once: what it reads, and whether a capture of it is the graph that was analysed."""
    full = hollow(model, like=graph)
    try:
        call, sizes = example(graph) if example_call is None else (dict(example_call), {})
    except TraceError as error:
        return Memory(full, graph, {}, {}, {}, [], str(error))
    # On the CPU constants have values to compare, which they do not have on the meta device.
    if (cut := shallow(full)) is not None and (few := analysed(small := hollow(cut, device="cpu"), call, graph)):
        memory = Memory(small, few, {}, call, sizes, [])
    else:
        memory = Memory(full, graph, {}, call, sizes, [])
    try:
        with recording(memory.model) as log:
            actual = capture(memory.model, call)
        memory.read = log
        table: dict[Any, int] = {}
        expected, module = of_plan(memory.graph, {}, shapes(memory.model), sizes, table)
        failure = difference(expected, module, of_traced(actual, table), actual)
    except (CaptureError, UnsupportedError) as error:
        failure = Failure(str(error), getattr(error, "where", ""))
    if failure is not None:
        memory.usable = f"its code cannot be followed a second time: {failure.reason} {failure.where}"
        return memory
    memory.probes = probes_of(memory.model, call, memory.read)
    return memory
