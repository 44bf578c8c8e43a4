"""``shearfx.measure_time``: what each kind of structure and each layer takes of a model's time, on this machine."""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from shearfx.budget import open_sizes, parameter_budget
from shearfx.construction import construct, construct_graph, example_call
from shearfx.dims import Atom
from shearfx.errors import PlanError, message
from shearfx.graph import Graph, mentions
from shearfx.inference import device_of, dtype_name, evaluating
from shearfx.pruning_plan import PruningPlan, of_cuts
from shearfx.running_time import RunningTime
from shearfx.selection import Selection, Tied, select
from shearfx.settling import settle_most
from shearfx.speed import generation_speed, lengths
from shearfx.spending import unit_of

Run = Callable[[nn.Module], float]
"""Runs a model once and says how many milliseconds that took."""


def measure_time(
    graph: Graph,
    model: nn.Module,
    tied: Sequence[Tied] | None = None,
    *,
    layers: Collection[str] = (),
    form: Literal["module", "fx"] = "module",
    run: Run | None = None,
    rounds: int = 5,
    progress: Callable[[int, int], None] | None = None,
) -> RunningTime:
    """Measure what cutting saves of a model's time, so that plans can be made in milliseconds.

    For each kind of groups a model without half of their structures is built and timed by turns with the full one. What
    they save, as medians over turns, is laid on the parameters that are cut. Shapes for which a machine is fast or slow
    are thus accounted for at the half, and between it and the whole by a line.

    Args:
        graph: the analysis of the model.
        model: with its weights, on the device and in the dtype that matter. Left as it was.
        tied: what may be cut (see :func:`shearfx.selection.select`); by default what a plan cuts by default.
        layers: paths of layers; the time that passes inside of them is measured too.
        form: ``"module"``, or ``"fx"`` where the original class cannot express the cuts; the full model runs as a
            graph then, too.
        run: what is timed; by default the generation of 24 tokens after 128 of a prompt, for a model that does not
            generate, as graphs do not, the traced call.
        rounds: turns, at least 1.
        progress: called with the timings done and in all.

    Returns:
        Milliseconds; pass it as ``unit=`` of :func:`shearfx.plan` or :class:`shearfx.optim.LHSPG`.

    Raises:
        PlanError: there are no rounds; layers are to be timed of a graph, which has none; or the original class holds
            each cut, but not together, and nothing that it consists of is the cause.
    """
    if rounds < 1:
        raise PlanError(message(f"rounds={rounds} are no measurement", where="measure_time", todo="pass at least 1"))
    if layers and form == "fx":
        raise PlanError(
            message("a graph has no layers to time", where="measure_time", todo='leave out layers, or form="fx"')
        )
    if tied is None:
        tied = select(graph, model, Selection(form=form))[0]
    of_kind: dict[str, list[Tied]] = {}
    for one in tied:
        of_kind.setdefault(one.kind, []).append(one)
    whole = model if form == "module" else construct_graph(model, of_cuts(graph, {}), graph)
    run, what = (run, "as given") if run is not None else usual_run(graph, whole)
    watch = _Watch(model, layers)
    found: list[_Half] = []
    totals: list[float] = []
    done, timings = 0, rounds * (max(1, len(of_kind)) + bool(watch.inside))

    def tell() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, timings)

    for some in of_kind.values() or ([],):
        half, full = _without_half(graph, model, whole, some, form, run, rounds, tell)
        found.append(half)
        totals += full
    total = statistics.median(totals)
    inside = watch.inside_of(total, run, rounds, tell) if watch.inside else {}
    on = f"{dtype_name(model)}, {device_of(model)}, {torch.get_num_threads()} threads"
    return RunningTime(total, _rates(graph, tied, found), inside, f"{what}, median of {len(totals)}, {on}")


def usual_run(graph: Graph, model: nn.Module) -> tuple[Run, str]:
    """What :func:`measure_time` times where it is not told: a generation, or the traced call; and its name."""
    if hasattr(model, "generate"):
        prompt, new = lengths([model])

        def generate(model: nn.Module) -> float:
            return generation_speed(model, prompt_tokens=prompt, new_tokens=new, repeats=1, warm_up=False).milliseconds

        return generate, f"a prompt of {prompt} and {new} new tokens"
    call = example_call(model, of_cuts(graph, {}), open_sizes(graph))
    if isinstance(model, fx.GraphModule):  # what is no tensor was traced in
        call = {name: value for name, value in call.items() if isinstance(value, Tensor)}

    def forward(model: nn.Module) -> float:
        start = _now(model)
        model(**call)
        return 1e3 * (_now(model) - start)

    return forward, "the traced call"


def halves(graph: Graph, tied: Sequence[Tied]) -> PruningPlan:
    """Of each group, the first half of what can go stays or more: which structures do not matter to the time."""
    kept: dict[str, list[int]] = {}
    for one in tied:
        floors = {g.name: max(1, g.size // 2) for g in one.groups}
        zeros = {g.name: torch.zeros(g.size, dtype=torch.float64) for g in one.groups}
        unit = unit_of(one.groups, one.weights, floors, zeros, dict.fromkeys(floors, ()))
        unit.gone = unit.limit
        kept |= unit.kept() if unit.gone else {}
    return of_cuts(graph, kept)


@dataclass(frozen=True)
class _Half:
    """What was found of a model without half of the structures of a kind."""

    sizes: dict[Atom, int]
    saved: float
    """Milliseconds."""


def _without_half(
    graph: Graph,
    model: nn.Module,
    whole: nn.Module,
    tied: Sequence[Tied],
    form: Literal["module", "fx"],
    run: Run,
    rounds: int,
    tell: Callable[[], None],
) -> tuple[_Half, list[float]]:
    """What half of the structures of a kind take, and the milliseconds of the full model's turns."""
    small, plan = _smaller(graph, model, tied, form) if tied else (whole, of_cuts(graph, {}))
    with evaluating(small), evaluating(whole):
        run(small)  # the first run warms up
        run(whole)
        full, saved = [], []
        for _ in range(rounds):
            full.append(run(whole))
            saved.append(full[-1] - run(small))
            tell()
    left = {cut.name: len(cut.kept) for cut in plan.cuts}
    sizes = {g.atom: left.get(g.name, g.size) for one in tied for g in one.groups}
    return _Half(sizes, statistics.median(saved)), full


def _smaller(
    graph: Graph, model: nn.Module, tied: Sequence[Tied], form: Literal["module", "fx"]
) -> tuple[nn.Module, PruningPlan]:
    if form == "fx":
        plan = halves(graph, tied)
        return construct_graph(model, plan, graph), plan
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="left whole")  # the rest of a kind speaks for it
        plan = settle_most(model, graph, tied, functools.partial(halves, graph), {})
    return construct(model, plan), plan


def _rates(graph: Graph, tied: Sequence[Tied], found: Sequence[_Half]) -> dict[str, float]:
    """Milliseconds for each number of each parameter.

    Parameters that are cut by the same kinds share a rate; the rates are those, none below zero, that explain best what
    the halves saved, and among several that do those nearest to one rate for all.
    """
    budget = parameter_budget(graph)
    kinds = {group.atom: one.kind for one in tied for group in one.groups}
    classes: dict[frozenset[str], list[int]] = {}
    for i, product in enumerate(budget.products):
        cut_by = frozenset(kinds[atom] for atom in mentions(product.dims) if atom in kinds)
        if cut_by:
            classes.setdefault(cut_by, []).append(i)
    less = [[budget.cost(some) - budget.cost(some, half.sizes) for some in classes.values()] for half in found]
    rates = explained(torch.tensor(less, dtype=torch.float64), torch.tensor([half.saved for half in found]).double())
    named = zip(classes.values(), rates.tolist(), strict=True)
    return {budget.products[i].name: rate for some, rate in named if rate > 0 for i in some}


def explained(amounts: Tensor, totals: Tensor) -> Tensor:
    """The rates ``r`` of at least zero with ``amounts @ r`` nearest to ``totals``, and otherwise near to each other.

    Args:
        amounts: float64 ``[sums, things]``, at least zero.
        totals: float64 ``[sums]``.

    >>> explained(torch.tensor([[2.0, 1.0], [0.0, 3.0]]).double(), torch.tensor([7.0, 3.0]).double()).round()
    tensor([3., 1.], dtype=torch.float64)
    """
    rates = torch.zeros(amounts.shape[1], dtype=torch.float64)
    near = max(0.0, float(totals.sum())) / max(float(amounts.sum()), 1e-300)
    free = list(range(amounts.shape[1]))
    while free:
        some = amounts[:, free]
        solved = near + torch.linalg.pinv(some) @ (totals - near * some.sum(1))
        if bool((solved > 1e-9 * solved.abs().max()).all()):
            rates[free] = solved
            break
        del free[int(solved.argmin())]
    return rates


def _now(model: nn.Module) -> float:
    device = device_of(model)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class _Watch:
    """Adds up the time that passes inside of layers."""

    def __init__(self, model: nn.Module, layers: Collection[str]) -> None:
        self.model = model
        self.inside = dict.fromkeys(layers, 0.0)
        self._begun: dict[str, float] = {}

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """For the while, layers are timed."""
        hooks = []
        for path in self.inside:
            module = self.model.get_submodule(path)
            hooks.append(module.register_forward_pre_hook(self._enter(path)))
            hooks.append(module.register_forward_hook(self._leave(path)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def inside_of(self, total: float, run: Run, rounds: int, tell: Callable[[], None]) -> dict[str, float]:
        """Of a run's milliseconds, what passes in each layer.

        Measured in runs of their own, for the share: to look at the clock waits for the device, which costs time.
        """
        watched = 0.0
        with evaluating(self.model), self.watching():
            for _ in range(rounds):
                watched += run(self.model)
                tell()
        return {path: 1e3 * seconds / watched * total for path, seconds in self.inside.items()}

    def _enter(self, path: str) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            self._begun[path] = _now(self.model)

        return enter

    def _leave(self, path: str) -> Callable[..., None]:
        def leave(*_: Any) -> None:
            self.inside[path] += _now(self.model) - self._begun[path]

        return leave
