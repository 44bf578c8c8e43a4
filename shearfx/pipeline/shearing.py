"""LoRAShear from end to end: analyse, prune, cut, recover. Every stage is recorded and can be resumed.

Source: LoRAShear, Algorithm 1.
"""

from __future__ import annotations

import copy
import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from shearfx.analysis import trace
from shearfx.attributes import settle
from shearfx.budget import open_sizes, operation_budget
from shearfx.checkpoints import load, save
from shearfx.compensation import compensate_cut
from shearfx.config import ShearConfig
from shearfx.construction import construct, remember
from shearfx.errors import PlanError, TrainingError, message
from shearfx.evaluation import parameter_count
from shearfx.graph import Graph
from shearfx.inference import device_of
from shearfx.knowledge import check_possible, knowledge_distribution, prunable
from shearfx.low_rank import LowRank
from shearfx.models import LoadedModel, load_model
from shearfx.optim.choosing import Chooser, Redundant
from shearfx.pipeline.progressive import prune_progressively
from shearfx.pipeline.study import Study, floating
from shearfx.pipeline.tellers import Silent
from shearfx.pipeline.tellers import Teller as Told
from shearfx.pruning_plan import PruningPlan, masks_of, of_cuts
from shearfx.run_directory import RunDirectory
from shearfx.saliency import find
from shearfx.selection import Selection, Tied, select
from shearfx.speed import alternating
from shearfx.training.losses import Teacher
from shearfx.training.merging import merge_into

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Sheared:
    """What a run gave."""

    model: nn.Module
    """The smaller model, recovered, in its own class and dtype."""
    plan: PruningPlan
    record: dict[str, Any]
    """What every stage found: ``dense``, ``knowledge``, ``prune``, ``cut``, ``recover``."""
    path: Path
    """The run's folder; the model lies in ``model``."""


def shear(
    model: nn.Module | str | LoadedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    out: str | Path,
    resume: bool = False,
    teller: Told | None = None,
    config: ShearConfig | None = None,
    **options: Any,
) -> Sheared:
    """Make a language model smaller by LoRAShear, and teach it again what it lost.

    Args:
        model: a causal language model, or what :func:`shearfx.models.load_model` takes.
        tokenizer: for a model that is passed as such.
        out: the run's folder (see :class:`shearfx.run_directory.RunDirectory`).
        resume: go on with a run that was cut off.
        teller: told how it goes.
        config: all options; or by name: ``options`` are the fields of :class:`shearfx.config.ShearConfig`.

    Raises:
        ShearError: anything about model, data or options that stands against it, before training where it can be known.
    """
    chosen = ShearConfig.of_mapping(options) if config is None else config
    chosen.check()
    if isinstance(model, nn.Module):
        from shearfx.example_inputs import example_inputs, kind_of

        kwargs = example_inputs(model, device_of(model))
        model = LoadedModel(model, type(model).__name__, kind_of(model), kwargs=kwargs, tokenizer=tokenizer)
    elif isinstance(model, str):
        model = load_model(model)
    run = RunDirectory(Path(out).expanduser(), model.source, chosen, resume=resume)
    return Shearing(model, chosen, run, teller or Silent()).run()


class Shearing:
    """One run: the stages, and what they share. ``known`` is what an earlier run found out about the same model."""

    def __init__(
        self,
        loaded: LoadedModel,
        config: ShearConfig,
        run: RunDirectory,
        teller: Told,
        known: tuple[Graph, list[Tied]] | None = None,
    ) -> None:
        if loaded.kind != "causal-lm":
            what = f"{type(loaded.module).__name__} is no causal language model, and shear trains by the next token"
            todo = "use shearfx.plan and shearfx.optim.LHSPG in a training loop of your own"
            raise TrainingError(message(what, where=loaded.source, todo=todo))
        self.config, self.folder, self.teller = config, run, teller
        self.model = loaded.module.eval()
        self.arguments = (loaded.args, loaded.kwargs)
        self.study = Study(self.model, loaded.tokenizer, config, teller)
        self._work: nn.Module | None = None
        self._faded: tuple[nn.Module, dict[str, LowRank]] | None = None
        """After progressive pruning: the weights to cut from, and what adapters learnt beside them."""
        self._graph: Graph | None = known[0] if known else None
        self._tied: list[Tied] | None = known[1] if known else None

    # -- what stages share -----------------------------------------------------------------------------

    @property
    def work(self) -> nn.Module:
        """The full model as it is trained and taught by: on the device, in the training dtype."""
        if self._work is None:
            self._work = self.study.working_copy(self.model)
        return self._work

    @property
    def graph(self) -> Graph:
        """The analysis of the full model."""
        if self._graph is None:
            with self.teller.step("tracing and analysing"):
                self._graph = trace(self.model, *self.arguments[0], **self.arguments[1])
                remember(self.model, self._graph)
        return self._graph

    @property
    def tied(self) -> list[Tied]:
        """What may be cut, and what only together."""
        if self._tied is None:
            config, graph = self.config, self.graph
            with self.teller.step("finding out what the model's own class can express"):
                wanted = Selection((), (), config.exclude, config.kinds, (), "global", "module")
                self._tied, refused = select(graph, self.model, wanted)
            if not self._tied:
                reasons = "; ".join(refused) or "the graph has no groups"
                raise PlanError(message("nothing can be cut", where=reasons, todo='see graph.pins, or form="fx"'))
        return self._tied

    @property
    def amount(self) -> int:
        """Parameters to go."""
        count = parameter_count(self.model)
        return round(self.config.ratio * (count.total if self.config.of == "all" else count.without_embeddings))

    def run(self) -> Sheared:
        """All stages that are not done yet, in order."""
        self.study.read()
        self._dense()
        plan = self._prune()
        small = self._cut(plan)
        small = self._recover(small, plan)
        self._weigh(small, plan)
        return Sheared(small, plan, self.folder.records, self.folder.path)

    # -- stages ----------------------------------------------------------------------------------------

    def _dense(self) -> None:
        if not self.folder.done("dense"):
            found = self.study.judge(self.work, "dense")
            self.folder.finish("dense", found | {"dtype": str(self.study.dtype)})

    def _steps(self) -> int:
        """Optimiser steps of the budget; of a wall clock, what fits into the rest of it when training begins."""
        if not self.folder.done("budget"):
            self.folder.finish("budget", {"steps": self.study.steps(self.work, self._teacher())})
        return int(self.folder.records["budget"]["steps"])

    def _knowledge(self) -> list[Tied]:
        config = self.config
        if config.gamma is None:
            return self.tied
        ratio = self.amount / parameter_count(self.model).total
        if self.folder.done("knowledge"):
            return prunable(self.tied, self.folder.records["knowledge"]["unprunable"])
        limits = {"floor": config.floor, "round_to": config.round_to}
        check_possible(self.graph, self.tied, config.gamma, ratio, **limits)  # type: ignore[arg-type]
        with self.teller.step("measuring what each node group knows (Algorithm 3)") as progress:
            found = knowledge_distribution(
                self.graph, self.work, self.study.batches(config.knowledge_windows, config.seed + 1), tied=self.tied,
                saliency="fisher", ratios=config.knowledge_ratios, gamma=config.gamma, seed=config.seed,
                scores=self.scores, cache=self.folder.path / "knowledge.jsonl",
                announce=lambda cost: self.teller.note(str(cost)), progress=progress,
            )  # fmt: skip
        names = list(found.unprunable())
        check_possible(self.graph, self.tied, names, ratio, **limits)  # type: ignore[arg-type]
        self.folder.write("knowledge.json", found.to_json())
        self.folder.finish("knowledge", {"unprunable": names})
        self.teller.note(f"unprunable: {', '.join(names) or 'nothing'}")
        return prunable(self.tied, names)

    @functools.cached_property
    def scores(self) -> dict[str, Tensor]:
        """Of all that may be cut; knowledge analysis and a cut at once go by the same ones."""
        groups = list({g.name: g for t in self.tied for g in t.groups}.values())
        batches = self.study.batches(self.config.scoring_windows, self.config.seed + 2)
        proxy = find(self.config.saliency if self.config.prune_share == 0 else "fisher")
        return proxy.score(self.graph, self.work, groups=groups, data=batches, seed=self.config.seed)

    def _prune(self) -> PruningPlan:
        if self.folder.done("prune"):
            return PruningPlan.from_json((self.folder.path / "plan.json").read_text(encoding="utf-8"))
        tied = self._knowledge()
        config = self.config
        chooser = Chooser(self.graph, tied, floor=config.floor, round_to=config.round_to)
        most = chooser.most_possible()
        if self.amount > most:
            what = f"a ratio of {config.ratio:g} asks for {self.amount:,} parameters, and at most {most:,} can go"
            raise PlanError(message(what, todo="ask for less, a smaller floor, or more kinds"))
        if config.prune_share == 0:
            with self.teller.step(f"scoring structures by {config.saliency}"):
                scores = self.scores
            redundant, _ = chooser.choose(self.amount, scores, find(config.saliency).unit)
        else:
            redundant = self._progressive(tied)
        plan = self._plan_of(redundant)
        self.folder.write("plan.json", plan.to_json())
        cuts: dict[str, list[int]] = {}
        for cut in plan.cuts:
            row = cuts.setdefault(cut.kind, [0, 0])
            row[0] += cut.size - len(cut.kept)
            row[1] += cut.size
        self.folder.finish("prune", {"asked": plan.asked, "achieved": plan.achieved, "cuts": cuts})
        shown = ", ".join(f"{gone:,} of {size:,} {kind}" for kind, (gone, size) in cuts.items())
        self.teller.note(f"cut: {shown}: {plan.achieved:.2%} of the parameters")
        return plan

    def _plan_of(self, redundant: Redundant) -> PruningPlan:
        sizes = {g.name: g.size for g in self.graph.groups}
        kept = {}
        for name, gone in redundant.items():
            out = set(gone)
            kept[name] = [i for i in range(sizes[name]) if i not in out]
        config = self.config
        options = {"saliency": config.saliency, "ratio": config.ratio, "of": config.of, "recipe": config.recipe}
        plan = of_cuts(self.graph, kept, asked=self.amount / max(self.graph.total_params, 1), options=options)
        with self.teller.step("solving for the class's attributes"):
            return settle(self.model, self.graph, plan)

    def _progressive(self, tied: list[Tied]) -> Redundant:
        """LHSPG; what adapters learnt is kept for the cut."""
        steps = max(2, round(self.config.prune_share * self._steps()))
        mutates = self.config.carrier == "weights" or self.config.merge == "period"
        model = copy.deepcopy(self.work) if mutates else self.work
        redundant, learnt = prune_progressively(self.study, self.graph, model, tied, self.amount, steps, self.folder)
        self._faded = (model if mutates else self.model, learnt)
        return redundant

    def _cut(self, plan: PruningPlan) -> nn.Module:
        place = self.folder.path / "cut"
        if self.folder.done("cut"):
            return load(place)
        config = self.config
        if config.prune_share and self._faded is None:  # stopped between the two stages
            self._progressive(self._knowledge())
        source, learnt = self._faded or (self.model, {})
        with self.teller.step("cutting"):
            small = construct(source, plan).to(dtype=floating(self.model), device=device_of(self.model))
            merge_into(small, learnt, plan)
        if self._faded is None and config.compensation:
            with self.teller.step("compensating by least squares"):
                batches = self.study.batches(config.scoring_windows, config.seed + 3)
                compensate_cut(self.graph, self.work, small, plan, batches, _call)
        save(small, plan, place, tokenizer=self.study.tokenizer, overwrite=True)
        found = self.study.judge(self.study.working_copy(small), "cut")
        self.folder.finish("cut", found)
        return small

    def _teacher(self) -> Teacher | None:
        return self.study.teacher_of(self.work) if self.config.distill > 0 else None

    def _recover(self, small: nn.Module, plan: PruningPlan) -> nn.Module:
        place = self.folder.path / "model"
        if self.folder.done("recover"):
            return load(place)
        config, study, records = self.config, self.study, self.folder.records
        total = self._steps()
        steps = total - (round(config.prune_share * total) if config.prune_share else 0)
        state = self.folder.path / "state" / "recover"
        study.recover(small, records["dense"]["losses"], steps, self._teacher(), state, self.folder.log)
        save(small, plan, place, tokenizer=study.tokenizer, overwrite=True)
        found = study.judge(study.working_copy(small), "recovered")
        self.folder.finish("recover", found | {"minutes": (time.monotonic() - study.start) / 60})
        return small

    def _weigh(self, small: nn.Module, plan: PruningPlan) -> None:
        """What the cut saves besides parameters: operations of the traced call, and time."""
        if self.folder.done("speed"):
            return
        budget = operation_budget(self.graph)
        sizes = {atom: int(mask.sum()) for atom, mask in masks_of(self.graph, plan).items()}
        found: dict[str, Any] = {
            "flops": {"dense": budget.total, "recovered": budget.cost(range(len(budget.products)), sizes)},
            "flops_sizes": open_sizes(self.graph),
        }
        if hasattr(self.model, "generate"):
            cut = self.study.working_copy(small).eval()
            with self.teller.step("timing prefill and decode, by turns") as progress:
                before, after = alternating(self.work.eval(), cut, TURNS, progress)
            for what in ("prefill", "decode"):
                both = zip(("dense", "recovered"), (before, after), strict=True)
                found[what] = {name: statistics.median(getattr(s, what) for s in speeds) for name, speeds in both}
            found["timed"] = str(before[0]).partition("(")[2].rstrip(")")
        found["minutes"] = (time.monotonic() - self.study.start) / 60
        self.folder.finish("speed", found)


TURNS = 5
"""Timings of each model, one after the other, so that what else the machine does meets both."""


def _call(model: nn.Module, ids: Tensor) -> Any:
    return model(input_ids=ids, use_cache=False)
