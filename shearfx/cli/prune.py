"""``shearfx prune``: choose what to cut, cut it, and save the smaller model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from shearfx.cli.analyze import trace_with_progress
from shearfx.cli.console import AsJson, Debug, Talk, talking
from shearfx.cli.opening import Device, Dtype, Model, Original, open_model, original_of, read_plan
from shearfx.cli.plan_shown import describe, show_plan
from shearfx.cli.prune_checks import (
    check_amounts,
    check_known,
    check_options,
    check_out,
    groups_known,
)
from shearfx.cli.texts import read_words, windows

if TYPE_CHECKING:
    import torch
    from torch import nn

    from shearfx.graph import Graph
    from shearfx.models import LoadedModel
    from shearfx.pruning_plan import PruningPlan
    from shearfx.running_time import RunningTime

__all__ = ["prune"]


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

    file: Path | None
    text: str | None
    """What is in the file; None stands for Python's own manual."""
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
        from shearfx.config_values import field_value
        from shearfx.planning import check_request

        check_options(context, apply)
        check_amounts(samples, sequence_length)
        check_out(out, file=plan_only, overwrite=overwrite)
        multiple = field_value("RoundTo", round_to, "round_to")
        if apply is None:
            check_request(0.2 if ratio is None else ratio, scope.value, form.value, multiple, unit.value, floor)
        unprunable, measured = groups_known(knowledge, gamma)
        calibration = Calibration(text, None if text is None else read_words(text), samples, sequence_length)
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
                calibration,
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
            check_known(plan, measured)
        data = {"model": model, "out": str(out), **describe(plan)}
        if plan_only:
            from shearfx.atomic import replace_file

            replace_file(out, plan.to_json())
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
    # a text that is too short says so before that too; the manual is only read if it is looked at
    data = _Manual(talk, loaded, calibration) if calibration.text is None else _windows(loaded, calibration)
    graph = trace_with_progress(talk, loaded.module, loaded.args, loaded.kwargs)
    remember(loaded.module, graph)
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
class _Manual:
    """Windows of Python's own manual, made if and when a saliency looks at them."""

    talk: Talk
    loaded: LoadedModel
    calibration: Calibration

    def __len__(self) -> int:
        return self.calibration.samples

    def __iter__(self) -> Iterator[torch.Tensor]:
        self.talk.note("no --text given: scoring on the manual that comes with Python")
        return iter(_windows(self.loaded, self.calibration))


def _windows(loaded: LoadedModel, asked: Calibration) -> list[torch.Tensor]:
    return windows(loaded, asked.file, asked.text, asked.samples, asked.sequence_length)


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
    cuts_alone = plan.options.get("form", "module") == "module" and not plan.layers
    return (folder / "config.json").is_file() and dtype is None and cuts_alone


def _cut_on_disk(talk: Talk, model: str, plan: PruningPlan, out: Path, overwrite: bool) -> None:
    from shearfx.on_disk import apply_to_folder

    with talk.step(f"cutting {model} into {out}"):
        apply_to_folder(model, plan, out, overwrite=overwrite)
