"""Checks of what ``shearfx prune`` and its like are asked, before anything takes long."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from shearfx.errors import CheckpointError, PlanError, message

if TYPE_CHECKING:
    from shearfx.pruning_plan import PruningPlan


def check_options(context: typer.Context, apply: Path | None) -> None:
    """A plan brings its own answers to whatever one could ask of planning."""
    beside = {"model", "out", "apply", "overwrite", "original", "dtype", "device", "as_json", "debug"}
    given = [
        "--" + name.replace("_", "-")
        for name in context.params
        if name not in beside and getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    ]
    if apply is not None and given:
        where = f"{', '.join(given)} beside --apply"
        raise PlanError(message("--apply brings its own plan", where=where, todo="pass one of the two"))


def check_amounts(samples: int, sequence_length: int) -> None:
    """There has to be text to look at."""
    if samples < 1 or sequence_length < 2:
        raise PlanError(
            message(
                f"{samples} windows of {sequence_length} tokens are nothing to look at",
                where="--samples, --sequence-length",
                todo="pass at least 1 window of 2 tokens",
            )
        )


def check_out(out: Path, *, file: bool, overwrite: bool) -> None:
    """Say before minutes of work what would go wrong after them; ``save`` looks again."""
    from shearfx.atomic import check_free

    if not file:
        check_free(out, overwrite)
    elif os.path.lexists(out) and not overwrite:
        raise CheckpointError(message("the file exists", where=str(out), todo="name a new file, or pass --overwrite"))


def groups_known(knowledge: Path | None, gamma: str | None) -> tuple[list[str], list[str]]:
    """Names of the groups that are to stay whole, and of all that were measured."""
    if knowledge is None:
        if gamma is not None:
            raise PlanError(message("--gamma is about a knowledge analysis", todo="pass --knowledge FILE"))
        return [], []
    from shearfx.config_values import field_value
    from shearfx.knowledge import KnowledgeDistribution

    found = KnowledgeDistribution.load(knowledge)
    whole = found.unprunable() if gamma is None else found.unprunable(field_value("Gamma", gamma, "gamma"))
    of = {row.name: row.groups for row in found.rows}
    return [group for name in whole for group in of[name]], [group for groups in of.values() for group in groups]


def check_known(plan: PruningPlan, measured: list[str]) -> None:
    """Refuse to cut what a knowledge analysis did not look at."""
    unknown = next((cut for cut in plan.cuts if measured and cut.name not in measured), None)
    if unknown is not None:
        what = f"the knowledge analysis says nothing of {unknown.name} ({unknown.kind}), and the plan cuts it"
        todo = f"pass --kinds of what was analysed, or analyse {unknown.kind} too (--set kinds=[...])"
        raise PlanError(message(what, where="--knowledge", todo=todo))
