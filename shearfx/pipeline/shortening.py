"""Whole layers go before widths are cut: which, how many, and the shorter model that the rest of a run starts from."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import cast

from torch import nn

from shearfx.checkpoints import load
from shearfx.depth import Damages, Layer, find_layers, least_damage, renamed, write_shorter
from shearfx.errors import PlanError, ShearError, message
from shearfx.models import LoadedModel
from shearfx.pipeline.pruning import Pruning
from shearfx.pipeline.scoring_data import Moved
from shearfx.pipeline.splitting import best_split, widths_lose
from shearfx.pipeline.study import Study
from shearfx.pipeline.subject import Shortened, Subject
from shearfx.run_directory import RunDirectory
from shearfx.running_time import amount_text
from shearfx.selection import check_patterns, matches


class Shortening:
    """Chooses layers by how far the model moves without them, and makes the shorter model.

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
        cut = Shortened(self.full, found["paths"], found["exclude"])
        return Subject(shorter, self.study, self._read, shortened=cut, records=self.folder)

    def _read(self) -> nn.Module:
        held = self.full.held
        return load(self.place, device="cpu" if held.own else held.home)

    def _shorten(self, loaded: LoadedModel) -> None:
        layers = self._free()
        found = self._chosen(layers)
        paths, gone = list(found.paths), sum(found.params)
        shown = ", ".join(f"{path} ({after - found.losses[0]:+.3f})" for path, after in
                          zip(paths, found.losses[1:], strict=True))  # fmt: skip
        self.teller.note(f"layers that go: {shown or 'none'}; {gone / self.full.count.total:.2%} of the parameters")
        names = self._write(loaded, paths) if paths else {}
        if paths and not names:  # widths alone, then
            paths, gone, found = [], 0, Damages((), found.losses[:1], ())
        left = [names[name] for name in self._excluded() if name in names]
        record = {"paths": paths, "losses": list(found.losses), "parameters": gone, "exclude": left}
        self.folder.finish("layers", record)

    def _write(self, loaded: LoadedModel, paths: list[str]) -> dict[str, str]:
        """Write the shorter model; returns the names of what is left, before and after. Nothing where its class cannot
        be built without these layers, and they were not asked for by number."""
        full = self.full
        full.held.drop_work()
        names = renamed(full.held.original, paths)
        try:
            with self.teller.step("dropping layers, and checking that nothing else changed"):
                write_shorter(
                    full.held.original, full.graph, paths, self.place, args=loaded.args, kwargs=loaded.kwargs,
                    tokenizer=self.study.tokenizer, overwrite=True,
                )  # fmt: skip
        except ShearError as error:
            if self.config.layers != "auto":
                raise
            self.teller.note(f"no layers go: {str(error).splitlines()[0]}")
            return {}
        return names

    def _excluded(self, inside: str = "") -> list[str]:
        """Names of parameters that the configuration excludes, those that begin so."""
        aliases = itertools.chain.from_iterable(tensor.aliases for tensor in self.full.graph.tensors.values())
        return [name for name in aliases if name.startswith(inside)
                if any(matches(name, pattern) for pattern in self.config.exclude)]  # fmt: skip

    def _free(self) -> list[Layer]:
        """The layers that may go, those that hold no more than is to go altogether.

        Raises:
            PlanError: there are fewer than are asked for.
        """
        found, config = find_layers(self.full.graph), self.config
        check_patterns(self.full.graph, "exclude", config.exclude)
        free = [one for one in found.layers if not self._excluded(f"{one.path}.")]
        if config.layers == "auto":
            return free
        counts = Counter(layer.list_path for layer in free)
        sizes = {path: len(cast(nn.ModuleList, self.full.held.shape.get_submodule(path))) for path in counts}
        most = sum(min(n, sizes[path] - 1) for path, n in counts.items())
        if config.layers > most:
            reason = next(iter(found.refused.values()), "one of each list stays, and what is excluded")
            what = f"{config.layers} layers are to go, and at most {most} can ({reason})"
            raise PlanError(message(what, where="layers", todo="ask for fewer; shearfx layers MODEL lists them"))
        prices = sorted(map(self.full.price, free))
        if sum(prices[: config.layers]) >= self.full.amount:
            fewer = max(n for n in range(config.layers) if sum(prices[:n]) < self.full.amount)
            held, asked = (amount_text(n, self.full.unit) for n in (sum(prices[: config.layers]), self.full.amount))
            what = f"{config.layers} layers make {held}, and {asked} are to go"
            raise PlanError(message(what, where="layers", todo=f"ask for {fewer or 'no'} layers, or a larger ratio"))
        return free

    def _chosen(self, layers: Sequence[Layer]) -> Damages:
        config, work, amount = self.config, self.full.held.work, self.full.amount
        loss = Moved(work, self.study.long_windows(config.missed_windows, config.seed + 1))
        if config.layers != "auto":
            with self.teller.step("measuring what is lost without layers") as progress:
                return least_damage(
                    work, layers, loss, until=lambda found: len(found.paths) == config.layers, screen=loss.roughly,
                    progress=progress,
                )  # fmt: skip
        widths = widths_lose(self.full, self.pruning.lost_by_share, loss)
        prices = {layer.path: self.full.price(layer) for layer in layers}

        def enough(found: Damages) -> bool:
            """A further layer would exceed the budget, or layers alone lose more than widths would for all of it."""
            fits = sum(prices[path] for path in found.paths) + max(prices.values()) < amount
            return not fits or found.losses[-1] > widths(1.0)

        if not layers:
            return Damages((), (widths(0.0),), ())
        with self.teller.step("measuring what is lost without layers") as progress:
            found = least_damage(work, layers, loss, until=enough, screen=loss.roughly, progress=progress)
        return best_split(found, [prices[path] for path in found.paths], widths, amount)
