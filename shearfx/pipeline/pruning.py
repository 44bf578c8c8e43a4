"""What goes: knowledge analysis, then a choice at once or LHSPG.

Source: LoRAShear, Algorithms 3 and 4.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from shearfx.achieved import achieved_in
from shearfx.architectures import shapes
from shearfx.attributes import settle
from shearfx.knowledge import prunable
from shearfx.low_rank import LowRank
from shearfx.optim.at_pick import saliency_at_pick
from shearfx.optim.choosing import Chooser, Redundant
from shearfx.optim.options import check_scores
from shearfx.pipeline.account import account_of
from shearfx.pipeline.emptying import Emptying
from shearfx.pipeline.progressive import prune_progressively
from shearfx.pipeline.scoring import Scoring
from shearfx.pipeline.study import Study
from shearfx.pipeline.subject import Subject
from shearfx.pruning_plan import PruningPlan, fingerprint, of_cuts
from shearfx.refitting import Refitting
from shearfx.run_directory import ACCOUNT, PLAN, RunDirectory
from shearfx.saliency import Scores
from shearfx.selection import Tied
from shearfx.training.state_files import read_state, write_state


@dataclass(frozen=True)
class Faded:
    """What to cut from after progressive pruning."""

    model: nn.Module | None
    """The weights, where LHSPG changed them; None: those of the full model."""
    learnt: dict[str, LowRank]
    """What adapters learnt beside them."""


class Pruning:
    """Makes the plan of a run.

    Args:
        subject: the full model.
        study: the data.
        folder: of the run.
        spare: bytes that training takes beside the weights, so that as much may be taken here too.

    Raises:
        PlanError: scores are to be calibrated that are no losses.
    """

    def __init__(self, subject: Subject, study: Study, folder: RunDirectory, spare: Callable[[], int]) -> None:
        self.subject, self.study, self.folder, self.spare = subject, study, folder, spare
        self.config, self.teller = study.config, study.teller
        self._faded: Faded | None = None
        self.scoring = Scoring(subject, study, folder, spare)
        self._emptying = Emptying(subject, study, folder, self.lost_by_share)

    def plan(self, steps: int) -> PruningPlan:
        """The plan, made or read.

        Args:
            steps: optimiser steps of LHSPG, where it is asked for.
        """
        if self.folder.done("prune"):
            return PruningPlan.from_json((self.folder.path / PLAN).read_text(encoding="utf-8"))
        config, tied = self.config, self._tied()
        plan = self._at_once(tied) if config.prune_share == 0 else self._progressively(tied, steps)
        whole, here = self.subject.full.count.total, self.subject.count.total
        if self.subject.without:
            full = fingerprint(shapes(self.subject.full.held.shape))
            share = 1 - here / whole
            plan = dataclasses.replace(plan, layers=tuple(self.subject.without), full=full, layers_share=share)
        self.folder.write(PLAN, plan.to_json())
        left = {g.name for one in tied for g in one.groups}
        unprunable = [one for one in self.subject.tied if one.groups[0].name not in left]
        account = account_of(self.subject.graph, self.subject.tied, self.subject.refused, unprunable)
        self.folder.write(ACCOUNT, json.dumps(account, indent=1) + "\n")
        cuts: dict[str, list[int]] = {}
        for cut in plan.cuts:
            row = cuts.setdefault(cut.kind, [0, 0])
            row[0] += cut.size - len(cut.kept)
            row[1] += cut.size
        self.folder.finish(
            "prune", {"asked": plan.asked, "achieved": plan.achieved, "unit": config.counts, "cuts": cuts}
        )
        shown = ", ".join(f"{gone:,} of {size:,} {kind}" for kind, (gone, size) in cuts.items())
        self.teller.note(f"cut: {shown}: {plan.removed:.2%} of the parameters")
        return plan

    def faded(self, steps: int) -> Faded | None:
        """What LHSPG left to cut from; None where structures go at once. After a stop it is found again."""
        if self.config.prune_share and self._faded is None:
            self._progressive(self._tied(), steps)
        return self._faded

    def forget(self) -> None:
        """Give back what is needed for the cut only; :meth:`faded` finds what progressive pruning left again."""
        self._faded = None
        for place in (self._fits, self._cuts):
            shutil.rmtree(place, ignore_errors=True)

    def fits(self) -> dict[str, Tensor]:
        """What the layers that read what goes get for it, by path, as cut: their weights, where these are refitted."""
        found: dict[str, Tensor] = read_state(self._fits) if self.config.compensation == "least_squares" else {}
        return found

    def biases(self) -> dict[str, Tensor]:
        """The same where they get biases."""
        found: dict[str, Tensor] = read_state(self._fits) if self.config.compensation == "bias" else {}
        return found

    @property
    def _fits(self) -> Path:
        return self.folder.path / "state" / "fits"

    @property
    def _cuts(self) -> Path:
        """What several cuts left, but for the last."""
        return self.folder.path / "state" / "cuts"

    def _at_once(self, tied: list[Tied]) -> PruningPlan:
        """Without training: in one cut, or in several, each scored and fitted on what the one before left."""
        config, subject, scoring = self.config, self.subject, self.scoring
        chooser, work = subject.chooser(tied), subject.held.work
        emptied = self._emptying.gone(tied)
        with Refitting(subject.graph, work, chooser.groups) as refitting:
            done, gone, plan = self._cut_before(refitting, emptied)
            for cut in range(done + 1, config.cuts + 1):
                of = f" ({cut} of {config.cuts})" if config.cuts > 1 else ""
                scores = scoring.after(cut, chooser.groups, of, whole=not emptied)
                check_scores(scores, gone)
                before = gone
                gone, saved = chooser.choose(subject.amount * cut / config.cuts, scores, scoring.ranking, before)
                self._tell_cut(cut, chooser, scores, gone, before, saved)
                plan = self.plan_of(gone)
                self._shut(refitting, plan, of)
                if cut < config.cuts:
                    write_state(self._cuts, {"cut": cut, "gone": gone, "changed": refitting.state_dict()})
            if config.compensation != "none":
                found = refitting.biases(plan) if config.compensation == "bias" else refitting.fits(plan)
                write_state(self._fits, found)
        return self._settled(plan)

    def lost_by_share(self, shares: Sequence[float], loss: Callable[[], float]) -> list[float]:
        """The loss after each share of the budget is cut at once, compensated for as the run's own cuts are, and scored
        on what the one before left where the run takes several; the model is what it was afterwards.

        Args:
            shares: of :attr:`Subject.amount`, ascending.
            loss: of the working model as it is.
        """
        subject, scoring = self.subject, self.scoring
        chooser, gone, found = subject.chooser(subject.tied), Redundant(), []
        with Refitting(subject.graph, subject.held.work, chooser.groups) as refitting:
            for number, share in enumerate(shares, start=1):
                of = f" (without layers, {number} of {len(shares)})"
                scores = scoring.after(min(number, self.config.cuts), chooser.groups, of)
                gone, _ = chooser.choose(share * subject.amount, scores, scoring.ranking, gone)
                self._shut(refitting, self.plan_of(gone), of)
                found.append(loss())
        return found

    def _shut(self, refitting: Refitting, plan: PruningPlan, of: str) -> None:
        """As after the cut, with the compensation that the run asks for."""
        if self.config.compensation == "none":
            refitting.apply(plan, None, _call)
        elif self.config.compensation == "bias":
            with self.teller.step(f"giving what reads them a bias{of}"):
                refitting.shift(plan, self.scoring.fitting, _call)
        else:
            with self.teller.step(f"refitting what reads them by least squares{of}"):
                refitting.apply(plan, self.scoring.fitting, _call, memory=self.spare() // 2)

    def _cut_before(self, refitting: Refitting, emptied: Redundant) -> tuple[int, Redundant, PruningPlan]:
        """Where a run that was stopped among its cuts goes on: how many are done, and what is gone. Before the first
        one that is what was emptied."""
        if not self._cuts.exists():
            plan = self.plan_of(emptied)
            if emptied:
                self.scoring.prepare()
                self._shut(refitting, plan, " (branches)")
            return 0, emptied, plan
        self.scoring.prepare()
        state = read_state(self._cuts)
        gone = {name: list(indices) for name, indices in state["gone"].items()}
        plan = self.plan_of(gone)
        refitting.load_state_dict(state["changed"], plan)
        return int(state["cut"]), gone, plan

    def _tell_cut(
        self, cut: int, chooser: Chooser, scores: Scores, gone: Redundant, before: Redundant, saved: int
    ) -> None:
        new = {name: sorted(set(indices) - set(before.get(name, ()))) for name, indices in gone.items()}
        seen = saliency_at_pick(chooser.groups, scores, new, before)
        self.folder.log("cut", cut=cut, picked=sum(map(len, new.values())), saved=saved, saliency=seen)

    def _progressively(self, tied: list[Tied], steps: int) -> PruningPlan:
        return self._settled(self.plan_of(self._progressive(tied, steps)))

    def _tied(self) -> list[Tied]:
        """What may be cut after knowledge analysis."""
        config = self.config
        if config.gamma is None and config.knowledge is None:
            return self.subject.tied
        if not self.folder.done("knowledge"):
            names = self.scoring.unprunable()
            self.subject.check_ratio(names)
            self.folder.finish("knowledge", {"unprunable": names})
            self.teller.note(f"unprunable: {', '.join(names) or 'nothing'}")
        return prunable(self.subject.tied, self.folder.records["knowledge"]["unprunable"])

    def _settled(self, plan: PruningPlan) -> PruningPlan:
        """With the attributes that the model's class needs for it."""
        with self.teller.step("solving for the class's attributes"):
            changed = self._faded.model if self._faded is not None else None
            return settle(self.subject.held.shape if changed is None else changed, self.subject.graph, plan)

    def plan_of(self, redundant: Redundant) -> PruningPlan:
        """The plan that removes what is redundant."""
        graph, config = self.subject.graph, self.config
        sizes = {g.name: g.size for g in graph.groups}
        kept = {}
        for name, gone in redundant.items():
            out = set(gone)
            kept[name] = [i for i in range(sizes[name]) if i not in out]
        options = {"saliency": config.saliency, "ratio": self.subject.ratio, "unit": config.counts, "of": config.of,
                   "recipe": config.recipe}  # fmt: skip
        plan = of_cuts(graph, kept, asked=self.subject.amount / max(self.subject.total, 1), options=options)
        return achieved_in(plan, graph, self.subject.unit)

    def _progressive(self, tied: list[Tied], steps: int) -> Redundant:
        """LHSPG; what adapters learnt is kept for the cut."""
        self.scoring.check(tied)
        mutates = self.config.carrier == "weights" or self.config.merge == "period"
        held = self.subject.held
        model = held.take_work() if mutates else held.work
        found = prune_progressively(self.study, self.subject, model, tied, steps, self.folder, self.spare() // 2)
        self._faded = Faded(model if mutates else None, found.learnt)
        if found.stand_ins is not None:
            write_state(self._fits, found.stand_ins.fits(self.plan_of(found.redundant)))
        return found.redundant


def _call(model: nn.Module, ids: Tensor) -> Any:
    return model(input_ids=ids, use_cache=False)
