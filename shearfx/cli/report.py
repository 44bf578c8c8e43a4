"""``shearfx report``: what a run did, or several beside each other, as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from shearfx.cli.console import AsJson, Debug, talking
from shearfx.errors import ShearError, message

__all__ = ["report"]


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN_DIR...", help="Folder of a run; several are compared.", show_default=False),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Page to write (.html); default: report.html in the folder of the one run.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page that -o names.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a page on what a run did: result, knowledge, kept widths, pruning, recovery, options. No network.

    A run that is unfinished or damaged gives a page on what there is, which says what is missing.
    """  # fmt: skip
    with talking(as_json, debug) as talk:
        from shearfx.atomic import replace_file
        from shearfx.viz.files import check_place
        from shearfx.viz.report.page import REPORT, to_html
        from shearfx.viz.report.reading import read_runs

        if out is None and len(runs) > 1:
            todo = "pass -o report.html"
            raise ShearError(message("several runs have no folder in common for their page", where="-o", todo=todo))
        target = runs[0] / REPORT if out is None else out
        if out is not None:
            if target.suffix != ".html":
                raise ShearError(message(f"{target.name!r} is no page", where="-o", todo="end it with .html"))
            check_place(target, overwrite)
        found = read_runs(runs)
        replace_file(target, to_html(found).encode(errors="replace"))
        missing = {run.name: run.missing for run in found}
        data = {"runs": [str(path) for path in runs], "written": str(target), "missing": missing}

        def tell(console: Console) -> None:
            for run in found:
                console.print(f"{run.name}: {run.state}", markup=False, soft_wrap=True)
                for what in run.missing:
                    console.print(f"  missing: {what}", markup=False, soft_wrap=True)
            console.print(f"wrote {target}", markup=False, soft_wrap=True)

        talk.result(data, tell)
