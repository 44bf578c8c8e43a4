"""What becomes of the optimiser's own state, and of the learning rate, when adapters were merged.

After a merge B is zero, and what AdamW remembers of its gradients is of a product that is no longer there. ReLoRA
forgets it and warms the learning rate up again.

Source: ReLoRA (arXiv 2307.05695), section 3; LoRAShear, Algorithm 4, line 9, says nothing of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any, Literal

from shearfx.errors import PlanError, message
from shearfx.low_rank import LowRank

Moments = Literal["keep", "reset"]


class Restart:
    """Forgets moments and warms up again after every merge.

    Args:
        adapters: of the model, by path.
        moments: whether what the variant knows of A and B (AdamW's two moments and its count of steps, SGD's buffer)
            is kept or forgotten.
        warmup: steps after a merge over which the learning rate rises to what it is otherwise: the n-th of them (from
            1) is taken at ``n / (warmup + 1)`` of it. It is that of the groups of parameters with an A or B among them.

    Raises:
        PlanError: there are no such moments, or no such number of steps.
    """

    def __init__(self, adapters: Mapping[str, LowRank], moments: Moments, warmup: int) -> None:
        if moments not in ("keep", "reset"):
            what = f"there is no merge_moments {moments!r}"
            raise PlanError(message(what, where="LHSPG(...)", todo="choose 'keep' or 'reset'"))
        if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 0:
            what = f"merge_warmup={warmup!r} is no number of steps"
            raise PlanError(message(what, where="LHSPG(...)", todo="count optimiser steps; 0 for no warm-up"))
        self.moments, self.warmup = moments, warmup
        self.since: int | None = None
        """Optimiser steps since the last merge."""
        self._own = {id(factor) for one in adapters.values() for factor in (one.a, one.b)}

    def merged(self, state: MutableMapping[Any, Any]) -> None:
        """Adapters were merged.

        Args:
            state: the optimiser's, by parameter.
        """
        self.since = 0
        if self.moments == "reset":
            for parameter in [p for p in state if id(p) in self._own]:
                del state[parameter]

    @contextlib.contextmanager
    def rates(self, groups: Sequence[dict[str, Any]]) -> Iterator[None]:
        """For one step, the learning rates as they are so soon after a merge.

        Args:
            groups: the optimiser's; a scheduler finds its own rates there afterwards.
        """
        rising = self.since is not None and self.since < self.warmup
        before = [(g, g["lr"]) for g in groups if rising and any(id(p) in self._own for p in g["params"])]
        try:
            for group, rate in before:
                assert self.since is not None
                group["lr"] = rate * ((self.since + 1) / (self.warmup + 1))
            yield
        finally:
            for group, rate in before:
                group["lr"] = rate
        if self.since is not None:
            self.since += 1
