"""The last touch to graphviz's SVG: tooltips, and colours that follow the viewer's light or dark."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping

__all__ = ["FRAME", "INK", "MUTED", "SHADES", "SURFACE", "finished"]

INK, MUTED, FRAME, SURFACE = "#1b1f24", "#57606a", "#8c959f", "#fefefe"
SHADES = ("#f6f8fa", "#eaeef2")
"""Colours of text, side remarks, frames, paper, and of boxes inside boxes."""

_DARK = {
    INK: "#e6edf3", MUTED: "#9da7b3", FRAME: "#6e7681", SURFACE: "#0d1117", SHADES[0]: "#161b22", SHADES[1]: "#21262d",
}  # fmt: skip
_SVG = "http://www.w3.org/2000/svg"


def finished(svg: str, tooltips: Mapping[str, str]) -> str:
    """Return the SVG with texts for pointers that rest on nodes, readable on dark screens, on paper as it was.

    Args:
        svg: what graphviz wrote.
        tooltips: for graphviz's names of nodes.
    """
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(svg)
    for group in root.iter(f"{{{_SVG}}}g"):
        title = group.find(f"{{{_SVG}}}title")
        if title is None:
            continue
        if group.get("class") == "node":
            title.text = tooltips.get(title.text or "", title.text)
        else:
            group.remove(title)  # graphviz's own names say nothing
    _halos(root)
    style = ElementTree.Element(f"{{{_SVG}}}style")
    rules = "".join(
        f'[fill="{light}"]{{fill:{dark}}}[stroke="{light}"]{{stroke:{dark}}}' for light, dark in _DARK.items()
    )
    style.text = f"@media screen and (prefers-color-scheme:dark){{{rules}}}"
    root.insert(0, style)
    return ElementTree.tostring(root, encoding="unicode")


def _halos(root: ElementTree.Element) -> None:
    """Lift titles of boxes and labels of edges over the lines that cross them, with some paper around the letters."""
    picture = root.find(f"{{{_SVG}}}g")
    assert picture is not None
    above = ElementTree.Element(f"{{{_SVG}}}g", {"paint-order": "stroke", "stroke": SHADES[0], "stroke-width": "3"})
    for group in [g for g in picture if g.get("class") in ("cluster", "edge")]:
        parents = {child: parent for parent in group.iter() for child in parent}
        for text in list(group.iter(f"{{{_SVG}}}text")):
            parents[text].remove(text)
            above.append(text)
    picture.append(above)
