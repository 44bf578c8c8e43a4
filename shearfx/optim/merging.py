"""Merging adapters into frozen weights, so that a run can be resumed from the adapter and the optimiser alone.

Every merge keeps the two thin factors that it added. A run that is resumed on the base as it was shipped adds them
again, in the same order, and has the same weights bit for bit. Weights of 16 bits lose most of what is added to them
(a change of a thousandth rounds away); where more than one merge is to come they are computed from the originals, kept
on the CPU in their own precision, and the sum of all updates, so that rounding does not add up.

Source: LoRAShear, Algorithm 4, line 9; ReLoRA (arXiv 2307.05695) is the precedent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from shearfx.errors import PlanError, message
from shearfx.low_rank import LowRank, spans

Event = dict[str, dict[str, Tensor]]
"""By path of the adapter's layer: what ``a`` and ``b`` were when they were merged, on the CPU."""


class Merger:
    """Merges all adapters of a model, once or several times.

    Args:
        adapters: of the model, by path.
        times: how many merges there will be.
    """

    def __init__(self, adapters: Mapping[str, LowRank], times: int) -> None:
        self.adapters, self.times = dict(adapters), times
        self.events: list[Event] = []
        self._origin: dict[str, int] = {}
        self._originals: dict[str, Tensor] = {}

    @torch.no_grad()
    def merge(self) -> None:
        """Line 9: add ``gamma B A`` to the weights and set B to zero. The function of the model stays."""
        if not self.adapters:
            return
        self.look()
        event = {
            path: {"a": one.a.detach().cpu().clone(), "b": one.b.detach().cpu().clone()}
            for path, one in self.adapters.items()
        }
        self._apply(event)
        for one in self.adapters.values():
            one.b.zero_()

    def look(self) -> None:
        """Remember what the weights are before anything is written to them."""
        if not self._origin:
            self._origin = self._digests()

    def _apply(self, event: Event) -> None:
        self.events.append(event)
        for path, one in self.adapters.items():
            if self.times > 1 and one.weight.element_size() < 4:
                if path not in self._originals:
                    self._originals[path] = one.weight.detach().to("cpu", copy=True)
                a, b = one.joined([(event[path]["a"], event[path]["b"]) for event in self.events])
                one.add(a, b, self._originals[path])
            else:
                one.add(event[path]["a"], event[path]["b"])

    def _digests(self) -> dict[str, int]:
        return {path: digest(one.weight.detach()) for path, one in self.adapters.items()}

    def state_dict(self) -> dict[str, Any]:
        """All merges so far, and what the weights were before the first and are now."""
        return {
            "events": [{path: dict(pair) for path, pair in event.items()} for event in self.events],
            "origin": dict(self._origin),
            "now": self._digests() if self.events else {},
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Merge again what was merged, unless the weights that were loaded have it already.

        Raises:
            PlanError: the weights are neither what they were before the first merge nor what they were when the state
                was saved.
        """
        todo = "load the base's weights again, as they were before LHSPG, and make a new LHSPG"
        events = [{path: dict(pair) for path, pair in event.items()} for event in state["events"]]
        if len(self.events) > len(events):
            what = f"{len(self.events)} merges were made here, and only {len(events)} when the state was saved"
            raise PlanError(message(what, todo=todo))
        if not events:
            self._origin = dict(state["origin"]) or self._origin
            return
        for path in self.adapters.keys() ^ events[0].keys():
            raise PlanError(message(f"the state has merged other adapters: {path}", todo="use the same adapters"))
        here = self._digests()
        if here == dict(state["now"]):
            low = any(one.weight.element_size() < 4 for one in self.adapters.values())
            if low and not self._originals and self.times > len(events):
                what = "these weights of 16 bits are merged already, and more is to be merged into the originals"
                raise PlanError(message(what, todo=todo))
            self.events, self._origin = events, dict(state["origin"])
        elif here == dict(state["origin"]):
            self.events, self._origin = [], dict(state["origin"])
            for event in events:
                self._apply(event)
        else:
            wrong = next(path for path, value in here.items() if value != state["origin"].get(path))
            what = "the base is neither what it was before the first merge nor what it was when the state was saved"
            raise PlanError(message(what, where=wrong, todo=todo))


def digest(weight: Tensor) -> int:
    """A number that differs where one bit of a floating tensor does: a checksum, nothing secret.

    >>> digest(torch.tensor([1.0, 2.0])) == digest(torch.tensor([2.0, 1.0]))
    False
    """
    kind = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
    rows = weight.reshape(len(weight), -1)
    total = 0
    for start, stop in spans(len(rows), rows.shape[1]):
        bits = rows[start:stop].contiguous().view(kind).flatten().long()
        order = torch.arange(1, len(bits) + 1, device=bits.device)
        total = (total * 31 + int((bits * order).sum())) % (2**61 - 1)
    return total
