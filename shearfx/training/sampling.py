"""Which windows come next: sources mixed by weights, each gone through in an order of its own, epoch after epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from shearfx.data import Examples
from shearfx.errors import TrainingError, message


class Mixture:
    """Batches drawn from several sources.

    Every window's source is drawn by ``weights``; a source's windows come in a random order, all of them before any
    comes again. The same seed gives the same batches, and :meth:`state_dict` goes on where it was.

    Args:
        sources: what to learn from; windows of one length.
        batch_size: windows of a batch.
        seed: of all draws.
        weights: of the sources, by name (default: their sizes, so that all windows are alike).

    Raises:
        TrainingError: no sources, names that occur twice, or windows of different lengths.
    """

    def __init__(
        self, sources: Sequence[Examples], batch_size: int, *, seed: int, weights: Mapping[str, float] | None = None
    ) -> None:
        names = [source.name for source in sources]
        lengths = {source.ids.shape[1] for source in sources}
        if not sources or len(set(names)) < len(names) or len(lengths) != 1 or batch_size < 1:
            what = f"{len(sources)} sources named {', '.join(names)} with windows of {sorted(lengths)} make no mixture"
            raise TrainingError(message(what, todo="give each source its own name, and pack all to one length"))
        self.sources = {source.name: source for source in sources}
        self.batch_size = batch_size
        self.weights: dict[str, float] = {}
        self._generator = torch.Generator().manual_seed(seed)
        self._orders: dict[str, Tensor] = {}
        self._at: dict[str, int] = {}
        self.drawn = dict.fromkeys(names, 0)
        """Windows drawn so far from each source."""
        for name in names:
            self._shuffle(name)
        self.reweight(weights or {name: float(len(source)) for name, source in self.sources.items()})

    def reweight(self, weights: Mapping[str, float]) -> None:
        """Draw by other weights from now on.

        Raises:
            TrainingError: they name other sources, or are no weights.
        """
        total = sum(weights.values())
        if weights.keys() != self.sources.keys() or not total > 0 or min(weights.values()) < 0:
            raise TrainingError(message(f"{dict(weights)} are no weights of {', '.join(self.sources)}"))
        self.weights = {name: weights[name] / total for name in self.sources}

    def next(self) -> dict[str, Tensor]:
        """``input_ids`` and ``labels``, int64 ``[batch_size, tokens]``."""
        names = list(self.sources)
        shares = torch.tensor([self.weights[name] for name in names], dtype=torch.float64)
        picks = torch.multinomial(shares, self.batch_size, replacement=True, generator=self._generator).tolist()
        ids, labels = [], []
        for pick in picks:
            name = names[pick]
            source = self.sources[name]
            if self._at[name] == len(source):
                self._shuffle(name)
            at = int(self._orders[name][self._at[name]])
            self._at[name] += 1
            self.drawn[name] += 1
            ids.append(source.ids[at])
            labels.append(source.labels[at])
        return {"input_ids": torch.stack(ids), "labels": torch.stack(labels)}

    def epochs(self) -> dict[str, float]:
        """How often each source was gone through so far."""
        return {name: self.drawn[name] / len(source) for name, source in self.sources.items()}

    def _shuffle(self, name: str) -> None:
        self._orders[name] = torch.randperm(len(self.sources[name]), generator=self._generator)
        self._at[name] = 0

    def state_dict(self) -> dict[str, Any]:
        """Where it is."""
        return {
            "generator": self._generator.get_state(), "orders": dict(self._orders), "at": dict(self._at),
            "drawn": dict(self.drawn), "weights": dict(self.weights),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there.

        Raises:
            TrainingError: it is of other sources.
        """
        sizes = {name: len(order) for name, order in state["orders"].items()}
        if sizes != {name: len(source) for name, source in self.sources.items()}:
            todo = "resume with the same data and options"
            raise TrainingError(message(f"the state is of sources with {sizes} windows", todo=todo))
        self._generator.set_state(state["generator"])
        self._orders, self._at = dict(state["orders"]), {name: int(at) for name, at in state["at"].items()}
        self.drawn = {name: int(count) for name, count in state["drawn"].items()}
        self.weights = {name: float(weight) for name, weight in state["weights"].items()}
