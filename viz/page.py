"""``graph.html``: one self-contained page to zoom, search, unfold and ask in, without network."""

from __future__ import annotations

from typing import Any

import shearfx
from shearfx.viz.bundled import self_contained
from shearfx.viz.palette import COLORS, text_on
from shearfx.viz.scene import Box, Fold, Item, Op, Scene, operators

__all__ = ["html", "to_html"]


def html(scene: Scene) -> dict[str, bytes]:
    """The content of an .html file; see :func:`to_html`."""
    return {".html": to_html(scene).encode(errors="replace")}


def to_html(scene: Scene) -> str:
    """The page. The scene goes in as JSON, the program (``viz/web``) as the bundle that npm built."""
    return self_contained("page", scene.title, _data(scene))


class _Texts:
    """Each text once: paths and source lines come hundreds of times."""

    def __init__(self) -> None:
        self.places: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        return self.places.setdefault(text, len(self.places))


def _data(scene: Scene) -> dict[str, Any]:
    text = _Texts()
    ops = {op.name: i for i, op in enumerate(operators(scene.root))}
    groups = {name: i for i, name in enumerate(scene.groups)}
    tensors = {name: i for i, name in enumerate(scene.tensors)}

    def item(one: Item) -> dict[str, Any]:
        if isinstance(one, Op):
            return _brief(
                o=text(one.name), k=text(one.kind), t=text(one.title), d=text(one.dims), i=[ops[n] for n in one.inputs],
                w=[tensors[n] for n in one.tensors], g=[groups[n] for n in one.groups], p=list(one.pins),
                f=int(one.fixed), s=text(one.source),
            )  # fmt: skip
        if isinstance(one, Fold):
            return {"id": one.id, "t": text(one.title), "x": [list(map(item, copy)) for copy in one.copies]}
        assert isinstance(one, Box)
        return {
            "id": one.id, "k": text(one.kind), "t": text(one.title), "p": text(one.path), "d": text(one.detail),
            "c": list(map(item, one.children)), "open": int(one.open),
        }  # fmt: skip

    data = {
        "version": shearfx.__version__,
        "title": scene.title,
        "summary": scene.summary,
        "planned": scene.planned,
        "colors": [[color, text_on(color)] for color in COLORS],
        "root": item(scene.root),
        "groups": [
            {
                "name": g.name, "label": g.label, "kind": g.kind, "size": g.size, "certificate": g.certificate,
                "reason": g.reason, "source": g.source, "params": g.params, "kept": g.kept, "color": g.color,
                "members": [[tensors[name], dim, text(term)] for name, dim, term in g.members],
            }
            for g in scene.groups.values()
        ],
        "pins": [{"dims": p.dims, "reason": p.reason, "node": p.node, "source": p.source} for p in scene.pins],
        "tensors": [
            {"name": t.name, "kind": t.kind, "dims": text(t.dims), "shape": t.shape, "after": t.after}
            for t in scene.tensors.values()
        ],
    }  # fmt: skip
    return {**data, "texts": list(text.places)}


def _brief(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value or (isinstance(value, int) and key != "f")}
