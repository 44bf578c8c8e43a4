"""``shearfx knowledge`` and ``shearfx recover``: two stages of LoRAShear by themselves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from shearfx.cli.console import AsJson, Debug, talking
from shearfx.cli.opening import Model, open_model
from shearfx.cli.shear import Many, Resume, configured
from shearfx.errors import CheckpointError, PlanError, message

if TYPE_CHECKING:
    from shearfx.knowledge import KnowledgeDistribution

__all__ = ["knowledge", "recover"]

Pretrain = Annotated[Many, typer.Option(help="Text: file, folder or hub name; repeatable.")]
Instruct = Annotated[Many, typer.Option(help="Instructions (JSON, JSON lines, parquet); repeatable.")]
Config = Annotated[Path | None, typer.Option(help="YAML, as for `shearfx shear`.", show_default=False)]
Set = Annotated[Many, typer.Option("--set", metavar="NAME=VALUE", help="Any option of a run; repeatable.")]

Gamma = Annotated[str, typer.Option(help="Share of node groups to leave whole, or auto.")]


def knowledge(
    model: Model,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="JSON file to write.", show_default=False)] = None,
    pretrain: Pretrain = None,
    instruct: Instruct = None,
    ratios: Annotated[
        list[float] | None, typer.Option(help="Prune each node group alone by this share; repeatable.")
    ] = None,
    gamma: Gamma = "auto",
    config: Config = None,
    option: Set = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure what each node group of MODEL knows (LoRAShear, Algorithm 3), and which ones to leave whole.

    What is written is read by `shearfx prune --knowledge` and `shearfx shear --set knowledge=FILE`. Stopped, it goes
    on where it was.
    """
    with talking(as_json, debug, "the same command" if out is not None else "") as talk:
        from shearfx.pipeline.stages import measure_knowledge

        given = {"pretrain": pretrain, "instruct": instruct, "knowledge_ratios": ratios, "gamma": gamma}
        chosen = configured(config, given, option)
        if out is not None and out.exists():
            raise CheckpointError(message("the file exists", where=str(out), todo="name a new file"))
        partly = None if out is None else out.with_name(f"{out.name}.partly")
        found = measure_knowledge(open_model(talk, model), chosen, talk, partly)
        if out is not None and partly is not None:
            found.save(out)
            partly.unlink(missing_ok=True)
        data: dict[str, Any] = {"perplexity": found.perplexity, "unprunable": list(found.unprunable()),
                                "node_groups": [_row(one) for one in found.ranking()]}  # fmt: skip
        talk.result(data, lambda console: _show(console, found))


def _row(one: Any) -> dict[str, Any]:
    return {"name": one.name, "kind": one.kind, "layer": one.layer, "share": one.share, "deviation": one.deviation}


def _show(console: Console, found: KnowledgeDistribution) -> None:
    kept = set(found.unprunable())
    table = Table(show_edge=False)
    for name in ("node group", "kind", "layer"):
        table.add_column(name)
    for name in ("of the parameters", "perplexity x"):
        table.add_column(name, justify="right")
    table.add_column("")
    for one in found.ranking():
        layer = "" if one.layer is None else str(one.layer)
        mark = "unprunable" if one.name in kept else ""
        table.add_row(one.name, one.kind, layer, f"{one.share:.2%}", f"{math.exp(min(one.deviation, 700)):.3f}", mark)
    console.print(table)
    console.print(f"full model: perplexity {found.perplexity:.2f} over {found.weight} tokens")


def recover(
    model: Model,
    original: Annotated[str, typer.Option(help="The full model that MODEL was cut from.", show_default=False)],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the run.", show_default=False)],
    pretrain: Pretrain = None,
    instruct: Instruct = None,
    minutes: Annotated[float | None, typer.Option(help="Wall clock.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Or: tokens to train on.")] = None,
    steps: Annotated[int | None, typer.Option(help="Or: optimiser steps.")] = None,
    config: Config = None,
    option: Set = None,
    resume: Resume = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Teach MODEL, cut from ORIGINAL by shearfx, what it lost (LoRAShear, Algorithm 5): OUT/model is the result."""
    with talking(as_json, debug, "the same command with --resume") as talk:
        from shearfx.pipeline.stages import recover_model
        from shearfx.viz.report.beside import report_beside

        given = {"pretrain": pretrain, "instruct": instruct, "minutes": minutes, "tokens": tokens, "steps": steps}
        chosen = configured(config, given, option, resumed=out if resume else None)
        if not chosen.pretrain and not chosen.instruct:
            raise PlanError(message("there is nothing to learn from", todo="pass --pretrain or --instruct"))
        record = recover_model(model, original, out, chosen, talk, resume=resume)
        report_beside(out, talk.note)

        def show(console: Console) -> None:
            from shearfx.cli.shear import show_run

            show_run(console, record)
            console.print(f"model: {out / 'model'}", markup=False, soft_wrap=True)

        talk.result({"path": str(out), **record}, show)
