"""The graph, unfolded, for other viewers: GraphML and JSON by networkx, and Google's Model Explorer."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import networkx

from shearfx.viz.palette import COLORS, text_on
from shearfx.viz.scene import Fold, Item, Op, Scene, operators

__all__ = ["explorer", "graphml", "network", "node_link"]


def network(scene: Scene) -> networkx.DiGraph:
    """Every operator as a node, with texts for attributes; edges carry the dims of what flows along them."""
    graph: networkx.DiGraph = networkx.DiGraph(title=_clean(scene.title), summary=_clean(scene.summary))
    spaces = dict(_namespaces(scene.root, ()))
    ops = list(operators(scene.root))
    for op in ops:
        graph.add_node(op.name, **_attributes(scene, op), module="/".join(spaces[op.name]))
    dims = {op.name: op.dims for op in ops}
    graph.add_edges_from((name, op.name, {"dims": _clean(dims[name])}) for op in ops for name in op.inputs)
    return graph


def graphml(scene: Scene) -> dict[str, bytes]:
    """The content of a .graphml file."""
    out = io.BytesIO()
    networkx.write_graphml(network(scene), out, named_key_ids=True)
    return {".graphml": out.getvalue()}


def node_link(scene: Scene) -> dict[str, bytes]:
    """The content of a .json file that ``networkx.node_link_graph`` reads."""
    return {".json": json.dumps(networkx.node_link_data(network(scene), edges="edges"), indent=1).encode()}


def explorer(scene: Scene) -> dict[str, bytes]:
    """A graph for Model Explorer, and node data beside it that colours nodes by their groups.

    Source: the classes ``Graph`` and ``GraphNodeData`` of the package ai-edge-model-explorer.
    """
    spaces = dict(_namespaces(scene.root, ()))
    nodes, results = [], {}
    for op in operators(scene.root):
        attributes = _attributes(scene, op)
        nodes.append(
            {
                "id": op.name,
                "label": attributes["title"],
                "namespace": "/".join(part.replace("/", "∕") for part in spaces[op.name]),
                "attrs": [{"key": key, "value": value} for key, value in attributes.items() if value],
                "incomingEdges": [
                    {"sourceNodeId": name, "sourceNodeOutputId": "0", "targetNodeInputId": str(i)}
                    for i, name in enumerate(op.inputs)
                ],
                "outputsMetadata": [{"id": "0", "attrs": [{"key": "shape", "value": attributes["dims"]}]}],
            }
        )
        if op.groups:
            color = COLORS[scene.groups[op.groups[0]].color]
            labels = ", ".join(dict.fromkeys(scene.groups[g].label for g in op.groups))
            results[op.name] = {"value": labels, "bgColor": color, "textColor": text_on(color)}
        elif op.fixed:
            results[op.name] = {"value": "pinned", "bgColor": "#ffffff", "textColor": "#57606a"}
    graph = {"label": scene.title, "graphs": [{"id": scene.title, "nodes": nodes}]}
    data = {scene.title: {"name": "node groups", "results": results}}
    return {".explorer.json": json.dumps(graph, indent=1).encode(), ".groups.json": json.dumps(data, indent=1).encode()}


def _attributes(scene: Scene, op: Op) -> dict[str, str]:
    texts = {
        "title": op.title,
        "kind": op.kind,
        "dims": op.dims,
        "tensors": "\n".join(f"{t}: {scene.tensors[t].dims}" for t in op.tensors),
        "groups": "\n".join(op.groups),
        "certificates": ", ".join(f"{scene.groups[g].label}: {scene.groups[g].certificate}" for g in op.groups),
        "pinned": "\n".join(f"{scene.pins[p].dims}: {scene.pins[p].reason}" for p in op.pins),
        "source": op.source,
    }
    if scene.planned:
        found = [scene.groups[g] for g in op.groups]
        texts["cut"] = ", ".join(f"{g.label} {g.size}→{g.kept}" for g in found if g.kept != g.size)
    return {key: _clean(value) for key, value in texts.items()}


def _clean(text: str) -> str:
    """Without the control characters that XML cannot hold."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _namespaces(item: Item, above: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    if isinstance(item, Op):
        yield item.name, above
        return
    copies: tuple[tuple[Any, ...], ...] = item.copies if isinstance(item, Fold) else (item.children,)
    inside = above if isinstance(item, Fold) else (*above, _clean(item.title))
    for copy in copies:
        for child in copy:
            yield from _namespaces(child, inside)
