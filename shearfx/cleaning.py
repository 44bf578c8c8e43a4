"""Cleaning an exported graph of what is not computation: assertions, gradient switches, nested regions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

_ASSERTIONS = ("_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range")


def mutates(graph_module: fx.GraphModule) -> bool:
    """Whether any operator, in nested graphs too, writes into one of its arguments."""
    return any(_mutates(node) for node in _all_nodes(graph_module))


def _all_nodes(graph_module: fx.GraphModule) -> Iterator[fx.Node]:
    for module in graph_module.modules():
        if isinstance(module, fx.GraphModule):
            yield from module.graph.nodes


def _mutates(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and bool(schema.is_mutable)


def inline(graph_module: fx.GraphModule) -> None:
    """Replace gradient switches and disabled autocast regions by their bodies."""
    for node in list(graph_module.graph.nodes):
        name = getattr(node.target, "__name__", "") or getattr(node.target, "_name", "")
        if node.op != "call_function" or name not in ("wrap_with_set_grad_enabled", "wrap_with_autocast"):
            continue
        at = 1 if name == "wrap_with_set_grad_enabled" else 4
        if name == "wrap_with_autocast" and node.args[2]:
            continue  # an active autocast changes dtypes: an unknown operator, so pinned
        body = getattr(graph_module, str(node.args[at].target))
        inline(body)
        inputs = [n for n in body.graph.nodes if n.op == "placeholder"]
        mapping: dict[fx.Node, Any] = dict(zip(inputs, node.args[at + 1 :], strict=True))
        with graph_module.graph.inserting_before(node):
            for inner in body.graph.nodes:
                if inner.op == "output":
                    results = fx.node.map_arg(inner.args[0], mapping.__getitem__)
                elif inner.op != "placeholder":
                    mapping[inner] = graph_module.graph.node_copy(inner, mapping.__getitem__)
                    if inner.op == "get_attr":
                        setattr(graph_module, str(inner.target), getattr(body, str(inner.target)))
        if isinstance(results, (tuple, list)):
            for user in list(node.users):
                user.replace_all_uses_with(results[user.args[1]])
                graph_module.graph.erase_node(user)
        else:
            node.replace_all_uses_with(results)
        graph_module.graph.erase_node(node)


def clean(graph: fx.Graph) -> None:
    """Remove assertions and the numbers that only they used."""
    for node in reversed(list(graph.nodes)):
        name = str(node.target)
        if node.op == "call_function" and (any(a in name for a in _ASSERTIONS)):
            graph.erase_node(node)
    graph.eliminate_dead_code(_computes)


def _computes(node: fx.Node) -> bool:
    """Whether a node stays though nothing uses it: the original class computes it all the same, so it must fit."""
    return node.op in ("placeholder", "output") or isinstance(node.meta.get("val"), torch.Tensor)
