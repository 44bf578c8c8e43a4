"""What structures are worth in a run: by a saliency, and by knowledge analysis where that is asked."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from shearfx.errors import PlanError, message
from shearfx.graph import Group
from shearfx.knowledge import KnowledgeDistribution, factors, knowledge_distribution, of_file
from shearfx.optim.options import check_scores
from shearfx.pipeline.scoring_data import ScoringData, call_loss
from shearfx.pipeline.study import Study
from shearfx.pipeline.subject import Subject
from shearfx.run_directory import KNOWLEDGE, MEASURED, RunDirectory
from shearfx.saliency import Saliency, Scores, find
from shearfx.saliency.learnt import reads_adapters
from shearfx.saliency.loraprune import LoraPrune
from shearfx.selection import Tied
from shearfx.spending import Ranking


def reads_training(saliency: Saliency) -> bool:
    """Whether a saliency is made of what adapters hold, or of their gradients, in training."""
    return saliency.name == LoraPrune.name or reads_adapters(saliency)


class Scoring:
    """Scores what may be cut.

    Args:
        subject: the model.
        study: the data.
        folder: of the run.
        spare: bytes that training takes beside the weights, so that as much may be taken here too.

    Raises:
        PlanError: scores are to be calibrated that are no losses, or made of training that there is none of.
    """

    def __init__(self, subject: Subject, study: Study, folder: RunDirectory, spare: Callable[[], int]) -> None:
        self.subject, self.study, self.folder, self.spare = subject, study, folder, spare
        self.config, self.teller = study.config, study.teller
        self.proxy: Saliency = find(self.config.saliency if self.config.prune_share == 0 else "fisher")
        if self.config.prune_share == 0 and reads_training(self.proxy):
            what = f"{self.proxy.name} reads what adapters learn, and none are trained before a cut at once"
            todo = "set prune_share, as of 0.5, or choose another saliency, such as fisher"
            raise PlanError(message(what, where="saliency", todo=todo))
        if self.config.knowledge is not None and not folder.done("knowledge"):
            _ = self._knowledge  # a file that cannot be read is known before anything is done
        if self.config.calibrate != "none" and self.ranking != "loss":
            what = f"the scores of {self.config.saliency} are no losses that measured ones could be laid beside"
            raise PlanError(message(what, where="calibrate", todo="set calibrate: none, or saliency: fisher"))

    @property
    def ranking(self) -> Ranking:
        """The unit of scores."""
        return self.proxy.unit

    @property
    def whole(self) -> dict[str, Tensor]:
        """Of all that may be cut, while the model is whole."""
        return self._calibrated(self._raw)

    def after(self, cut: int, groups: Sequence[Group], of: str, whole: bool = True) -> dict[str, Tensor]:
        """As the cuts before left the model.

        Args:
            cut: its number, from 1; each looks at other windows.
            groups: to score.
            of: which cut this is, to be told.
            whole: whether nothing is gone before the first cut.
        """
        return self.whole if cut == 1 and whole else self._calibrated(self._score(groups, cut, of))

    def prepare(self) -> None:
        """Find out now what has to be found out on the whole model."""
        _ = self._data, self._factors

    @functools.cached_property
    def fitting(self) -> list[Tensor]:
        """Token ids that least squares looks at."""
        return self.study.batches(self.config.fitting_windows, self.config.seed + 3)

    def unprunable(self) -> list[str]:
        """The node groups that stay whole by knowledge analysis."""
        return of_file(self._knowledge, self.subject.graph, self.subject.tied, self.config.gamma)

    def check(self, tied: Sequence[Tied]) -> None:
        """Refuse scores that are all equal before LHSPG trains; of what training itself brings, it is seen then."""
        config, proxy = self.config, find(self.config.saliency)
        begun = (self.folder.path / "state" / "prune").exists()
        own = not type(proxy).__module__.startswith("shearfx.")  # may need adapters, or steps: seen when it scores
        if begun or own or reads_training(proxy):
            return
        groups = list({g.name: g for one in tied for g in one.groups}.values())
        few = self.study.batches(min(config.batch_size, config.scoring_windows), config.seed + 2)
        proxy.memory, proxy.fitting = self.spare() // 2, few
        work = self.subject.held.work
        scores = proxy.score(self.subject.graph, work, groups=groups, data=few, loss=call_loss, seed=config.seed)
        check_scores(scores, {})

    @functools.cached_property
    def _knowledge(self) -> KnowledgeDistribution:
        """What each node group knows; what an earlier run measured is read from its file."""
        config, subject = self.config, self.subject
        if config.knowledge is not None:
            known = KnowledgeDistribution.load(Path(config.knowledge).expanduser())
            self.folder.write(KNOWLEDGE, known.to_json())
            return known
        with self.teller.step("measuring what each node group knows (Algorithm 3)") as progress:
            found = knowledge_distribution(
                subject.graph, subject.held.work, self.study.batches(config.knowledge_windows, config.seed + 1),
                tied=subject.tied, saliency="fisher", ratios=config.knowledge_ratios, gamma=config.gamma,
                seed=config.seed, scores=self._raw, cache=self.folder.path / MEASURED,
                announce=lambda cost: self.teller.note(str(cost)), progress=progress,
            )  # fmt: skip
        self.folder.write(KNOWLEDGE, found.to_json())
        return found

    @functools.cached_property
    def _factors(self) -> dict[str, float]:
        """What scores are multiplied with, by name of group; nothing where they are taken as they come."""
        by = self.config.calibrate
        return {} if by == "none" else factors(self._knowledge, self.subject.tied, self._raw, by)

    def _calibrated(self, scores: Scores) -> dict[str, Tensor]:
        return {name: score * self._factors.get(name, 1.0) for name, score in scores.items()}

    @functools.cached_property
    def _raw(self) -> dict[str, Tensor]:
        """As the saliency gives them; knowledge analysis and a cut at once go by the same ones."""
        groups = list({g.name: g for t in self.subject.tied for g in t.groups}.values())
        return self._score(groups)

    def _score(self, groups: Sequence[Group], cut: int = 1, of: str = "") -> dict[str, Tensor]:
        proxy, work, seed = self.proxy, self.subject.held.work, self.config.seed
        proxy.memory = self.spare() // 2
        proxy.fitting = self.fitting
        with self.teller.step(f"scoring structures by {proxy.name}{of}") as progress:
            return proxy.score(
                self.subject.graph, work, groups=groups, data=self._data.of(cut - 1), loss=call_loss, seed=seed,
                progress=progress,
            )  # fmt: skip

    @functools.cached_property
    def _data(self) -> ScoringData:
        """Worked out while the model is whole."""
        return ScoringData(self.study, self.subject.held.work, self.proxy, self.config.cuts)
