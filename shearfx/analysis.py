"""``shearfx.trace``: trace a model and run the analysis passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from shearfx.graph import Graph
from shearfx.passes import ANALYSIS, run
from shearfx.tracing import trace_call


def trace(model: nn.Module, *args: Any, after: Callable[[str, Graph], None] | None = None, **kwargs: Any) -> Graph:
    """Trace one call of ``model`` and analyse what can be cut.

    Args:
        model: any module, on any device; on the meta device no weights are needed.
        args, kwargs: an example call. Batch and sequence stay open where the model's code allows.
        after: called with the name of each finished pass and the graph.

    Raises:
        TraceError: the model does not export, or the example inputs do not fit it.
    """
    graph = Graph(trace_call(model, args, kwargs))
    run(graph, ANALYSIS, after)
    return graph
