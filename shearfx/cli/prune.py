"""``shearfx prune``: choose what to cut, cut it, and save the smaller model."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from shearfx.cli import summary
from shearfx.cli.analyze import trace_with_progress
from shearfx.cli.console import AsJson, Debug, Talk, talking
from shearfx.cli.opening import Device, Dtype, Model, Original, open_model, original_of, read_plan, read_text
from shearfx.errors import CheckpointError, PlanError, message

if TYPE_CHECKING:
    import torch
    from torch import nn

    from shearfx.graph import Graph
    from shearfx.models import LoadedModel
    from shearfx.pruning_plan import PruningPlan
    from shearfx.running_time import RunningTime

__all__ = ["cut_rows", "prune"]


class Scope(StrEnum):
    """Where to cut."""

    GLOBAL = "global"
    UNIFORM = "uniform"


class Form(StrEnum):
    """What the result is."""

    MODULE = "module"
    FX = "fx"


class Unit(StrEnum):
    """What a ratio counts."""

    PARAMS = "params"
    FLOPS = "flops"
    MILLISECONDS = "milliseconds"


@dataclass(frozen=True)
class Calibration:
    """Text for saliencies that look at data, and how much of it."""

    text: Path | None
    samples: int
    sequence_length: int


def prune(
    context: typer.Context,
    model: Model,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write; must not exist.", show_default=False)],
    ratio: Annotated[float | None, typer.Option(help="Share to remove; 0.2 by default.", show_default=False)] = None,
    saliency: Annotated[
        str,
        typer.Option(
            help="What decides: random, magnitude, taylor, fisher, compensated_fisher, wanda_sp, flap, sparsegpt, "
            "llm_pruner_element1, _element2, _vector1, _vector2."
        ),
    ] = "magnitude",
    scope: Annotated[
        Scope, typer.Option(help="global cuts where it costs least; uniform keeps layers alike: a plain config.")
    ] = Scope.GLOBAL,
    form: Annotated[Form, typer.Option(help="The original class, or an fx graph, which holds any cut.")] = Form.MODULE,
    unit: Annotated[Unit, typer.Option(help="What the ratio counts; milliseconds are measured.")] = Unit.PARAMS,
    round_to: Annotated[
        str, typer.Option(help="Resulting sizes are multiples of this; auto: of what suits each, for speed.")
    ] = "1",
    include: Annotated[list[str] | None, typer.Option(help="Cut only these modules (glob); repeatable.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Leave these modules alone (glob); repeatable.")] = None,
    kinds: Annotated[list[str] | None, typer.Option(help="Cut only groups of this kind; repeatable.")] = None,
    allow: Annotated[list[str] | None, typer.Option(help="Admit cuts that change more: approximate.")] = None,
    emptied: Annotated[
        list[str] | None,
        typer.Option(help="A group that goes whole, by name (shearfx analyze): all heads of an attention; repeatable."),
    ] = None,
    floor: Annotated[float, typer.Option(help="Share of each group that stays.")] = 0.1,
    knowledge: Annotated[
        Path | None,
        typer.Option(help="What `shearfx knowledge` wrote: its unprunable node groups stay whole.", show_default=False),
    ] = None,
    gamma: Annotated[
        str | None, typer.Option(help="Beside --knowledge: share of node groups to leave whole, or auto.")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            help="Text that a saliency looks at (all but random, magnitude); Python's own manual if none.",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[int, typer.Option(help="Windows of that text.")] = 16,
    sequence_length: Annotated[int, typer.Option(help="Tokens in each.")] = 128,
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
    plan_only: Annotated[bool, typer.Option("--plan-only", help="Write the plan as JSON to -o, cut nothing.")] = False,
    apply: Annotated[
        Path | None, typer.Option(metavar="PLAN.json", help="Apply this plan instead of making one.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an older result of shearfx.")] = False,
    original: Original = None,
    dtype: Dtype = None,
    device: Device = "cpu",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Remove a share of MODEL's parameters and save the smaller model, a plain Hugging Face folder where it can be."""
    with talking(as_json, debug) as talk:
        _check_options(context, apply)
        _check_amounts(samples, sequence_length)
        _check_free(out, file=plan_only, overwrite=overwrite)
        multiple = _field("RoundTo", round_to, "round_to")
        if apply is None:
            _check_request(0.2 if ratio is None else ratio, scope.value, form.value, multiple, unit.value, floor)
        unprunable, measured = _known(knowledge, gamma)
        if apply is not None:
            plan = read_plan(apply)
            if _on_disk(model, plan, dtype):
                _cut_on_disk(talk, model, plan, out, overwrite)
                loaded = None
            else:
                loaded = open_model(talk, model, originals=original, dtype=dtype, device=device)
        else:
            loaded = open_model(talk, model, originals=original, dtype=dtype, device=device)
            plan = _make_plan(
                talk,
                loaded,
                Calibration(text, samples, sequence_length),
                ratio=0.2 if ratio is None else ratio,
                saliency=saliency,
                scope=scope.value,
                form=form.value,
                unit=unit.value,
                round_to=multiple,
                include=include or (),
                exclude=exclude or (),
                unprunable=unprunable,
                emptied=emptied or (),
                kinds=kinds,
                allow=allow or (),
                floor=floor,
                seed=seed,
            )
            _check_known(plan, measured)
        data = {"model": model, "out": str(out), **describe(plan)}
        if plan_only:
            _write(out, plan.to_json())
        elif loaded is not None:
            data |= _cut_and_save(talk, loaded, plan, out, overwrite)
        if not plan_only:
            data["loads_with"] = "transformers" if (out / "config.json").is_file() else "shearfx.load"

        def show(console: Console) -> None:
            show_plan(console, plan)
            if "parameters_after" in data:
                console.print(f"{data['parameters_before']:,} -> {data['parameters_after']:,} parameters")
            before = original_of(original or ())
            if plan_only:
                console.print(f"plan: {out}", markup=False, soft_wrap=True)
                console.print(f"next: shearfx prune {model}{before} --apply {out} -o DIR", markup=False, soft_wrap=True)
            else:
                console.print(f"saved in {out}; loads with {data['loads_with']}", markup=False, soft_wrap=True)
                console.print(f"next: shearfx verify {out} --original {model}{before}", markup=False, soft_wrap=True)

        talk.result(data, show)


def _make_plan(talk: Talk, loaded: LoadedModel, calibration: Calibration, saliency: str, **options: Any) -> PruningPlan:
    import shearfx
    from shearfx.construction import remember
    from shearfx.saliency import find

    chosen = find(saliency)  # before minutes of tracing
    graph = trace_with_progress(talk, loaded.module, loaded.args, loaded.kwargs)
    remember(loaded.module, graph)
    data = _Batches(talk, loaded, calibration)
    if options["unit"] == Unit.MILLISECONDS:
        options["unit"] = _timed(talk, graph, loaded.module, options)
    with talk.step(f"planning by {saliency}") as progress, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="left whole")  # the result says so
        return shearfx.plan(graph, saliency=chosen, model=loaded.module, data=data, progress=progress, **options)


def _timed(talk: Talk, graph: Graph, model: nn.Module, options: dict[str, Any]) -> RunningTime:
    import shearfx
    from shearfx.selection import Selection, select

    kinds = options["kinds"] and tuple(options["kinds"])
    wanted = Selection(tuple(options["allow"]), tuple(options["include"]), tuple(options["exclude"]), kinds,
                       scope=options["scope"], form=options["form"], unprunable=options["unprunable"])  # fmt: skip
    with talk.step("measuring what takes how much of the time") as progress:
        tied, _ = select(graph, model, wanted)
        time = shearfx.measure_time(graph, model, tied, form=options["form"], progress=progress)
    talk.note(str(time))
    return time


@dataclass(frozen=True)
class _Batches:
    """Batches of the text, made if and when a saliency looks at them."""

    talk: Talk
    loaded: LoadedModel
    calibration: Calibration

    def __len__(self) -> int:
        return self.calibration.samples

    def __iter__(self) -> Iterator[torch.Tensor]:
        from shearfx.calibration import manual_text, token_batches

        source, tokenizer = self.calibration.text, self.loaded.tokenizer
        if source is None:
            self.talk.note("no --text given: scoring on the manual that comes with Python")
        text = manual_text() if source is None else read_text(source)
        length, samples = self.calibration.sequence_length, self.calibration.samples
        return iter(token_batches(tokenizer, text, sequence_length=length, batches=samples))


def _cut_and_save(talk: Talk, loaded: LoadedModel, plan: PruningPlan, out: Path, overwrite: bool) -> dict[str, int]:
    import shearfx
    from shearfx.architectures import config_of
    from shearfx.evaluation import parameter_count

    before = parameter_count(loaded.module).total
    form = str(plan.options.get("form", "module"))
    with talk.step("cutting"):
        small = shearfx.construct(loaded.module, plan, form="fx" if form == "fx" else "module", consume=form != "fx")
    config = config_of(loaded.module) if form == "fx" else None  # a graph has none of its own
    with talk.step(f"saving to {out}"):
        shearfx.save(small, plan, out, tokenizer=loaded.tokenizer, original_config=config, overwrite=overwrite)
    return {"parameters_before": before, "parameters_after": parameter_count(small).total}


def _on_disk(model: str, plan: PruningPlan, dtype: str | None) -> bool:
    """Whether a plan can be applied to files without loading the model."""
    folder = Path(model).expanduser()
    return (folder / "config.json").is_file() and dtype is None and plan.options.get("form", "module") == "module"


def _cut_on_disk(talk: Talk, model: str, plan: PruningPlan, out: Path, overwrite: bool) -> None:
    from shearfx.on_disk import apply_to_folder

    with talk.step(f"cutting {model} into {out}"):
        apply_to_folder(model, plan, out, overwrite=overwrite)


# -- what was cut ----------------------------------------------------------------------------------------


def describe(plan: PruningPlan) -> dict[str, Any]:
    """Everything that ``shearfx prune --json`` says of a plan."""
    return {
        "asked": plan.asked,
        "achieved": plan.achieved,
        "options": plan.options,
        "cuts": [
            {"name": c.name, "kind": c.kind, "certificate": c.certificate, "size": c.size, "kept": len(c.kept)}
            for c in plan.cuts
        ],
    }


def cut_rows(plan: PruningPlan) -> list[tuple[str, str, int, int, int]]:
    """What is cut as (kind, certificate, groups, structures removed, structures in these groups)."""
    rows: dict[tuple[str, str], list[int]] = {}
    for cut in plan.cuts:
        row = rows.setdefault((cut.kind, cut.certificate), [0, 0, 0])
        row[0] += 1
        row[1] += cut.size - len(cut.kept)
        row[2] += cut.size
    return [(kind, certificate, *counts) for (kind, certificate), counts in rows.items()]  # type: ignore[misc]


def show_plan(out: Console, plan: PruningPlan) -> None:
    """Print what a plan cuts: a table by kind, and a line for each layer."""
    table = Table(title="cut", title_justify="left", show_edge=False)
    for name in ("kind", "certificate"):
        table.add_column(name)
    for name in ("groups", "removed"):
        table.add_column(name, justify="right")
    for kind, certificate, groups, removed, size in cut_rows(plan):
        table.add_row(kind, certificate, str(groups), f"{removed:,} of {size:,}")
    out.print(table)
    per_layer: dict[str, list[str]] = {}
    for cut in plan.cuts:
        per_layer.setdefault(summary.layer_of(cut.name), []).append(f"{cut.kind} {cut.size} -> {len(cut.kept)}")
    for layer, text in summary.collapse({layer: ", ".join(texts) for layer, texts in per_layer.items()}):
        out.print(f"  {layer or 'all layers'}: {text}", markup=False, soft_wrap=True)
    for reason, names in dict(plan.options.get("left_whole", {})).items():
        out.print(f"left whole: {', '.join(names)}: {reason}", markup=False, soft_wrap=True)
    units = {"flops": "operations", "milliseconds": "time, as measured by kind of structure"}
    unit = units.get(str(plan.options.get("unit")), "parameters")
    out.print(f"removed {plan.achieved:.2%} of the {unit} (asked: {plan.asked:.2%})")


# -- checking what was asked -----------------------------------------------------------------------------


def _check_options(context: typer.Context, apply: Path | None) -> None:
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


def _check_request(*options: Any) -> None:
    from shearfx.planning import check_request

    check_request(*options)


def _check_amounts(samples: int, sequence_length: int) -> None:
    if samples < 1 or sequence_length < 2:
        raise PlanError(
            message(
                f"{samples} windows of {sequence_length} tokens are nothing to score on",
                where="--samples, --sequence-length",
                todo="pass at least 1 window of 2 tokens",
            )
        )


def _check_free(out: Path, *, file: bool, overwrite: bool) -> None:
    """Say before minutes of work what would go wrong after them; ``save`` looks again."""
    from shearfx.atomic import check_free

    if not file:
        check_free(out, overwrite)
    elif os.path.lexists(out) and not overwrite:
        raise CheckpointError(message("the file exists", where=str(out), todo="name a new file, or pass --overwrite"))


def _known(knowledge: Path | None, gamma: str | None) -> tuple[list[str], list[str]]:
    """Names of the groups that are to stay whole, and of all that were measured."""
    if knowledge is None:
        if gamma is not None:
            raise PlanError(message("--gamma is about a knowledge analysis", todo="pass --knowledge FILE"))
        return [], []
    from shearfx.knowledge import KnowledgeDistribution

    found = KnowledgeDistribution.load(knowledge)
    whole = found.unprunable() if gamma is None else found.unprunable(_field("Gamma", gamma, "gamma"))
    of = {row.name: row.groups for row in found.rows}
    return [group for name in whole for group in of[name]], [group for groups in of.values() for group in groups]


def _check_known(plan: PruningPlan, measured: list[str]) -> None:
    """Refuse to cut what a knowledge analysis did not look at."""
    unknown = next((cut for cut in plan.cuts if measured and cut.name not in measured), None)
    if unknown is not None:
        what = f"the knowledge analysis says nothing of {unknown.name} ({unknown.kind}), and the plan cuts it"
        todo = f"pass --kinds of what was analysed, or analyse {unknown.kind} too (--set kinds=[...])"
        raise PlanError(message(what, where="--knowledge", todo=todo))


def _field(kind: str, value: str, name: str) -> Any:
    from shearfx.config_values import field_value

    return field_value(kind, value, name)


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        todo = "check the path, its permissions and the space on the disk"
        raise CheckpointError(
            message(f"the plan cannot be written: {error.strerror}", where=str(path), todo=todo)
        ) from error
