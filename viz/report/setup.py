"""What a run was asked, on what it ran, and how to have it again."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from typing import Any

from shearfx.config import PAPER, ShearConfig
from shearfx.run_directory import CONFIG
from shearfx.viz.report.cells import Cell, cell, section, table
from shearfx.viz.report.lenient import text
from shearfx.viz.report.reading import Run

__all__ = ["setup"]

LONGEST = 200


def setup(runs: Sequence[Run]) -> dict[str, Any]:
    """The section."""
    items = [_options(runs), _environment(runs)]
    for run in runs:
        if run.asked:
            items.append({"kind": "code", "name": f"config-{run.name}", "title": f"{CONFIG} of {run.name}",
                          "text": run.asked, "fold": True})  # fmt: skip
    shown = [one for one in items if one.get("rows") or one.get("text")]
    commands = [{"kind": "code", "name": "command", "title": f"Have it again: {run.name}" if len(runs) > 1
                 else "Have it again", "text": command(run), "fold": False} for run in runs]  # fmt: skip
    intro = "The same options, data and seed on the same machine give the same run, where the budget is in tokens."
    return section("setup", "How it was made", intro, [*commands, *shown])


def command(run: Run) -> str:
    """The command that makes the run again from its own configuration."""
    model = shlex.quote(run.model) if run.model else "MODEL"
    return f"shearfx shear {model} --config {shlex.quote(str(run.path / CONFIG))} -o again"


def _options(runs: Sequence[Run]) -> dict[str, Any]:
    """Every option; where runs are compared, those that differ come first."""
    defaults = {f.name: f.default for f in dataclasses.fields(ShearConfig)}
    names = [*defaults, *dict.fromkeys(n for run in runs for n in run.config if n not in defaults)]
    rows: list[list[Cell]] = []
    same: list[list[Cell]] = []
    for name in names:
        values = [_shown(run.config[name]) if name in run.config else "" for run in runs]
        if not any(values):
            continue
        usual = _shown(PAPER.get(name, defaults.get(name)) if _paper(runs) else defaults.get(name))
        differs = len(set(values)) > 1
        own = any(value not in ("", usual) for value in values)
        row = [cell(name), *(cell(value, sign="own" if value not in ("", usual) else "") for value in values),
               cell(usual)]  # fmt: skip
        (rows if differs or (len(runs) == 1 and own) else same).append(row)
    if len(runs) > 1:
        rows.insert(0, [cell("model"), *(cell(run.model) for run in runs), cell("")])
    columns = ["option", *(run.name if len(runs) > 1 else "value" for run in runs), "default"]
    what = "Those that differ come first." if len(runs) > 1 else "Those that are not the default come first."
    return table("options", "Options", columns, [*rows, *same], what, fold=False) | {"first": len(rows)}


def _paper(runs: Sequence[Run]) -> bool:
    return all(run.config.get("recipe") == "paper" for run in runs)


def _shown(value: Any) -> str:
    """A value in a line; what is nested deeper than a list is not an option's."""
    if isinstance(value, (list, tuple)):
        return ", ".join(str(v)[:LONGEST] if not isinstance(v, (list, dict)) else "..." for v in value[:50])
    if isinstance(value, dict):
        return "..."
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else "none" if value is None else str(value)


def _environment(runs: Sequence[Run]) -> dict[str, Any]:
    names = dict.fromkeys(name for run in runs for name in run.environment)
    rows = [
        [cell(name), *(cell(_shown(run.environment[name]) if name in run.environment else "") for run in runs)]
        for name in names
    ]
    timed = [text(run.record("speed", "timed")) for run in runs]
    if any(timed):
        rows.append([cell("timed with"), *map(cell, timed)])
    if types := [text(run.record("dense", "dtype")).removeprefix("torch.") for run in runs]:
        rows += [[cell("trained in"), *map(cell, types)]] if any(types) else []
    columns = ["", *(run.name if len(runs) > 1 else "value" for run in runs)]
    return table("environment", "Environment", columns, rows, fold=True)
