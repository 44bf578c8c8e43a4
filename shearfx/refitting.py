"""A live model as it will be after a cut: what goes is shut, and what reads it is refitted, or gets a bias."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from shearfx.bias_compensation import bias_as_cut, shifted
from shearfx.compensation import RIDGE, Run, is_turned, parameter_named, solved
from shearfx.gating.gates import Gates
from shearfx.gating.sites import base_layer
from shearfx.graph import Graph, Group
from shearfx.pruning_plan import PruningPlan
from shearfx.slicing import cut_tensor


class Refitting:
    """A ratio can be reached in several cuts: each is scored, and fitted, on what the one before left.

    As a context manager: inside, :meth:`apply` changes what the model computes; afterwards it is what it was, bit for
    bit. Takes memory for a second one of the weights that read what goes.

    Args:
        graph: the analysis of the model.
        model: the live model.
        groups: all that may be cut.
    """

    def __init__(self, graph: Graph, model: nn.Module, groups: Iterable[Group]) -> None:
        self.graph, self.model = graph, model
        self._gates = Gates(graph, model, groups)
        self._original: dict[str, Tensor] = {}
        self._biases: dict[str, nn.Parameter | None] = {}

    def __enter__(self) -> Refitting:
        self._gates.attach()
        return self

    def __exit__(self, *_: object) -> None:
        self._gates.detach()
        for name, weight in self._original.items():
            parameter_named(self.model, name).data = weight
        self._original.clear()
        for path, bias in self._biases.items():
            self._layer(path).bias = bias
        self._biases.clear()

    def apply(
        self,
        plan: PruningPlan,
        batches: Iterable[Any] | None,
        run: Run,
        *,
        ridge: float = RIDGE,
        memory: int | None = None,
    ) -> None:
        """Shut what a plan removes; first refit what reads it to what it gives now.

        Args:
            plan: removes all that the one before did.
            batches: calibration data; None refits nothing.
            run: calls the model on a batch.
            ridge, memory: as of :func:`shearfx.compensation.fitted`.

        Raises:
            PlanError: no layer can be fitted, or the plan cuts other groups.
        """
        if batches is not None:
            # all are fitted to what is, before any is changed
            found = list(solved(self.graph, self.model, plan, batches, run, ridge=ridge, memory=memory))
            self._put(found)
        self._gates.close(plan)

    def shift(self, plan: PruningPlan, batches: Iterable[Any], run: Run) -> None:
        """Shut what a plan removes; first give what reads it a bias, so that it gives now what it gave on average.

        Args, errors: as of :meth:`apply`. What was shut before is read as zero, so it shifts nothing again.
        """
        for path, bias in shifted(self.graph, self.model, plan, batches, run).items():
            layer = self._layer(path)
            self._biases.setdefault(path, layer.bias)
            layer.bias = nn.Parameter(bias, requires_grad=False)
        self._gates.close(plan)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """What was changed so far: weights by name, biases by path of the layer."""
        return {
            "weights": {name: parameter_named(self.model, name).data for name in self._original},
            "biases": {path: self._layer(path).bias.detach() for path in self._biases},
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]], plan: PruningPlan) -> None:
        """Go on after the cut that a state is of: change again what was changed, and shut what its plan removes."""
        self._put(state["weights"].items())
        for path, bias in state["biases"].items():
            layer = self._layer(path)
            self._biases.setdefault(path, layer.bias)
            layer.bias = nn.Parameter(bias.to(layer.weight), requires_grad=False)
        self._gates.close(plan)

    def biases(self, plan: PruningPlan) -> dict[str, Tensor]:
        """By path of each layer that got a bias, or another one: the bias after the cut, on the CPU.

        Args:
            plan: the one that was applied last.
        """
        return {
            path: bias_as_cut(self._layer(path).bias.detach(), plan, path, is_turned(self.model, path))
            for path in self._biases
        }

    def fits(self, plan: PruningPlan) -> dict[str, Tensor]:
        """By name: each weight that was refitted, after the cut, on the CPU.

        Args:
            plan: the one that was applied last.
        """
        weights = {name: parameter_named(self.model, name).data for name in self._original}
        return {name: cut_tensor(weight, plan.kept.get(name, {})).cpu() for name, weight in weights.items()}

    def _put(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        with self._gates.opened():  # gates keep what they zero in a weight, and put it back into this very one
            for name, new in weights:
                weight = parameter_named(self.model, name)
                self._original.setdefault(name, weight.data)
                weight.data = new.to(weight.data)

    def _layer(self, path: str) -> Any:
        return base_layer(self.model.get_submodule(path))
