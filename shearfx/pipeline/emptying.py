"""Whole branches go before widths are cut: an attention without heads, a feed-forward part without width."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from shearfx.attributes import settle
from shearfx.budget import budget_of
from shearfx.depth import Damages, find_branches, least_missed
from shearfx.errors import PlanError, message
from shearfx.gating.gates import Gates
from shearfx.graph import Group
from shearfx.optim.choosing import Redundant
from shearfx.pipeline.scoring_data import Moved
from shearfx.pipeline.splitting import best_split, widths_lose
from shearfx.pipeline.study import Study
from shearfx.pipeline.subject import Subject
from shearfx.pruning_plan import of_cuts
from shearfx.run_directory import RunDirectory
from shearfx.running_time import amount_text
from shearfx.selection import Tied


def kept(names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """What stays of groups that lose all of their structures."""
    return dict.fromkeys(names, ())


Lost = Callable[[Sequence[float], Callable[[], float]], list[float]]


class Emptying:
    """Chooses branches by how far the model moves without them (see :mod:`shearfx.depth.branches`).

    Args:
        subject: the model to be cut.
        study: the data.
        folder: of the run.
        lost_by_share: what widths would lose (:meth:`shearfx.pipeline.pruning.Pruning.lost_by_share`).
    """

    def __init__(self, subject: Subject, study: Study, folder: RunDirectory, lost_by_share: Lost) -> None:
        self.subject, self.study, self.folder, self.lost_by_share = subject, study, folder, lost_by_share
        self.config, self.teller = study.config, study.teller

    def gone(self, tied: Sequence[Tied]) -> Redundant:
        """The groups that lose all of their structures; none where no branch is to go.

        Args:
            tied: what may be cut.

        Raises:
            PlanError: there are not so many branches that can go, or they hold more than is to go; or the class takes
                each to be gone, but not all at once.
        """
        if not self.config.branches:
            return {}
        if not self.folder.done("branches"):
            self._choose(tied)
        sizes = {group.name: group.size for group in self.subject.graph.groups}
        return {name: list(range(sizes[name])) for name in self.folder.records["branches"]["groups"]}

    def _choose(self, tied: Sequence[Tied]) -> None:
        groups, prices = self._free(tied)
        found = self._chosen(groups, prices)
        if found.paths:  # all layers together, before anything else is done
            with self.teller.step("checking that the model's class does without them"):
                settle(self.subject.held.shape, self.subject.graph, of_cuts(self.subject.graph, kept(found.paths)))
        shown = ", ".join(f"{name} ({after - found.losses[0]:+.3f})" for name, after in
                          zip(found.paths, found.losses[1:], strict=True))  # fmt: skip
        self.teller.note(f"branches that go: {shown or 'none'}")
        self.folder.finish("branches", {"groups": list(found.paths), "losses": list(found.losses)})

    def _free(self, tied: Sequence[Tied]) -> tuple[list[Group], dict[str, int]]:
        """What may go whole, and what each saves in the budget's unit."""
        subject, config = self.subject, self.config
        with self.teller.step("finding out which branches can go whole"):
            found = find_branches(subject.graph, subject.held.shape, tied)
        if config.branches != "auto" and config.branches > len(found.groups):
            reason = next(iter(found.refused.values()), "there are no more")
            what = f"{config.branches} branches are to go, and at most {len(found.groups)} can ({reason})"
            raise PlanError(message(what, where="branches", todo="ask for fewer, or for none"))
        budget = budget_of(subject.graph, subject.unit, ())
        prices = {}
        for group in found.groups:
            touched = budget.touched([group.atom])
            prices[group.name] = budget.cost(touched) - budget.cost(touched, {group.atom: 0})
        if config.branches != "auto":
            least = sum(sorted(prices.values())[: config.branches])
            if least >= subject.amount:
                held, asked = (amount_text(n, subject.unit) for n in (least, subject.amount))
                what = f"{config.branches} branches make {held}, and {asked} are to go"
                raise PlanError(message(what, where="branches", todo="ask for fewer, or for a larger ratio"))
        return list(found.groups), prices

    def _chosen(self, groups: Sequence[Group], prices: Mapping[str, int]) -> Damages:
        config, subject, work = self.config, self.subject, self.subject.held.work
        moved = Moved(work, self.study.long_windows(config.missed_windows, config.seed + 1))

        def saved(names: Sequence[str]) -> int:
            return sum(prices[name] for name in names)

        if not groups:
            return Damages((), (moved(),), ())
        if config.branches == "auto":
            widths = widths_lose(subject, self.lost_by_share, moved)
        with Gates(subject.graph, work, groups) as gates:

            def without(names: Sequence[str], measure: Callable[[], float] = moved) -> float:
                gates.close(of_cuts(subject.graph, dict.fromkeys(names, ())))
                return measure()

            def roughly(names: Sequence[str]) -> float:
                return without(names, moved.roughly)

            def fits(name: str, gone: Sequence[str]) -> bool:
                return saved(gone) + prices[name] < subject.amount

            def enough(found: Damages) -> bool:
                if config.branches != "auto":
                    return len(found.paths) == config.branches
                return found.losses[-1] > widths(1.0)  # they alone lose more than widths would for all of it

            with self.teller.step("measuring what is lost without branches") as progress:
                found = least_missed(prices, without, until=enough, screen=roughly, free=fits, progress=progress)
        if config.branches == "auto":
            return best_split(found, [prices[name] for name in found.paths], widths, subject.amount)
        if len(found.paths) < config.branches:
            held, asked = (amount_text(n, subject.unit) for n in (saved(found.paths), subject.amount))
            what = f"of {config.branches} branches the {len(found.paths)} that are missed the least make {held}, and "
            what += f"{asked} are to go: a further one would be too much"
            raise PlanError(message(what, where="branches", todo=f"ask for {len(found.paths)}, or for a larger ratio"))
        return found
