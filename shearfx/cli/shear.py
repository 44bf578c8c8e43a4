"""``shearfx shear``: LoRAShear from end to end."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from shearfx.cli.console import AsJson, Debug, talking
from shearfx.cli.opening import Model, Original, open_model
from shearfx.errors import PlanError, message

if TYPE_CHECKING:
    from shearfx.config import ShearConfig

__all__ = ["Many", "Resume", "configured", "shear", "show_run"]

Many = list[str] | None
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in this folder, by its options.")]


def shear(
    model: Model,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the run.", show_default=False)],
    ratio: Annotated[
        float | None, typer.Option(help="Share of the parameters (or of unit, see --set) to remove; 0.2 by default.")
    ] = None,
    pretrain: Annotated[
        Many, typer.Option(help="Text to train and judge by: file, folder or hub name; repeatable.")
    ] = None,
    instruct: Annotated[Many, typer.Option(help="Instructions (JSON, JSON lines, parquet); repeatable.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Wall clock of the whole run.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Or: tokens to train on; 400,000 by default.")] = None,
    steps: Annotated[int | None, typer.Option(help="Or: optimiser steps.")] = None,
    gamma: Annotated[
        str | None, typer.Option(help="Share of node groups to leave whole (Algorithm 3), or auto.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="default, or paper: the method as printed.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML with any option; the command line goes first.", show_default=False)
    ] = None,
    option: Annotated[
        Many, typer.Option("--set", metavar="NAME=VALUE", help="Any other option of the configuration; repeatable.")
    ] = None,
    resume: Resume = False,
    original: Original = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Prune MODEL by LoRAShear and recover what it lost: OUT/model is the result, OUT/report.html a page on it."""
    with talking(as_json, debug, "the same command with --resume") as talk:
        from shearfx.one_call import shear as run
        from shearfx.viz.report.page import REPORT

        given = {
            "ratio": ratio, "pretrain": pretrain, "instruct": instruct, "minutes": minutes, "tokens": tokens,
            "steps": steps, "gamma": gamma, "recipe": recipe,
        }  # fmt: skip
        chosen = configured(config, given, option, resumed=out if resume else None)
        # the run reads the model itself, so that it can let go of it
        reading = functools.partial(open_model, talk, model, originals=original)
        sheared = run(reading, out=out, resume=resume, teller=talk, config=chosen)

        page = sheared.path / REPORT

        def show(console: Console) -> None:
            show_run(console, sheared.record)
            console.print(f"model: {sheared.path / 'model'}", markup=False, soft_wrap=True)
            if page.is_file():
                console.print(f"report: {page}", markup=False, soft_wrap=True)

        talk.result({"path": str(sheared.path), **sheared.record}, show)


def configured(path: Path | None, given: dict[str, Any], options: Many, resumed: Path | None = None) -> ShearConfig:
    """The configuration of a file, or of a run that is resumed; of options by name, and of ``--set name=value``.

    Later ones go first.

    Raises:
        PlanError: see :class:`shearfx.config.ShearConfig`.
    """
    from shearfx.config import ShearConfig
    from shearfx.run_directory import asked

    values = {name: value for name, value in given.items() if value is not None} | _settings(options or [])
    if path is not None:
        values = ShearConfig.values_of(path) | values
    return ShearConfig.of_mapping(values) if resumed is None else asked(resumed, values, resume=True)


def _settings(options: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in options:
        name, sign, value = text.partition("=")
        if not sign:
            raise PlanError(message(f"{text!r} sets nothing", where="--set", todo="write --set name=value"))
        try:
            found[name.strip().replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise PlanError(message(f"{value!r} is no value", where=f"--set {name}", todo="quote it")) from error
    return found


DOING = {
    "dense": "judging", "prune": "choosing", "cut": "cutting", "speed": "timing", "recover": "recovery",
}  # fmt: skip
"""Stages that have a peak of memory, in words."""


def show_run(console: Console, record: dict[str, Any]) -> None:
    """Print what a run found: before, cut, recovered."""
    from shearfx.footprint import bytes_text

    stages = [name for name in ("dense", "cut", "recover") if name in record]
    table = Table(show_edge=False)
    table.add_column("")
    for name in stages:
        table.add_column({"recover": "recovered"}.get(name, name), justify="right")
    rows: list[tuple[str, list[str]]] = [
        ("parameters", [_less(record, name, "parameters") for name in stages]),
        ("without embeddings", [_less(record, name, "without_embeddings") for name in stages]),
    ]
    for source in record["dense"]["losses"]:
        perplexities = [f"{math.exp(min(record[name]['losses'][source], 700)):.2f}" for name in stages]
        rows.append((f"perplexity, {source}", perplexities))
    for what, (before, after) in _saved(record.get("speed", {})).items():
        at = {"dense": before, "cut": after, "recover": after}  # training changes no shapes
        rows.append((what, [at.get(name, "") for name in stages]))
    memory = record.get("memory", {})
    weights = {"dense": memory.get("weights", {}).get("dense"), "recover": memory.get("weights", {}).get("recovered")}
    if weights["dense"]:
        rows.append(("weights", [bytes_text(weights[name]) if weights.get(name) else "" for name in stages]))
    for label, cells in rows:
        table.add_row(label, *cells)
    console.print(table)
    peaks = {DOING[name]: size for name, size in memory.get("peak", {}).items() if size and name in DOING}
    if peaks:
        shown = ", ".join(f"{what} {bytes_text(size)}" for what, size in peaks.items())
        where = "allocated on the GPU" if memory.get("on") == "cuda" else "resident in the process"
        console.print(f"peak memory ({where}): {shown}", markup=False, soft_wrap=True)
    gaps = closed(record)
    if gaps:
        shown = ", ".join(f"{source} {share:.0%}" if share <= 1 else f"{source} all" for source, share in gaps.items())
        console.print(f"share of the gap in log-perplexity that recovery closed: {shown}", markup=False)


def _less(record: dict[str, Any], stage: str, what: str) -> str:
    """A count of parameters, and by which share it is below the full model's."""
    count, whole = record[stage][what], record["dense"][what]
    return f"{count:,}" if stage == "dense" or not whole else f"{count:,} ({count / whole - 1:+.1%})"


def _saved(speed: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Operations and speeds before and after, as text."""
    units = {"flops": "", "prefill": " tokens/s", "decode": " tokens/s", "milliseconds": " ms"}
    found = {what: speed[what] for what in units if what in speed}
    return {
        what.replace("milliseconds", "generation"): (
            f"{both['dense']:.3g}{units[what]}",
            f"{both['recovered']:.3g}{units[what]}",
        )
        for what, both in found.items()
    }


def closed(record: dict[str, Any]) -> dict[str, float]:
    """For every source: the share of the loss between dense and cut that recovery won back."""
    if "recover" not in record:
        return {}
    dense, cut, recovered = (record[name]["losses"] for name in ("dense", "cut", "recover"))
    return {
        source: (cut[source] - recovered[source]) / (cut[source] - dense[source])
        for source in dense if cut[source] > dense[source]
    }  # fmt: skip
