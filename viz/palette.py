"""Colours that colour-blind eyes tell apart, given to groups so that those that meet differ."""

from __future__ import annotations

from dataclasses import replace

import networkx

from shearfx.viz.scene import Scene, operators

__all__ = ["COLORS", "colors_of", "text_on"]

COLORS = ("#b4b4b4", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
"""A grey and the colours of Okabe and Ito, "Color Universal Design" (2008), but for black, which is the text's."""

_USUAL = {
    "hidden": 0, "ffn": 1, "heads": 2, "value_dim": 3, "head_dim": 4, "query_group": 5, "experts": 6, "channels": 7,
}  # fmt: skip
"""What a kind gets where nothing it meets has it already, so that pictures of different models look alike."""


def colors_of(scene: Scene) -> Scene:
    """Return the scene with a colour for each label; labels that meet at an operator or along an edge differ.

    Where more labels meet than there are colours, some share one; the text beside the colour always differs.
    """
    labels = {g.name: g.label for g in scene.groups.values()}
    meeting: networkx.Graph = networkx.Graph()
    kinds: dict[str, str] = {}
    for group in scene.groups.values():
        kinds.setdefault(group.label, group.kind)
    meeting.add_nodes_from(kinds)
    ops = {op.name: {labels[g] for g in op.groups} for op in operators(scene.root)}
    for op in operators(scene.root):
        near = ops[op.name].union(*(ops[name] for name in op.inputs))
        meeting.add_edges_from((a, b) for a in ops[op.name] for b in near if a != b)
    colors: dict[str, int] = {}
    for label, kind in kinds.items():
        taken = [colors[other] for other in meeting[label] if other in colors]
        usual = _USUAL.get(kind, 0)
        order = [usual, *(c for c in range(1, len(COLORS)) if c != usual), 0]
        colors[label] = min(order, key=lambda c: (taken.count(c), order.index(c)))
    return replace(scene, groups={n: replace(g, color=colors[g.label]) for n, g in scene.groups.items()})


def text_on(color: str) -> str:
    """Black or white, whichever is read better on a colour (the larger contrast of WCAG 2)."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else "#ffffff"
