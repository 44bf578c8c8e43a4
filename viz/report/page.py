"""``report.html``: one self-contained page on one run, or on several beside each other, without network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import shearfx
from shearfx.viz.bundled import self_contained
from shearfx.viz.report.headline import closed, headline, losses, perplexity, tiles
from shearfx.viz.report.knowledge import knowledge
from shearfx.viz.report.lenient import number
from shearfx.viz.report.pruning import pruning
from shearfx.viz.report.reading import Run, read_runs
from shearfx.viz.report.recovery import recovery
from shearfx.viz.report.setup import setup
from shearfx.viz.report.widths import left_whole, widths

__all__ = ["REPORT", "content", "report", "to_html"]

REPORT = "report.html"
"""What a report is called in the folder of its run."""


def report(paths: Sequence[Path]) -> str:
    """The page on the runs in these folders, with what could be read of them.

    Raises:
        CheckpointError: one of them is not the folder of a run.
    """
    return to_html(read_runs(list(paths)))


def to_html(runs: Sequence[Run]) -> str:
    """The page on runs that were read."""
    data = content(runs)
    return self_contained("report", data["title"], data)


def content(runs: Sequence[Run]) -> dict[str, Any]:
    """All that the page shows, as plain JSON."""
    made = (headline(runs), widths(runs), knowledge(runs), pruning(runs), recovery(runs), left_whole(runs), setup(runs))
    sections = [one for one in made if one is not None]
    for one in sections:
        _say_whose(one, runs)
    return {
        "version": shearfx.__version__,
        "title": _title(runs),
        "runs": [
            {"name": run.name, "path": str(run.path), "model": run.model, "state": run.state, "done": run.finished,
             "summary": _summary(run), "tiles": tiles(run), "missing": run.missing}
            for run in runs
        ],
        "sections": sections,
    }  # fmt: skip


def _say_whose(section: dict[str, Any], runs: Sequence[Run]) -> None:
    """Where runs are beside each other and a chart is not of all of them, its note says of which."""
    for item in section["items"]:
        if item["kind"] == "chart" and len(runs) > 1:
            whose = [run.name for run in runs if any(row["run"] == run.name for row in item["data"])]
            if len(whose) < len(runs):
                item["note"] += f" Only of {', '.join(whose)}."


def _title(runs: Sequence[Run]) -> str:
    models = list(dict.fromkeys(_short(run) for run in runs))
    if len(runs) > 1:
        return f"{', '.join(models[:3])}: {len(runs)} runs beside each other"
    achieved = number(runs[0].plan.get("achieved"))
    return models[0] if achieved is None else f"{models[0]}, {achieved:.0%} of its parameters cut"


def _short(run: Run) -> str:
    """The model's name without the way to it."""
    return (PurePath(run.model).name or run.model)[:120] or f"a model in {run.name}"


def _summary(run: Run) -> str:
    """The run in a sentence or two."""
    before, after = number(run.record("dense", "parameters")), number(run.record("cut", "parameters"))
    parts = []
    if before and after:
        parts.append(f"{before:,.0f} parameters became {after:,.0f}")
    elif before:
        parts.append(f"{before:,.0f} parameters, nothing cut yet")
    for source, share in list(closed(run).items())[:3]:
        ends = [perplexity(losses(run, stage)[source]) for stage in ("dense", "cut", "recover")]
        parts.append(
            f"perplexity on {source} rose from {ends[0]:.4g} to {ends[1]:.4g}, recovery brought it to {ends[2]:.4g} "
            f"({share:.0%} of the gap in its logarithm)"
        )
    return "; ".join(parts) + "." if parts else ""
