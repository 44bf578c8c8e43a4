"""The full model of a run, and what is known of it."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn
from transformers import PreTrainedConfig

from shearfx.analysis import trace
from shearfx.architectures import config_of
from shearfx.construction import remember
from shearfx.errors import PlanError, message
from shearfx.evaluation import ParameterCount, parameter_count
from shearfx.graph import Graph, Group
from shearfx.knowledge import check_possible
from shearfx.models import LoadedModel
from shearfx.optim.choosing import Chooser
from shearfx.pipeline.held import weight_bytes
from shearfx.pipeline.study import Study
from shearfx.selection import Selection, Tied, select

Known = tuple[Graph, list[Tied]]


class Subject:
    """The model to be cut: its analysis, what may go, and how much.

    Args:
        loaded: the model, with an example call.
        study: of the run.
        reopen: reads the model again, where the run may use it up.
        known: the analysis, from an earlier run with the same model and options.
        before: what the ratio is a share of, where layers went already.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        study: Study,
        reopen: Callable[[], nn.Module] | None = None,
        known: Known | None = None,
        before: ParameterCount | None = None,
    ) -> None:
        self.study, self.config, self.teller = study, study.config, study.teller
        self.held = study.hold(loaded.module.eval(), reopen)
        self.count = parameter_count(loaded.module)
        self.before = before or self.count
        self.bytes = weight_bytes(loaded.module)
        """Of the weights, in their own dtype."""
        self.work_bytes = self.count.total * study.dtype.itemsize
        """Of the weights, in the dtype of training."""
        self.full_config: PreTrainedConfig | None = copy.deepcopy(config_of(loaded.module))
        """Of the full model: one that is read again from where it was cut says what it became."""
        self.generates = hasattr(loaded.module, "generate")
        self._arguments = (loaded.args, loaded.kwargs)
        self._graph: Graph | None = known[0] if known else None
        self._tied: list[Tied] | None = known[1] if known else None
        self.refused: dict[str, list[Group]] = {}
        """What may not be cut, by reason; known once :attr:`tied` was found out."""

    @property
    def graph(self) -> Graph:
        """The analysis of the full model."""
        if self._graph is None:
            with self.teller.step("tracing and analysing"):
                model = self.held.original
                self._graph = trace(model, *self._arguments[0], **self._arguments[1])
                remember(model, self._graph)
        return self._graph

    @property
    def tied(self) -> list[Tied]:
        """What may be cut, and what only together."""
        if self._tied is None:
            config, graph = self.config, self.graph
            with self.teller.step("finding out what the model's own class can express"):
                wanted = Selection((), (), config.exclude, config.kinds, (), config.scope, "module")
                self._tied, self.refused = select(graph, self.held.original, wanted)
            if not self._tied:
                reasons = "; ".join(self.refused) or "the graph has no groups"
                raise PlanError(message("nothing can be cut", where=reasons, todo='see graph.pins, or form="fx"'))
        return self._tied

    @property
    def amount(self) -> int:
        """Parameters that are still to go."""
        before = self.before
        whole = before.total if self.config.of == "all" else before.without_embeddings
        return round(self.config.ratio * whole) - (before.total - self.count.total)

    def chooser(self, tied: list[Tied]) -> Chooser:
        """Spends the budget on some of what may be cut."""
        return Chooser(self.graph, tied, floor=self.config.floor, round_to=self.config.round_to)

    def check_ratio(self, unprunable: list[str] | float | str | None) -> None:
        """Raise PlanError where the ratio cannot be reached.

        Args:
            unprunable: node groups that stay whole, or gamma before they are known.
        """
        config, whole = self.config, self.count.total
        most = self.chooser(self.tied).most_possible()
        if self.amount > most:
            before = self.before.total - whole
            asked, possible = self.amount + before, most + before
            share = int(1e4 * possible * config.ratio / asked) / 1e4
            what = f"a ratio of {config.ratio:g} asks for {asked:,} parameters, and at most {possible:,} can go"
            todo = f"ask for at most {share:g}, or set a smaller floor, or more kinds (now: {', '.join(config.kinds)})"
            raise PlanError(message(what, where="ratio", todo=todo))
        check_possible(self.graph, self.tied, unprunable, self.amount / whole, floor=config.floor,
                       round_to=config.round_to)  # fmt: skip
