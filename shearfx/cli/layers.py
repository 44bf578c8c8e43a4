"""``shearfx layers``: which layers can go whole, how far each turns the stream, and the model without some."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from shearfx.atomic import check_free
from shearfx.cli.console import AsJson, Debug, Talk, talking
from shearfx.cli.opening import Device, Dtype, Model, Original, open_model
from shearfx.cli.prune_checks import check_amounts
from shearfx.cli.texts import read_words, windows
from shearfx.errors import PlanError, message

if TYPE_CHECKING:
    import torch

    from shearfx.depth import AngularDistances, Layer
    from shearfx.graph import Graph
    from shearfx.models import LoadedModel

__all__ = ["layers"]


def layers(
    model: Model,
    drop: Annotated[int | None, typer.Option(help="How many layers are to go, in one run.", show_default=False)] = None,
    ratio: Annotated[
        float | None,
        typer.Option(help="Share of the parameters that is to go; whole layers come as near as they can."),
    ] = None,
    layer: Annotated[
        list[str] | None, typer.Option(help="A layer that is to go, by path; can be repeated.", show_default=False)
    ] = None,
    deepest: Annotated[
        bool, typer.Option(help="Drop the last ones but the very last, whatever the distances.")
    ] = False,
    text: Annotated[
        Path | None, typer.Option(help="Measure distances on this text; that of Python's manual by default.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Windows of that text.")] = 32,
    sequence_length: Annotated[int, typer.Option(help="Tokens per window.")] = 128,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the shorter model; must not exist.", show_default=False),
    ] = None,
    original: Original = None,
    dtype: Dtype = None,
    device: Device = "cpu",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List the layers of MODEL that can go whole, with angular distances (Gromov et al. 2024); write it without some.

    A layer can go where all it does is to add something to what comes in. The shorter model is checked in float64
    against the graph in which the layers' branches are zero, and is an ordinary Hugging Face folder.
    """
    with talking(as_json, debug) as talk:
        asked = sum((drop is not None, ratio is not None, bool(layer)))
        if asked > 1 or (out is not None and not asked):
            raise PlanError(message("what is to go?", where="--drop, --ratio, --layer", todo="pass one of the three"))
        if ratio is not None and not 0 < ratio < 1:
            raise PlanError(message(f"a ratio of {ratio:g}", where="--ratio", todo="pass a share between 0 and 1"))
        if out is not None:
            check_free(out, overwrite=False)
        check_amounts(samples, sequence_length)
        content = None if text is None else read_words(text)
        loaded = open_model(talk, model, originals=original, dtype=dtype, device=device)
        # a short text says so before the tracing
        measured_on = _windows(loaded, text, content, samples, sequence_length)
        from shearfx.analysis import trace
        from shearfx.depth import find_layers

        with talk.step("tracing and analysing"):
            graph = trace(loaded.module, *loaded.args, **loaded.kwargs)
        found = find_layers(graph)
        if not found.layers:
            reason = next(iter(found.refused.values()), "it has no lists of layers")
            raise PlanError(message(f"no layer can go whole: {reason}", where=model, todo="cut widths: shearfx prune"))
        measured = {}
        for path, of in found.lists().items():
            reason = _unmeasured(loaded, of)
            if reason and (text is not None or not (deepest or (drop is None and ratio is None))):
                todo = "drop the --deepest ones, or name them: --layer"
                raise PlanError(message(f"distances cannot be measured: {reason}", where=path, todo=todo))
            if reason:
                talk.note(f"{path}: no distances, as {reason}")
                continue
            with talk.step(f"measuring distances in {path}") as progress:
                measured[path] = _distances(loaded, of, measured_on, progress)
        amount = None if ratio is None else ratio * graph.total_params
        chosen = layer or _chosen(measured, found.lists(), drop, amount, deepest)
        data: dict[str, Any] = {
            "model": model, "parameters": graph.total_params, "refused": found.refused, "dropped": chosen,
            "layers": [{"path": one.path, "parameters": one.params} for one in found.layers],
            "distances": {path: {n: list(row) for n, row in one.distances.items()} for path, one in measured.items()},
        }  # fmt: skip
        if ratio is not None:
            makes = sum(one.params for one in found.layers if one.path in chosen) / graph.total_params
            data |= {"asked": ratio, "achieved": makes}
            talk.note(f"a ratio of {ratio:.1%} is asked for: {len(chosen)} whole layers make {makes:.1%}")
        if chosen and out is not None:
            data["achieved"] = _write(talk, loaded, graph, chosen, out)

        def show(console: Console) -> None:
            for path, of in found.lists().items():
                console.print(_table(path, of, measured.get(path), chosen))
            for path, reason in found.refused.items():
                console.print(f"{path} stays: {reason}", markup=False, soft_wrap=True)
            if chosen and out is not None:
                console.print(
                    f"{out}: {len(chosen)} layers less, {data['achieved']:.1%} of the parameters", markup=False
                )

        talk.result(data, show)


def _unmeasured(loaded: LoadedModel, of: list[Layer]) -> str:
    """Why the distances of a list of layers cannot be measured; empty where they can."""
    from shearfx.depth import without_gaps

    if loaded.tokenizer is None:
        return "the model has no tokenizer, and they are measured on text"
    return "" if without_gaps(of) else "some layers between these cannot go"


def _windows(loaded: LoadedModel, file: Path | None, text: str | None, samples: int, length: int) -> list[torch.Tensor]:
    """Token ids ``[1, length]`` to measure on, beside the model; none where there is no tokenizer."""
    from shearfx.inference import device_of

    if loaded.tokenizer is None:
        return []
    return [batch.to(device_of(loaded.module)) for batch in windows(loaded, file, text, samples, length)]


def _distances(loaded: LoadedModel, of: list[Layer], batches: list[torch.Tensor], progress: Any) -> AngularDistances:
    from shearfx.depth import angular_distances
    from shearfx.inference import logits_of

    return angular_distances(loaded.module, of, batches, lambda m, ids: logits_of(m, ids, last=1), progress=progress)


def _chosen(
    measured: dict[str, AngularDistances],
    lists: dict[str, list[Layer]],
    drop: int | None,
    amount: float | None,
    deepest: bool,
) -> list[str]:
    from shearfx.depth import deepest_run, nearest_run

    if drop is None and amount is None:
        return []
    if len(lists) > 1:
        what = f"there are {len(lists)} lists of layers: {', '.join(lists)}"
        raise PlanError(message(what, where="--drop, --ratio", todo="name layers one by one: --layer"))
    ((path, of),) = lists.items()

    def pick(count: int) -> list[str]:
        return deepest_run([layer.path for layer in of], count) if deepest else measured[path].best(count)

    return pick(drop) if drop is not None else nearest_run(of, amount or 0.0, pick)


def _write(talk: Talk, loaded: LoadedModel, graph: Graph, chosen: list[str], out: Path) -> float:
    """The shorter model as a folder; returns the share of the parameters that went."""
    from shearfx.depth import write_shorter

    with talk.step(f"dropping layers, checking that nothing else changed, and writing {out}"):
        small = write_shorter(
            loaded.module, graph, chosen, out, args=loaded.args, kwargs=loaded.kwargs, tokenizer=loaded.tokenizer
        )
    return 1 - sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in loaded.module.parameters())


def _table(path: str, of: list[Layer], measured: AngularDistances | None, chosen: list[str]) -> Table:
    table = Table(title=path, title_justify="left")
    for name in ("layer", "parameters", *(("distance", "best run of as many layers") if measured else ())):
        table.add_column(name, justify="right")
    for n, one in enumerate(of, start=1):
        mark = " goes" if one.path in chosen else ""
        shown = () if measured is None else (f"{measured.distances[1][n - 1]:.3f}", _run(of, measured, n))
        table.add_row(f"{one.index}{mark}", f"{one.params:,}", *shown)
    return table


def _run(of: list[Layer], measured: AngularDistances, count: int) -> str:
    """The best run of so many layers; nothing where it would be all of them."""
    if count == len(of):
        return ""
    run = measured.best(count)
    first, last = (of[measured.paths.index(end)].index for end in (run[0], run[-1]))
    return f"{count}: {first} to {last}, {min(measured.distances[count]):.3f}"
