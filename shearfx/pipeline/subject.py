"""The full model of a run, and what is known of it."""

from __future__ import annotations

import copy
import functools
import glob
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig

from shearfx.analysis import trace
from shearfx.architectures import config_of
from shearfx.budget import budget_of
from shearfx.construction import remember
from shearfx.depth import Layer, find_layers
from shearfx.errors import PlanError, message
from shearfx.evaluation import parameter_count
from shearfx.graph import Graph, Group, module_paths
from shearfx.knowledge import check_possible
from shearfx.models import LoadedModel
from shearfx.optim.choosing import Chooser
from shearfx.pipeline.held import weight_bytes
from shearfx.pipeline.kinds import asked, kinds_in
from shearfx.pipeline.out_of_memory import memory_guard
from shearfx.pipeline.study import Study
from shearfx.run_directory import RunDirectory
from shearfx.running_time import FEMTOSECONDS, Currency, RunningTime, amount_text
from shearfx.saliency import find
from shearfx.selection import UNSEEN, Selection, Tied, seen, select
from shearfx.timing import measure_time

Known = tuple[Graph, list[Tied]]


@dataclass(frozen=True)
class Shortened:
    """Where layers went already."""

    full: Subject
    """What the ratio is a share of."""
    paths: Sequence[str]
    """Of the layers that went."""
    exclude: Sequence[str]
    """What the configuration excludes, by the names that its parameters have now."""


class Subject:
    """The model to be cut: its analysis, what may go, and how much.

    Args:
        loaded: the model, with an example call.
        study: of the run.
        reopen: reads the model again, where the run may use it up.
        known: the analysis, from an earlier run with the same model and options.
        shortened: where layers went already.
        records: of the run, for what is measured once.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        study: Study,
        reopen: Callable[[], nn.Module] | None = None,
        known: Known | None = None,
        shortened: Shortened | None = None,
        records: RunDirectory | None = None,
    ) -> None:
        self.study, self.config, self.teller = study, study.config, study.teller
        self.held = study.hold(loaded.module.eval(), reopen)
        self.count = parameter_count(loaded.module)
        self.full = shortened.full if shortened else self
        """What the ratio is a share of."""
        self.without = shortened.paths if shortened else ()
        """The layers that it has more."""
        self._exclude = tuple(map(glob.escape, shortened.exclude)) if shortened else study.config.exclude
        self.bytes = weight_bytes(loaded.module)
        """Of the weights, in their own dtype."""
        self.work_bytes = self.count.total * study.dtype.itemsize
        """Of the weights, in the dtype of training."""
        self.full_config: PreTrainedConfig | None = copy.deepcopy(config_of(loaded.module))
        """Of the full model: one that is read again from where it was cut says what it became."""
        self.generates = hasattr(loaded.module, "generate")
        self._records = records
        self._time: RunningTime | None = None
        self._arguments = (loaded.args, loaded.kwargs)
        self._graph: Graph | None = known[0] if known else None
        self._tied: list[Tied] | None = known[1] if known else None
        self.refused: dict[str, list[Group]] = {}
        """What may not be cut, by reason; known once :attr:`tied` was found out."""

    @property
    def graph(self) -> Graph:
        """The analysis of the full model."""
        if self._graph is None:
            with self.teller.step("tracing and analysing"), memory_guard("tracing", self.config):
                model = self.held.original
                self._graph = trace(model, *self._arguments[0], **self._arguments[1])
                remember(model, self._graph)
        return self._graph

    @property
    def tied(self) -> list[Tied]:
        """What may be cut, and what only together."""
        if self._tied is None:
            config, graph = self.config, self.graph
            doing = "finding out what the model's own class can express"
            with self.teller.step(doing), memory_guard(doing, self.config):
                wanted = Selection(
                    (), (), self._exclude, kinds_in(graph, config, self.teller), (), config.scope, "module"
                )
                tied, self.refused = select(graph, self.held.original, wanted)
                proxy = find(config.saliency)
                self._tied = seen(tied, self.refused, proxy, graph, self.held.original, asked(config))
            reason = UNSEEN.format(proxy.name)
            if reason in self.refused:
                names = [group.name for group in self.refused[reason]]
                self.teller.note(f"stays whole: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}; {reason}")
            if not self._tied:
                reasons = "; ".join(self.refused) or "the graph has no groups"
                raise PlanError(message("nothing can be cut", where=reasons, todo='see graph.pins, or form="fx"'))
        return self._tied

    # -- the budget ------------------------------------------------------------------------------------

    @property
    def unit(self) -> Currency | RunningTime:
        """What the budget counts."""
        counts = self.config.counts
        return self.time if counts == "milliseconds" else counts

    @property
    def time(self) -> RunningTime:
        """What structures and layers take of a run's time; measured once in a run."""
        name = "time" if self.full is self else "time without layers"
        if self._time is None and self._records is not None and self._records.done(name):
            self._time = RunningTime(**self._records.records[name])
        if self._time is None:
            whole = self.full is self and self.config.layers
            layers = [layer.path for layer in find_layers(self.graph).layers] if whole else []
            tied, work = self.tied, self.held.work
            with self.teller.step("measuring what takes how much of the time") as progress:
                found = measure_time(self.graph, work, tied, layers=layers, progress=progress)
            if self.full is not self:
                full = self.full.time
                found = found.of_total(full.total - sum(full.layers[path] for path in self.without))
            self.teller.note(f"before: {found}" if self.full is self else f"without layers: {found}")
            if self._records is not None:
                self._records.finish(name, found.to_record())
            self._time = found
        return self._time

    @functools.cached_property
    def total(self) -> int:
        """Of this model, in the budget's unit."""
        return self.count.total if self.config.counts == "params" else budget_of(self.graph, self.unit, ()).total

    @property
    def ratio(self) -> float:
        """The share of the full model that goes.

        Raises:
            PlanError: the full model is as fast already.
        """
        config, whole = self.config, self.full.total
        if config.milliseconds is None:
            return config.ratio
        asked = round(config.milliseconds * FEMTOSECONDS)
        if asked >= whole:
            what = f"{amount_text(asked, self.unit)} are asked for, and the model takes {amount_text(whole, self.unit)}"
            raise PlanError(message(what, where="milliseconds", todo="ask for less"))
        return 1 - asked / whole

    @property
    def amount(self) -> int:
        """What is still to go, in the budget's unit."""
        whole = self.full.total if self.config.of == "all" else self.full.count.without_embeddings
        return round(self.ratio * whole) - (self.full.total - self.total)

    def price(self, layer: Layer) -> int:
        """What a layer holds, does or takes, in the budget's unit."""
        unit = self.unit
        if isinstance(unit, RunningTime):
            return round(FEMTOSECONDS * unit.layers[layer.path])
        if unit == "params":
            return layer.params
        budget = budget_of(self.graph, unit, ())
        inside = {node.name for node in self.graph.records if layer.path in module_paths(node)}
        return budget.cost(i for i, product in enumerate(budget.products) if product.name in inside)

    def chooser(self, tied: list[Tied]) -> Chooser:
        """Spends the budget on some of what may be cut."""
        config = self.config
        return Chooser(self.graph, tied, unit=self.unit, floor=config.floor, round_to=config.round_to)

    def check_ratio(self, unprunable: list[str] | float | str | None) -> None:
        """Raise PlanError where the ratio cannot be reached.

        Args:
            unprunable: node groups that stay whole, or gamma before they are known.
        """
        config, unit = self.config, self.unit
        most = self.chooser(self.tied).most_possible()
        if self.amount > most:
            before = self.full.total - self.total
            asked, possible = self.amount + before, most + before
            share = int(1e4 * possible * self.ratio / asked) / 1e4
            what = f"a ratio of {self.ratio:g} asks for {amount_text(asked, unit)}, and at most "
            what += f"{amount_text(possible, unit)} can go"
            most_of = f"at most {share:g}"
            if config.milliseconds is not None:
                most_of = f"{math.ceil(10 * (1 - share) * self.full.time.total) / 10:g} ms or more"
            todo = f"ask for {most_of}, or set a smaller floor, or more kinds (now: {', '.join(config.kinds)})"
            raise PlanError(message(what, where="ratio", todo=todo))
        check_possible(self.graph, self.tied, unprunable, self.amount / self.total, unit=unit, floor=config.floor,
                       round_to=config.round_to)  # fmt: skip
