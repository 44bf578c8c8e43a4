"""``shearfx analyze``: what can be cut, what cannot, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from shearfx.cli import summary
from shearfx.cli.console import AsJson, Debug, Talk, talking
from shearfx.cli.opening import Dtype, Model, Original, open_model
from shearfx.errors import ShearError, message

if TYPE_CHECKING:
    from shearfx.graph import Graph

__all__ = ["analyze", "cheapest", "show_coverage", "trace_with_progress"]


def analyze(
    model: Model,
    original: Original = None,
    every: Annotated[bool, typer.Option("--all", help="List every group, not one line for all layers alike.")] = False,
    print_after: Annotated[
        str | None,
        typer.Option(metavar="PASS", help="Print the IR after this pass: compose, infer, node-groups, partition."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Default: meta, which reads no weights; cpu for a factory.", show_default=False),
    ] = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show the pruning groups of MODEL, how much of it they reach, and what is pinned and why."""
    with talking(as_json, debug) as talk:
        wanted = _pass_name(print_after)
        loaded = open_model(talk, model, originals=original, dtype=dtype, device=device or cheapest(model))
        texts: dict[str, str] = {}

        def after(name: str, graph: Graph) -> None:
            if name == wanted:
                texts[name] = graph.to_text()

        graph = trace_with_progress(talk, loaded.module, loaded.args, loaded.kwargs, after)
        data = {"model": model, **summary.describe(graph)}
        if wanted is not None:
            data["ir"] = {"after": wanted, "text": texts[wanted]}

        def show(out: Console) -> None:
            if wanted is not None:
                out.print(texts[wanted], markup=False, soft_wrap=True)
            else:
                show_graph(out, model, graph, every)

        talk.result(data, show)


def trace_with_progress(
    talk: Talk, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], after: Any = None
) -> Graph:
    """Trace and analyse, showing which part is going on.

    Raises:
        TraceError: the model does not export, or the example inputs do not fit it.
    """
    from shearfx.analysis import trace

    with talk.step(f"tracing {type(module).__name__}"):
        return trace(module, *args, after=after, **kwargs)


def show_graph(out: Console, title: str, graph: Graph, every: bool) -> None:
    """Print the tables of one graph."""
    out.print(
        f"[bold]{graph.traced.model_class}[/bold] ({title}): {graph.total_params:,} parameters in "
        f"{len(graph.parameters())} tensors",
        soft_wrap=True,
    )
    _show_groups(out, graph, every)
    _show_layers(out, graph)
    show_coverage(out, graph)
    _show_pins(out, graph)
    if graph.traced.specialised:
        out.print(f"fixed by the model's own code: {', '.join(graph.traced.specialised)}", soft_wrap=True)
    passes = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in graph.seconds.items())
    out.print(f"time: export {graph.traced.seconds:.2f} s; {passes}")


def show_coverage(out: Console, graph: Graph) -> None:
    """Print how much of the model the groups reach."""
    out.print(
        f"coverage: {graph.coverage_exact:.1%} of the parameters by exact groups, "
        f"{graph.coverage:.1%} with the compensated ones"
    )


def _show_groups(out: Console, graph: Graph, every: bool) -> None:
    table = Table(title="pruning groups", title_justify="left", show_edge=False)
    table.add_column("group", overflow="fold")
    table.add_column("kind")
    for name in ("groups", "size", "params each"):
        table.add_column(name, justify="right")
    table.add_column("certificate")
    if every:
        for g in graph.groups:
            table.add_row(g.name, g.kind, "1", f"{g.size:,}", f"{g.params:,}", g.certificate)
    else:
        for row in summary.group_rows(graph.groups):
            table.add_row(row.name, row.kind, str(row.count), f"{row.size:,}", f"{row.params:,}", row.certificate)
    out.print(table)
    for row in {r.reason: r for r in summary.group_rows(graph.groups) if r.reason}.values():
        out.print(f"  {row.certificate}: {row.reason}", markup=False, soft_wrap=True)


def _show_layers(out: Console, graph: Graph) -> None:
    table = Table(title="per layer", title_justify="left", show_edge=False)
    table.add_column("layer")
    table.add_column("structures", overflow="fold")
    rows = {layer: summary.sizes_text(kinds) for layer, kinds in summary.layers(graph.groups).items()}
    for layer, text in summary.collapse(rows):
        table.add_row(layer or "(none)", text)
    out.print(table)


def _show_pins(out: Console, graph: Graph) -> None:
    table = Table(title=f"pinned: {len(graph.pins)}", title_justify="left", show_edge=False)
    table.add_column("why", overflow="fold")
    table.add_column("times", justify="right")
    table.add_column("size", justify="right")
    table.add_column("first at", overflow="fold")
    for row in summary.pin_rows(graph.pins):
        table.add_row(row.reason, str(row.count), row.dims, f"{row.node}: {row.source}" if row.source else row.node)
    if graph.pins:
        out.print(table)
    unused = [t.name for t in graph.traced.unused]
    if unused:
        more = f" and {len(unused) - 8} more" if len(unused) > 8 else ""
        out.print(f"never reached by this call, so pinned: {', '.join(unused[:8])}{more}", soft_wrap=True)


def _pass_name(asked: str | None) -> str | None:
    if asked is None:
        return None
    from shearfx.passes import ANALYSIS

    names = {step.name.replace(" ", "-"): step.name for step in ANALYSIS}
    name = asked.replace(" ", "-")
    if name not in names:
        raise ShearError(
            message(f"there is no pass {asked!r}", where="--print-after", todo=f"use one of {', '.join(names)}")
        )
    return names[name]


def cheapest(model: str) -> str:
    """Checkpoints are analysed without their weights; a factory may compute with what it makes."""
    from shearfx.factories import is_factory_spec

    return "cpu" if is_factory_spec(model) else "meta"
