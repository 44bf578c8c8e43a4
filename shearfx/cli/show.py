"""``shearfx show``: the dependency graph of a model as a picture, a page, or a file for other viewers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from shearfx.cli.analyze import cheapest, trace_with_progress
from shearfx.cli.console import AsJson, Debug, talking
from shearfx.cli.opening import Dtype, Model, Original, open_model, read_plan
from shearfx.errors import ShearError

__all__ = ["show"]


def show(
    model: Model,
    out: Annotated[
        list[Path],
        typer.Option(
            "--out",
            "-o",
            help="File to write; again for more. Its suffix says what: .html (zoom, search, groups), .svg, .png, .pdf "
            "and .dot (graphviz), .graphml and .json (networkx), .explorer.json (Model Explorer).",
            show_default=False,
        ),
    ],
    plan: Annotated[
        Path | None,
        typer.Option(metavar="PLAN.json", help="Lay this plan over the picture: what is cut, and how much."),
    ] = None,
    original: Original = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    device: Annotated[
        str | None,
        typer.Option(help="Default: meta, which reads no weights; cpu for a factory.", show_default=False),
    ] = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Draw what in MODEL depends on what: operators, node groups and their overlaps, what is pinned and why."""
    with talking(as_json, debug) as talk:
        from shearfx.viz import files

        for path in out:
            files.check(path, overwrite)
        chosen = None if plan is None else read_plan(plan)
        loaded = open_model(talk, model, originals=original, dtype=dtype, device=device or cheapest(model))
        from shearfx.viz.build import scene_of

        graph = trace_with_progress(talk, loaded.module, loaded.args, loaded.kwargs)
        scene = scene_of(graph, chosen)
        written: list[Path] = []
        failed: ShearError | None = None
        for path in out:  # one that fails takes no other with it: tracing may have taken minutes
            with talk.step(f"drawing {path}"):
                try:
                    written += files.write(scene, path, overwrite)
                except ShearError as error:
                    failed = failed or error
        if failed is not None:
            for path in written:
                talk.note(f"wrote {path}")
            raise failed
        data = {"model": model, "written": [str(path) for path in written], "groups": len(scene.groups)}

        def tell(console: Console) -> None:
            console.print(scene.summary, markup=False, soft_wrap=True)
            for path in written:
                console.print(f"wrote {path}", markup=False, soft_wrap=True)

        talk.result(data, tell)
