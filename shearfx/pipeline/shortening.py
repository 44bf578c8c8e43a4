"""Whole layers go before widths are cut: which, how many, and the shorter model that the rest of a run starts from."""

from __future__ import annotations

import fnmatch
import itertools
import math
from collections.abc import Callable, Sequence

import torch

from shearfx.checkpoints import load
from shearfx.depth import Damages, Layer, find_layers, least_damage, write_shorter
from shearfx.errors import PlanError, message
from shearfx.gating import Gates
from shearfx.models import LoadedModel
from shearfx.pipeline.pruning import Pruning
from shearfx.pipeline.scoring_data import call_loss
from shearfx.pipeline.study import Study
from shearfx.pipeline.subject import Subject
from shearfx.run_directory import RunDirectory
from shearfx.running_time import amount_text

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Of the budget, at which the loss without widths is measured."""


class Shortening:
    """Chooses layers by the loss without them, and makes the shorter model.

    Its folder, ``shorter``, is an ordinary one of the model's own class, which the run reads like a given one.

    Args:
        full: the full model.
        pruning: of it; says what widths would lose.
        study: the data.
        folder: of the run.
    """

    def __init__(self, full: Subject, pruning: Pruning, study: Study, folder: RunDirectory) -> None:
        self.full, self.pruning, self.study, self.folder = full, pruning, study, folder
        self.config, self.teller = study.config, study.teller
        self.place = folder.path / "shorter"

    def subject(self, loaded: LoadedModel) -> Subject:
        """The model without the layers; the full one where none are to go.

        Args:
            loaded: the full model, as the run got it.

        Raises:
            PlanError: there are not so many layers that can go, or they hold more than is to go.
        """
        if not self.config.layers:
            return self.full
        if not self.folder.done("layers"):
            self._shorten(loaded)
        found = self.folder.records["layers"]
        if not found["paths"]:
            return self.full
        self.full.held.drop_work()
        shorter = LoadedModel(
            self._read(), loaded.source, loaded.kind, args=loaded.args, kwargs=loaded.kwargs, tokenizer=loaded.tokenizer
        )
        return Subject(shorter, self.study, self._read, shortened=(self.full, found["paths"]), records=self.folder)

    def _read(self) -> torch.nn.Module:
        held = self.full.held
        return load(self.place, device="cpu" if held.own else held.home)

    def _shorten(self, loaded: LoadedModel) -> None:
        layers = self._free()
        found = self._chosen(layers)
        paths, gone = list(found.paths), sum(found.params)
        shown = ", ".join(f"{path} (+{after - found.losses[0]:.3f})" for path, after in
                          zip(paths, found.losses[1:], strict=True))  # fmt: skip
        self.teller.note(f"layers that go: {shown or 'none'}; {gone / self.full.count.total:.2%} of the parameters")
        if paths:
            self.full.held.drop_work()
            with self.teller.step("dropping layers, and checking that nothing else changed"):
                write_shorter(
                    self.full.held.original, self.full.graph, paths, self.place, args=loaded.args,
                    kwargs=loaded.kwargs, tokenizer=self.study.tokenizer, overwrite=True,
                )  # fmt: skip
        self.folder.finish("layers", {"paths": paths, "losses": list(found.losses), "parameters": gone})

    def _free(self) -> list[Layer]:
        """The layers that may go, those that hold no more than is to go altogether.

        Raises:
            PlanError: there are fewer than are asked for.
        """
        found, config = find_layers(self.full.graph), self.config
        free = [one for one in found.layers if not any(fnmatch.fnmatchcase(one.path, p) for p in config.exclude)]
        if config.layers == "auto":
            return free
        lists = len({layer.list_path for layer in free})
        if config.layers > len(free) - lists:
            reason = next(iter(found.refused.values()), "one of each list stays")
            what = f"{config.layers} layers are to go, and at most {max(0, len(free) - lists)} can ({reason})"
            raise PlanError(message(what, where="layers", todo="ask for fewer; shearfx layers MODEL lists them"))
        prices = sorted(map(self.full.price, free))
        if sum(prices[: config.layers]) >= self.full.amount:
            most = max(n for n in range(config.layers) if sum(prices[:n]) < self.full.amount)
            held, asked = (amount_text(n, self.full.unit) for n in (sum(prices[: config.layers]), self.full.amount))
            what = f"{config.layers} layers make {held}, and {asked} are to go"
            raise PlanError(message(what, where="layers", todo=f"ask for {most} layers at most, or a larger ratio"))
        return free

    def _chosen(self, layers: Sequence[Layer]) -> Damages:
        config, work, amount = self.config, self.full.held.work, self.full.amount
        batches = self.study.batches(config.knowledge_windows, config.seed + 1)

        def loss() -> float:
            with torch.no_grad():
                return sum(float(call_loss(work, ids)) * len(ids) for ids in batches) / sum(map(len, batches))

        if config.layers != "auto":
            with self.teller.step("measuring what is lost without layers") as progress:
                return least_damage(
                    work, layers, loss, until=lambda found: len(found.paths) == config.layers, progress=progress
                )
        widths = self._widths(loss)

        prices = {layer.path: self.full.price(layer) for layer in layers}

        def enough(found: Damages) -> bool:
            """A further layer would exceed the budget, or layers alone lose more than widths would for all of it."""
            fits = sum(prices[path] for path in found.paths) + max(prices.values()) < amount
            return not fits or found.losses[-1] > widths(1.0)

        if not layers:
            return Damages((), (widths(0.0),), ())
        with self.teller.step("measuring what is lost without layers") as progress:
            found = least_damage(work, layers, loss, until=enough, progress=progress)
        return best_split(found, [prices[path] for path in found.paths], widths, amount)

    def _widths(self, loss: Callable[[], float]) -> Callable[[float], float]:
        """The loss without the widths that save a share of the budget, between measured shares on a line."""
        full, pruning = self.full, self.pruning
        chooser = full.chooser(full.tied)
        most = chooser.most_possible()
        scores, points = pruning.scores, [(0.0, loss())]
        with self.teller.step("measuring what is lost without widths") as progress:
            for done, share in enumerate(SHARES, start=1):
                if share * full.amount > most:
                    points.append((share, math.inf))
                    continue
                gone, _ = chooser.choose(share * full.amount, scores, pruning.ranking)
                with Gates(full.graph, full.held.work, chooser.groups) as gates:
                    gates.close(pruning.plan_of(gone))
                    points.append((share, loss()))
                progress(done, len(SHARES))
        return lambda share: _between(points, share)


def best_split(found: Damages, prices: Sequence[int], widths: Callable[[float], float], amount: int) -> Damages:
    """The number of layers with which both together lose the least, by what each loses alone.

    Args:
        found: layers in the order in which they go.
        prices: what each of them saves, in the budget's unit.
        widths: the loss without the widths that save a share of the budget.
        amount: the budget.

    >>> layers = Damages(("a", "b"), (1.0, 1.1, 1.9), (50, 50))
    >>> best_split(layers, (50, 50), lambda share: 1.0 + share, 200).paths
    ('a',)
    """
    count = len(found.paths)
    lost = [found.losses[n] + widths(1 - sum(prices[:n]) / amount) for n in range(count + 1)]
    best = min(range(count + 1), key=lost.__getitem__)
    return Damages(found.paths[:best], found.losses[: best + 1], found.params[:best])


def _between(points: Sequence[tuple[float, float]], share: float) -> float:
    for (left, low), (right, high) in itertools.pairwise(points):
        if share <= right:
            weight = (share - left) / (right - left)
            return low if weight == 0 else low + weight * (high - low)
    return points[-1][1]
