"""``shearfx.plan``: choose what to cut so that a share of the model's parameters, operations or time is saved."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

from torch import nn

import shearfx.saliency as saliencies
from shearfx.achieved import achieved_in
from shearfx.budget import budget_of, open_sizes
from shearfx.config_values import RoundTo
from shearfx.errors import PlanError, message
from shearfx.gradients import Loss
from shearfx.graph import Graph, Group
from shearfx.pruning_plan import PruningPlan, of_cuts
from shearfx.running_time import RunningTime, unit_name
from shearfx.saliency import Progress, Saliency
from shearfx.selection import UNSEEN, Selection, Tied, seen, select, tell_whole
from shearfx.settling import settle_most
from shearfx.spending import Spender
from shearfx.units import FLOOR, Floor, checked, empty, units_of


def plan(
    graph: Graph,
    ratio: float = 0.2,
    saliency: str | Saliency = "magnitude",
    model: nn.Module | None = None,
    *,
    scope: Literal["global", "uniform"] = "global",
    form: Literal["module", "fx"] = "module",
    round_to: RoundTo = 1,
    allow: Collection[str] = (),
    unit: Literal["params", "flops"] | RunningTime = "params",
    include: Collection[str] = (),
    exclude: Collection[str] = (),
    kinds: Collection[str] | None = None,
    exclude_kinds: Collection[str] = (),
    unprunable: Collection[str] = (),
    emptied: Collection[str] = (),
    floor: Floor = FLOOR,
    most: float = 1.0,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> PruningPlan:
    """Choose structures to cut until ``ratio`` of the model is saved.

    The achieved ratio is as close to the asked one as the cheapest structure still to be had allows. Scores in units
    of loss are ranked across all layers and kinds, per unit of cost; relative ones rank the structures of a group, and
    all groups give up equal shares (less where several cut the same tensors, so that tensors shrink alike).

    What the original class can express alone, but not beside the other cuts, stays whole, with a warning; the rest is
    cut further in its place, and the plan's ``options["left_whole"]`` says what and why.

    Args:
        graph: what :func:`shearfx.trace` returned for the model.
        ratio: the share to save, between 0 and 1: of all unique parameters, or of operations (see ``unit``).
        saliency: ``"random"``, ``"magnitude"``, ``"taylor"``, another registered name, or a :class:`Saliency`.
        model: the model; its weights are needed by most saliencies. Never changed.
        scope: ``"global"`` cuts where it costs least; ``"uniform"`` leaves equal counts in all groups that are alike
            in kind, size and place within their layer (place aside for a model with a configuration, whose fields know
            none), so that a plain configuration describes the result.
        form: ``"module"`` admits only what the model's own class can express, ``"fx"`` everything.
        round_to: dims of parameters that change become multiples of this, or of what suits their size ("auto":
            powers of two up to 64, see :func:`shearfx.multiples.aligned`); what cannot be stays whole.
            Widths of experts that run as one product become multiples of 8 at least, as its kernels want them.
        allow: certificates to admit beside exact and compensated: ``("approximate",)``.
        unit: what ``ratio`` counts, ``"params"``, ``"flops"`` (those of contractions, at the example's sizes), or time
            on this machine: what :func:`shearfx.measure_time` found.
        include, exclude: globs over module paths (``"model.layers.3.*"``, a path stands for all inside) or parameter
            names. A group is excluded if a pattern matches one of its parameters; with ``include``, one has to match.
        kinds: the kinds of groups to cut; by default all but ``hidden`` and ``head_dim``, which reach through the whole
            model at once; ``"all"`` for those too.
        exclude_kinds: kinds to leave alone.
        unprunable: names of groups to leave whole, such as a knowledge analysis finds
            (:meth:`shearfx.knowledge.KnowledgeDistribution.unprunable`).
        emptied: names of exact groups that go whole, whatever the saliency and the floor say: an attention without
            heads, a feed-forward part without width (see :func:`shearfx.depth.find_branches`). They count towards the
            ratio.
        floor: what stays of every group, as a count (int) or a share (float), or by kind (others: the default share).
        most: the largest share that a group may lose.
        data, loss: for saliencies that look at data: batches, and a function of model and batch that returns a scalar.
        seed: of everything drawn.
        progress: called with what is done and what there is in all while structures are scored.

    Raises:
        PlanError: the request makes no sense, or cannot be met; the message says what stands in the way.
    """
    counts = unit_name(unit)
    check_request(ratio, scope, form, round_to, counts, floor, most)
    chosen = saliencies.find(saliency)
    if model is not None:
        _check_model(graph, model)
    elif form == "module":
        todo = 'pass model= (on the meta device is enough), or form="fx"'
        raise PlanError(message("what the model's own class can express depends on its code", todo=todo))
    wanted = Selection(tuple(_texts(allow)), tuple(_texts(include)), tuple(_texts(exclude)),
                       None if kinds is None else tuple(_texts(kinds)),
                       tuple(_texts(exclude_kinds)), scope, form, tuple(_texts(unprunable)))  # fmt: skip
    names = dict.fromkeys(_texts(emptied))
    tied, refused = select(graph, model, wanted)
    tied = seen(tied, refused, chosen, graph, model, wanted.kinds)
    unseen = {why: [g.name for g in of] for why, of in refused.items() if why == UNSEEN.format(chosen.name)}
    tell_whole(unseen, stacklevel=3)
    _check_floor(graph, floor)
    groups = list({g.name: g for t in tied for g in t.groups}.values())
    scores = chosen.score(graph, model, groups=groups, data=data, loss=loss, seed=seed, progress=progress)
    scores = checked(scores, groups, chosen.name)
    options = {
        "ratio": ratio, "saliency": chosen.name, "saliency_options": _fields(chosen), "saliency_unit": chosen.unit,
        "scope": scope, "form": form, "round_to": round_to, "allow": list(wanted.allow), "unit": counts,
        "include": list(wanted.include), "exclude": list(wanted.exclude),
        "kinds": None if wanted.kinds is None else list(wanted.kinds),
        "exclude_kinds": list(wanted.exclude_kinds),
        "floor": dict(floor) if isinstance(floor, Mapping) else floor, "most": most, "seed": seed,
        "emptied": list(names),
    } | ({"left_whole": unseen} if unseen else {})  # fmt: skip

    def spent_on(tied: Sequence[Tied]) -> PruningPlan:
        budget = budget_of(graph, unit, groups)
        if budget.total <= 0:
            raise PlanError(message(f"the traced call has no {counts} to save", todo="choose another unit"))
        spender = Spender(budget, units_of(graph, tied, scores, floor, most, budget, names), chosen.unit, round_to)
        empty(spender, names, refused)
        if spender.saved > ratio * budget.total:
            what = f"what is to be emptied makes {spender.saved / budget.total:.4f} of the {counts}"
            raise PlanError(
                message(f"{what}, and {ratio:g} is to go", where="emptied=", todo="empty less, or cut more")
            )
        spender.spend(ratio * budget.total)
        _check_reached(graph, spender, ratio, counts, refused)
        kept = {name: stay for u in spender.units if u.gone for name, stay in u.kept().items()}
        result = of_cuts(graph, kept, asked=ratio, options=dict(options))
        if unit != "params":
            if isinstance(unit, RunningTime):
                result.options.update({"milliseconds": unit.total, "timed": unit.what})
            else:
                result.options.update({"flops": budget.total, "flops_sizes": open_sizes(graph)})
        return achieved_in(result, graph, unit)

    if model is None or form != "module":
        return spent_on(tied)
    return settle_most(model, graph, tied, spent_on, refused)


# -- checking the request --------------------------------------------------------------------------------


def check_request(
    ratio: float, scope: str, form: str, round_to: RoundTo, unit: str, floor: Floor, most: float = 1.0
) -> None:
    """Raise PlanError unless these options of :func:`plan` make sense, whatever the model."""
    where = "plan(...)"
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio < 1:
        raise PlanError(message(f"the ratio {ratio!r} is not between 0 and 1", where=where, todo="pass 0.2 for 20%"))
    for name, value, known in (
        ("scope", scope, ("global", "uniform")),
        ("form", form, ("module", "fx")),
        ("unit", unit, ("params", "flops", "milliseconds")),
    ):
        if value not in known:
            raise PlanError(message(f"there is no {name} {value!r}", where=where, todo=f"choose one of {known}"))
    if round_to != "auto" and (isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1):
        todo = 'pass 8, 64, ..., or "auto"'
        raise PlanError(message(f"round_to={round_to!r} is no whole number from 1", where=where, todo=todo))
    for stays in floor.values() if isinstance(floor, Mapping) else (floor,):
        share = isinstance(stays, float) and 0 <= stays < 1
        count = isinstance(stays, int) and not isinstance(stays, bool) and stays >= 0
        if not share and not count:
            todo = "pass a count as an int, or a share below 1 as a float"
            raise PlanError(message(f"floor={stays!r} is neither a count nor a share", where=where, todo=todo))
    if isinstance(most, bool) or not isinstance(most, (int, float)) or not 0 < most <= 1:
        raise PlanError(message(f"most={most!r} is no share", where=where, todo="pass 0.5 to cut half at most"))


def _check_floor(graph: Graph, floor: Floor) -> None:
    known = {group.kind for group in graph.groups}
    for kind in floor if isinstance(floor, Mapping) else ():
        if kind not in known:
            todo = f"it has {', '.join(sorted(known))}"
            raise PlanError(message(f"the model has no groups of kind {kind!r}", where="floor=", todo=todo))


def _texts(value: Collection[str]) -> Collection[str]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, Collection) or not all(isinstance(text, str) for text in texts):
        raise PlanError(message(f"expected names or patterns, not {value!r}", where="plan(...)", todo="pass strings"))
    return texts


def _check_model(graph: Graph, model: nn.Module) -> None:
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    for tensor in graph.parameters():
        for name in tensor.aliases:
            if shapes.get(name) != tensor.shape:
                has = f"has shape {shapes[name]}" if name in shapes else "is missing"
                raise PlanError(
                    message(
                        f"{name} of this {type(model).__name__} {has}; the graph was traced with {tensor.shape}",
                        todo="pass the model that was traced",
                    )
                )


def _fields(chosen: Saliency) -> dict[str, Any]:
    return dataclasses.asdict(chosen) if dataclasses.is_dataclass(chosen) else {}


# -- what stands in the way -----------------------------------------------------------------------------------


def _check_reached(graph: Graph, spender: Spender, ratio: float, unit: str, refused: Mapping[str, list[Group]]) -> None:
    total, what = spender.budget.total, {"params": "parameters", "flops": "operations"}.get(unit, "milliseconds")
    steps = spender.open()
    if spender.saved == 0 and steps:
        least = min(spender.saving(*s) for s in steps) / total
        raise PlanError(
            message(
                f"a ratio of {ratio:g} is less than half of the smallest step, which saves {least:.3g} of the {what}",
                todo=f"ask for at least {least:.3g}" + (", or a smaller round_to" if spender.rounding else ""),
            )
        )
    missing = ratio * total - spender.saved
    if steps or (spender.saved > 0 and missing <= spender.cheapest() / 2):  # rounding
        return
    nothing = not spender.units or spender.saved == 0
    largest = spender.saved / total
    said = (
        "nothing can be cut"
        if nothing
        else f"a ratio of {ratio:g} is out of reach: at most {largest:.4f} of the {what}"
    )
    reasons = [f"{text}: {_listed(groups)}" for text, groups in refused.items() if groups]
    if spender.units:
        reasons.append("what is admitted stops at its floor (floor=, most=)")
        if spender.rounding:
            reasons.append("dims stop where no smaller multiple is left (round_to=)")
    reasons += [f"pinned: {reason} ({count} times)" for reason, count in _main_pins(graph)]
    reasons.append(f"exact and compensated groups reach {graph.coverage:.2f} of the parameters")
    todo = (
        "see graph.pins for all reasons"
        if nothing
        else f"ask for at most {math.floor(largest * 1e4) / 1e4:g}, or relax one of the above"
    )
    raise PlanError(message(said, where="\n         ".join(reasons), todo=todo))


def _listed(groups: Sequence[Group], shown: int = 3) -> str:
    kinds = sorted({g.kind for g in groups})
    names = ", ".join(g.name for g in groups[:shown]) + (", ..." if len(groups) > shown else "")
    return f"{len(groups)} groups of {'/'.join(kinds)} ({names})"


def _main_pins(graph: Graph, shown: int = 5) -> list[tuple[str, int]]:
    counts: dict[str, int] = {}
    for pin in graph.pins:
        counts[pin.reason] = counts.get(pin.reason, 0) + 1
    return sorted(counts.items(), key=lambda item: -item[1])[:shown]
