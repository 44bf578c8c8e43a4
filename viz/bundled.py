"""Pages in one file: a template, its style and its program as npm built them (``viz/web``), and what they show."""

from __future__ import annotations

import html
import json
from importlib import resources
from typing import Any

__all__ = ["self_contained"]


def self_contained(name: str, title: str, data: Any) -> str:
    """A page without links: ``name`` is that of the files of the bundle; the data goes in as JSON.

    Args:
        name: of the template, style and program in ``viz/bundle``.
        title: plain text.
        data: what the program reads, plain JSON without NaN.
    """
    bundle = resources.files("shearfx.viz") / "bundle"
    template = (bundle / f"{name}.html").read_text(encoding="utf-8")
    parts = {
        "{{title}}": html.escape(title),
        "{{style}}": (bundle / f"{name}.css").read_text(encoding="utf-8"),
        "{{data}}": _script_safe(json.dumps(data, separators=(",", ":"), allow_nan=False)),
        "{{program}}": (bundle / f"{name}.js").read_text(encoding="utf-8"),
    }
    pieces = [template]
    for mark, text in parts.items():  # one after the other, so that a name cannot be taken for a mark
        before, _, after = pieces.pop().partition(mark)
        pieces += [before, text, after]
    return "".join(pieces)


def _script_safe(text: str) -> str:
    """JSON that no parser of HTML takes for the end of its script, or for anything else."""
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
