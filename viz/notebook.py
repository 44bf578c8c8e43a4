"""What a notebook shows of a graph or a plan that stands at the end of a cell."""

from __future__ import annotations

import html
from collections.abc import Iterator

from shearfx.graph import Graph
from shearfx.layered_names import layer_of
from shearfx.pruning_plan import PruningPlan
from shearfx.viz import dot, page
from shearfx.viz.build import scene_of
from shearfx.viz.scene import Scene

__all__ = ["bundle"]

_HEIGHT = 640
_CELL = "text-align:left;padding:2px 10px 2px 0"


def bundle(value: Graph | PruningPlan) -> dict[str, str]:
    """The object by MIME type: text, HTML, and for a graph SVG where graphviz is installed."""
    if isinstance(value, PruningPlan):
        return {"text/plain": _summary(value), "text/html": _table(value)}
    scene = scene_of(value)
    found = {"text/plain": f"{scene.title}: {scene.summary}", "text/html": _frame(scene)}
    return found | ({"image/svg+xml": dot.to_svg(scene)} if dot.has_program() else {})


def _frame(scene: Scene) -> str:
    """The page in a frame of its own, that can reach nothing of the notebook."""
    content = html.escape(page.to_html(scene))
    style = "width:100%;border:1px solid #8c959f;border-radius:6px"
    title = html.escape(f"dependency graph of {scene.title}")
    frame = f'sandbox="allow-scripts" title="{title}" style="{style}" height="{_HEIGHT}"'
    return f'<iframe {frame} srcdoc="{content}"></iframe>'


def _summary(plan: PruningPlan) -> str:
    structures = sum(cut.size - len(cut.kept) for cut in plan.cuts)
    name = plan.model.rpartition(".")[2]
    return (
        f"PruningPlan for {name}: {structures:,} structures of {len(plan.cuts)} groups go, {plan.achieved:.1%} removed"
    )


def _table(plan: PruningPlan) -> str:
    head = "".join(f'<th style="{_CELL}">{text}</th>' for text in ("layer", "kind", "kept", "", "certificate"))
    rows = "".join(_rows(plan))
    return f"<p>{html.escape(_summary(plan))}</p><table><tr>{head}</tr>{rows}</table>"


def _rows(plan: PruningPlan) -> Iterator[str]:
    for cut in plan.cuts:
        kept = len(cut.kept)
        bar = f'<meter min="0" max="{cut.size}" value="{kept}" title="{kept} of {cut.size}"></meter>'
        cells = (html.escape(layer_of(cut.name) or cut.name), html.escape(cut.kind), f"{kept:,} of {cut.size:,}", bar,
                 html.escape(cut.certificate))  # fmt: skip
        yield "".join(("<tr>", *(f'<td style="{_CELL}">{cell}</td>' for cell in cells), "</tr>"))
