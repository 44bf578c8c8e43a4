"""Graphs and plans at the end of a notebook's cell."""

from __future__ import annotations

import dataclasses
import shutil

from shearfx.pruning_plan import of_cuts
from tests.tiny_models import traced


def test_a_graph_shows_itself() -> None:
    shown = traced("llama")[1]._repr_mimebundle_()
    assert "LlamaForCausalLM" in shown["text/plain"]
    assert shown["text/html"].startswith("<iframe sandbox=")
    assert "<script" not in shown["text/html"]  # it stands escaped in the frame's own document
    assert ("image/svg+xml" in shown) == (shutil.which("dot") is not None)


def test_a_plan_shows_itself() -> None:
    graph = traced("llama")[1]
    name = next(g.name for g in graph.groups if g.kind == "ffn")
    plan = of_cuts(graph, {name: range(10)})
    shown = plan._repr_mimebundle_()
    assert "14 structures of 1 groups" in shown["text/plain"]
    assert "10 of 24" in shown["text/html"]
    evil = dataclasses.replace(plan, model="m.<script>", cuts=(dataclasses.replace(plan.cuts[0], kind="<img>"),))
    assert "<script>" not in evil._repr_mimebundle_()["text/html"]
    assert "<img>" not in evil._repr_mimebundle_()["text/html"]
