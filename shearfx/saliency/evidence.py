"""What a saliency is asked about, and what it may look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from shearfx.errors import PlanError, message
from shearfx.gating.sites import live_names
from shearfx.gradients import Loss, fed
from shearfx.graph import Graph, Group
from shearfx.slices import SliceSums

Progress: TypeAlias = Callable[[int, int], None]
"""Called with what is done and what there is in all (0 where that is not known)."""


@dataclass(frozen=True)
class Evidence:
    """See :meth:`shearfx.saliency.base.Saliency.score` for what was passed."""

    saliency: str
    """Whose name errors state."""
    graph: Graph
    module: nn.Module | None
    """The model, where there is one."""
    groups: Sequence[Group]
    data: Iterable[Any] | None = None
    loss: Loss | None = None
    seed: int = 0
    progress: Progress | None = None

    @property
    def model(self) -> nn.Module:
        """The model; PlanError where none was passed."""
        if self.module is None:
            raise PlanError(message(f"saliency {self.saliency!r} looks at the model", todo="pass model="))
        return self.module

    @property
    def batches(self) -> Iterable[Any]:
        """The data; PlanError where none was passed."""
        return fed(self.data, self.saliency)

    def sums(self) -> SliceSums:
        """To add up by structure what a proxy finds for every weight."""
        return SliceSums(self.graph, self.groups)

    def weights(self, sums: SliceSums) -> Mapping[str, nn.Parameter]:
        """The parameters that some group mentions, by the name each has without adapters.

        Raises:
            PlanError: there is no model, or its weights are on the meta device or quantised.
        """
        if self.module is None:
            what, todo = f"saliency {self.saliency!r} looks at weights", "pass model=, or saliency='random'"
            raise PlanError(message(what, todo=todo))
        live, parameters = live_names(self.module), dict(self.module.named_parameters(remove_duplicate=False))
        found: dict[str, nn.Parameter] = {}
        for name, first in sums.names.items():
            if first not in found and name in live:
                found[first] = parameters[live[name]]
        for name, parameter in found.items():
            if not parameter.is_floating_point():
                what = f"saliency {self.saliency!r} looks at weights, and {name} is kept as {parameter.dtype}"
                raise PlanError(message(what, todo="choose fisher, which looks at none, or dequantise the model"))
            if parameter.is_meta:
                what = f"saliency {self.saliency!r} looks at weights, and {name} is on the meta device"
                raise PlanError(message(what, todo="load the weights, or choose saliency='random'"))
        return found
