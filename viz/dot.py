"""Pictures by graphviz: the folded graph as .dot, .svg, .png or .pdf."""

from __future__ import annotations

import html
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import graphviz

from shearfx.errors import ShearError, message
from shearfx.viz.card import Card, Chip, card_of, legend_of, short
from shearfx.viz.palette import COLORS, text_on
from shearfx.viz.scene import Edge, Scene
from shearfx.viz.svg import FRAME, INK, MUTED, SHADES, SURFACE, finished
from shearfx.viz.view import Cluster, View, folded

__all__ = ["NEED_PROGRAM", "has_program", "missing", "pdf", "png", "source", "svg", "to_dot", "to_svg"]

NEED_PROGRAM = (".svg", ".png", ".pdf")
"""Suffixes of what only graphviz's program ``dot`` can write."""

_FONT = "Helvetica,Arial,sans-serif"
_CHIPS = 4  # in a row of a node
_LEGEND = 14  # rows of a column of the legend
_BAR = 72  # points


def has_program() -> bool:
    """Whether graphviz is installed."""
    return shutil.which("dot") is not None


def to_dot(scene: Scene, page: tuple[float, float] | None = None, dpi: int | None = None) -> str:
    """The folded picture in graphviz's language.

    Args:
        scene: what to draw.
        page: width and height in inches to shrink to.
        dpi: dots an inch, for pictures made of dots.
    """
    view = folded(scene)
    cards = {leaf.id: card_of(scene, leaf) for leaf in view.leaves}
    ids = {leaf.id: f"n{i}" for i, leaf in enumerate(view.leaves)}
    dot = graphviz.Digraph("shearfx")
    dot.attr(rankdir="TB", fontname=_FONT, fontsize="11", fontcolor=INK, bgcolor=SURFACE, color=FRAME, nodesep="0.18",
             ranksep="0.28", pad="0.2", compound="true", labelloc="b", label=_legend(scene),
             newrank="true")  # fmt: skip
    if page is not None:
        dot.attr(size=f"{page[0]},{page[1]}")
    if dpi is not None:
        dot.attr(dpi=str(dpi))
    dot.attr("node", shape="box", style="rounded", fontname=_FONT, fontsize="10", fontcolor=INK, color=FRAME,
             margin="0.04,0.03", height="0.2")  # fmt: skip
    dot.attr("edge", fontname=_FONT, fontsize="8", fontcolor=MUTED, color=MUTED, arrowsize="0.5", penwidth="0.8")
    _cluster(dot, view.root, cards, ids, 0)
    for edge in view.edges:
        _edge(dot, edge, ids)
    return str(dot.source)


def to_svg(scene: Scene) -> str:
    """The folded picture as SVG that follows the viewer's light or dark colours.

    Raises:
        ShearError: graphviz is not installed, or could not draw it.
    """
    return finished(_run(to_dot(scene), "svg").decode(), _tooltips(scene))


def source(scene: Scene) -> dict[str, bytes]:
    """The content of a .dot file."""
    return {".dot": to_dot(scene).encode()}


def svg(scene: Scene) -> dict[str, bytes]:
    """The content of an .svg file; see :func:`to_svg`."""
    return {".svg": to_svg(scene).encode()}


def png(scene: Scene) -> dict[str, bytes]:
    """The content of a .png file, 144 dots an inch, in light colours."""
    return {".png": _run(to_dot(scene, dpi=144), "png")}


def pdf(scene: Scene) -> dict[str, bytes]:
    """The content of a .pdf file that fits a sheet of A4 or Letter."""
    return {".pdf": _run(to_dot(scene, page=(7.5, 10.2)), "pdf")}


def missing(written: Path, wanted: Path) -> str:
    """What to say where the program is not installed, and its source was written instead."""
    return message(
        "graphviz is not installed: there is no program dot",
        where=f"{wanted}; its source was written to {written}",
        todo=f"install graphviz (apt install graphviz, brew install graphviz or conda install graphviz) and run "
        f"dot -T{wanted.suffix[1:]} {written} -o {wanted}; or ask for .html, which needs nothing",
    )


def _run(text: str, kind: str) -> bytes:
    try:
        return bytes(graphviz.Source(text).pipe(format=kind, quiet=True))
    except graphviz.CalledProcessError as error:
        said = (error.stderr or b"").decode(errors="replace").strip()
        raise ShearError(
            message(f"graphviz could not draw this: {said}", todo="ask for .dot or .html instead")
        ) from error


# -- nodes, boxes and edges --------------------------------------------------------------------------------


def _cluster(dot: graphviz.Digraph, cluster: Cluster, cards: dict[str, Card], ids: dict[str, str], depth: int) -> None:
    with dot.subgraph(name=f"cluster_{cluster.id}") as inner:
        title = f"<B>{_text(short(cluster.title))}</B>"
        if cluster.repeat > 1:
            title += f' <FONT COLOR="{INK}"><B> × {cluster.repeat}</B></FONT>'
        detail = (
            f' <FONT COLOR="{MUTED}" POINT-SIZE="9">{_text(short(cluster.detail))}</FONT>' if cluster.detail else ""
        )
        inner.attr(label=f"<{title}{detail}>", labeljust="l", labelloc="t", color=FRAME, fillcolor=SHADES[depth % 2],
                   style="rounded,filled", penwidth="2" if cluster.repeat > 1 else "1",
                   tooltip=_tooltip(cluster.title))  # fmt: skip
        for child in cluster.children:
            if isinstance(child, Cluster):
                _cluster(inner, child, cards, ids, depth + 1)
            else:
                card = cards[child.id]
                inner.node(ids[child.id], label=_label(card), fillcolor=SURFACE,
                           style="rounded,filled,dashed" if card.pinned else "rounded,filled",
                           tooltip=_tooltip(card.tooltip))  # fmt: skip


def _label(card: Card) -> str:
    rows = [f"<B>&#160;{_text(short(card.title))}&#160;</B>"]  # bold is wider than what dot takes it for
    rows += [f'<FONT COLOR="{MUTED}" POINT-SIZE="8">{_text(short(line))}</FONT>' for line in card.lines]
    if card.kept is not None:
        rows.append(_bar(card.kept))
    rows += [_chip_row(chips) for chips in _rows(card.chips, _CHIPS)]
    cells = "".join(f"<TR><TD>{row}</TD></TR>" for row in rows)
    return f'<<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="1">{cells}</TABLE>>'


def _chip_row(chips: Iterable[Chip]) -> str:
    cells = "".join(_chip(chip) for chip in chips)
    return f'<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="2" CELLPADDING="1"><TR>{cells}</TR></TABLE>'


def _chip(chip: Chip) -> str:
    color = COLORS[chip.color]
    return (
        f'<TD BGCOLOR="{color}"><FONT COLOR="{text_on(color)}" POINT-SIZE="8"> {_text(short(chip.text))} </FONT></TD>'
    )


def _bar(kept: float) -> str:
    """How much of the parameters stays: a filled and an empty part, and the number."""
    stays = max(1, min(_BAR - 1, round(_BAR * kept)))
    return (
        f'<TABLE BORDER="1" COLOR="{INK}" CELLBORDER="0" CELLSPACING="0" CELLPADDING="0"><TR>'
        f'<TD BGCOLOR="{INK}" WIDTH="{stays}" HEIGHT="5" FIXEDSIZE="TRUE"></TD>'
        f'<TD WIDTH="{_BAR - stays}" HEIGHT="5" FIXEDSIZE="TRUE"></TD></TR></TABLE></TD></TR><TR><TD>'
        f'<FONT POINT-SIZE="8"><B>{1 - kept:.1%} of its parameters cut</B></FONT>'
    )


def _edge(dot: graphviz.Digraph, edge: Edge, ids: dict[str, str]) -> None:
    shown = [f" {short(dims)} " for dims in edge.dims[:2]]  # room between neighbours
    more = f"\nand {len(edge.dims) - 2} more" if len(edge.dims) > 2 else ""
    full = _tooltip("\n".join(edge.dims))
    dot.edge(ids[edge.source], ids[edge.target], label=graphviz.escape("\n".join(shown) + more), tooltip=full,
             labeltooltip=full)  # fmt: skip


# -- legend ------------------------------------------------------------------------------------------------


def _legend(scene: Scene) -> str:
    chips = legend_of(scene)
    columns = [list(_legend_rows(part)) for part in _rows(chips, max(_LEGEND, -(-len(chips) // 3)))]
    plain = 'BORDER="0" CELLBORDER="0" CELLSPACING="1" CELLPADDING="1"'
    tables = "".join(f'<TD VALIGN="TOP"><TABLE {plain}>{"".join(rows)}</TABLE></TD>' for rows in columns)
    notes = (
        "dashed: pinned, nothing of it may be cut &nbsp; B: batch &nbsp; S: sequence &nbsp; numbers: sizes that stay"
    )
    lines = [
        f'<TR><TD COLSPAN="{max(1, len(columns))}">{_text(scene.summary)}</TD></TR>',
        f"<TR>{tables}</TR>" if columns else "",
        f'<TR><TD COLSPAN="{max(1, len(columns))}"><FONT COLOR="{MUTED}" POINT-SIZE="9">{notes}</FONT></TD></TR>',
    ]
    return f'<<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="2">{"".join(lines)}</TABLE>>'


def _legend_rows(chips: Sequence[Chip]) -> Iterator[str]:
    for chip in chips:
        sizes = sorted({g.size for g in chip.groups})
        size = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,}–{sizes[-1]:,}"
        count = f"{len(chip.groups)} groups of {size}" if len(chip.groups) > 1 else f"one group of {size}"
        certificates = ", ".join(dict.fromkeys(g.certificate for g in chip.groups))
        told = f"{chip.groups[0].kind}: {count}, {certificates}"
        yield f'<TR>{_chip(chip)}<TD ALIGN="LEFT"><FONT POINT-SIZE="9">{_text(told)}</FONT></TD></TR>'


def _rows(chips: Sequence[Chip], length: int) -> Iterator[Sequence[Chip]]:
    for at in range(0, len(chips), length):
        yield chips[at : at + length]


def _tooltips(scene: Scene) -> dict[str, str]:
    view: View = folded(scene)
    return {f"n{i}": _plain(card_of(scene, leaf).tooltip) for i, leaf in enumerate(view.leaves)}


def _text(text: str) -> str:
    """Text inside a label of graphviz's HTML, which reads backslashes too and knows no control characters."""
    return html.escape(_plain(text).replace("\n", " ")).replace("\\", "&#92;") or " "


def _tooltip(text: str) -> str:
    """Text for an attribute; graphviz's scanner reads no longer ones than 16 KiB."""
    found: str = graphviz.escape(_plain(text)[:2000])  # a kind of its own, that is not taken for HTML
    return found


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)
