"""``shearfx.verify``: does the cut model compute what the masked original computes?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from shearfx.analysis import trace
from shearfx.attributes import settle
from shearfx.comparison import SHIPPED_TOLERANCE, TOLERANCE, compare, outputs_of, relative_error
from shearfx.construction import analysis_of, construct
from shearfx.dropping import passed_by
from shearfx.errors import SoundnessError, TraceError, message
from shearfx.fewer_layers import is_full, without
from shearfx.graph import Graph
from shearfx.layers import find_layers
from shearfx.masking import mask
from shearfx.precision import doubled, doubled_inputs
from shearfx.pruning_plan import PruningPlan, check_terms
from shearfx.tracing import by_name


@dataclass(frozen=True)
class Report:
    """What a verification measured. Errors are relative to the largest number of the masked original's output."""

    max_relative_error: float
    module_error: float | None
    """Of the original class; None where the plan is for the fx form only."""
    fx_error: float | None
    moved: float
    """How far masking moved the output from the original's, likewise relative: what moves nothing shows little."""
    tolerance: float
    outputs: int
    layers_error: float | None = None
    """Of the model without the layers that go whole, against the graph in which the stream passes them by; None where
    none go."""


def verify(
    model: nn.Module, plan: PruningPlan, *args: Any, double: bool = True, graph: Graph | None = None, **kwargs: Any
) -> Report:
    """Compare the cut model, in every form the plan allows, with the masked original on the given inputs.

    The fx form is one of one traced call. Where other arguments are given, or other sizes of dims that the model's
    code fixes, the model is traced anew; with other arguments, only if the fx form is all there is.

    Args:
        model: the full-size model; one with all its layers is compared without those that go, too.
        args, kwargs: a call, of any batch size and sequence length.
        double: compare in float64 (the default), or as shipped.
        graph: the analysis of this model, if there is one.

    Raises:
        SoundnessError: an output differs, is not finite, or has another shape; or there is none to compare.
        TraceError: the full model does not run on these inputs.
        PlanError: the plan's terms are not those of its groups, or a trace of this call does not find the groups that
            the plan cuts.
    """
    given = by_name(model, args, kwargs)
    if is_full(model, plan):
        return _without_layers(model, plan, given, double, graph)
    prepare = doubled if double else (lambda module: module)
    inputs = doubled_inputs(given) if double else given
    tolerance = TOLERANCE if double else SHIPPED_TOLERANCE
    graph = graph or analysis_of(model, plan)
    check_terms(graph, plan)
    full = prepare(model)
    if "form" not in plan.options:
        plan = settle(model, graph, plan)
    forms: dict[str, nn.Module] = {}
    if plan.options.get("form", "module") == "module":
        forms["module"] = construct(full, plan, form="module")
    same = _same_arguments(graph, inputs)
    if (same and not _fits(graph, inputs)) or not (same or forms):
        graph, same = trace(model, **given), True
    if same and not (forms and graph.traced.changed):
        fx_form = construct(full, plan, form="fx", graph=graph)
        forms["fx"] = doubled(fx_form) if double else fx_form
    zeroed = mask(full, plan)  # before any runs: a call may leave something in the model's buffers
    original = _original(full, inputs, double)
    if not original:
        raise SoundnessError(
            message("the model returns no tensor that could be compared", todo="verify a module that returns one")
        )
    masked = outputs_of(zeroed, inputs, double)
    errors: dict[str, float] = {}
    for name, form in forms.items():
        call = {k: v for k, v in inputs.items() if k in graph.traced.inputs} if name == "fx" else inputs
        errors[name] = compare(masked, outputs_of(form, call, double), name)
    worst = max(errors.values())
    if worst > tolerance:
        guilty = max(errors, key=lambda name: errors[name])
        raise SoundnessError(
            message(
                f"the {guilty} form differs from the masked original by {worst:.2e} of its largest output "
                f"(tolerated: {tolerance:.0e})",
                where=f"{type(model).__name__}, plan of {len(plan.cuts)} cut groups",
                todo="do not use this cut; please report it with the model and the plan",
            )
        )
    return Report(worst, errors.get("module"), errors.get("fx"), relative_error(original, masked), tolerance,
                  len(masked))  # fmt: skip


def _without_layers(
    model: nn.Module, plan: PruningPlan, given: dict[str, Any], double: bool, graph: Graph | None
) -> Report:
    """Layers first, always in float64, then what is cut of the model that they leave."""
    graph = graph or trace(model, **given)
    small = without(model, plan.layers)
    error = passed_by(model, graph, find_layers(graph).only(plan.layers), small, given)
    found = verify(small, plan, double=double, **given)
    before, after = (outputs_of(doubled(one), doubled_inputs(given), True) for one in (model, mask(small, plan)))
    worst = max(error, found.max_relative_error)
    return dataclasses.replace(found, max_relative_error=worst, moved=relative_error(before, after), layers_error=error)


def _same_arguments(graph: Graph, inputs: Mapping[str, Any]) -> bool:
    """Whether a call has the tensor arguments of the traced one."""
    tensors = {name for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    return tensors <= set(graph.traced.inputs) <= set(inputs)


def _fits(graph: Graph, inputs: Mapping[str, Any]) -> bool:
    """Whether a call has sizes for which the graph was traced."""
    return not graph.traced.input_sizes().misfit({name: inputs[name].shape for name in graph.traced.inputs})


def _original(model: nn.Module, inputs: Mapping[str, Any], double: bool) -> list[torch.Tensor]:
    try:
        return outputs_of(model, inputs, double)
    except Exception as error:  # whatever the model's own code raises
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise TraceError(
            message(
                f"the full model does not run on these inputs: {first}",
                where=type(model).__name__,
                todo="pass the inputs that its forward takes",
            )
        ) from error
