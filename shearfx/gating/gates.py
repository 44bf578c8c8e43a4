"""Gates: structures of a live model faded or shut without touching its weights, and the loss's derivative by them.

The paper fades redundant groups by subtracting from their weights (LoRAShear, equation 2). The same forward pass
results from multiplying them by a number that goes from 1 to 0, which works on frozen, quantised and shared bases alike
and keeps the full model at hand: open the gates, and it is the model that it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from shearfx.errors import PlanError, message
from shearfx.gating.collecting_gate import collected
from shearfx.gating.collector import Collector
from shearfx.gating.formed import FormedWeights
from shearfx.gating.sites import GatedWeight, GateSite, Places, places
from shearfx.gating.stand_ins import StandIn
from shearfx.graph import Graph, Group
from shearfx.pruning_plan import PruningPlan


class Gates:
    """A number from 0 (as if the structure were masked) to 1 (as it was) for every structure of some groups.

    Attach before the model runs; :meth:`detach` leaves the model as it was, bit for bit. Also a context manager.

    Args:
        graph: the analysis of the model, or of its base without adapters.
        model: the live model.
        groups: which groups (default: all exact and compensated ones).

    Raises:
        PlanError: a group cannot be gated in this model.
    """

    def __init__(self, graph: Graph, model: nn.Module, groups: Iterable[Group] | None = None) -> None:
        chosen = graph.groups if groups is None else groups
        self.groups = {g.name: g for g in chosen if groups is not None or g.certificate in ("exact", "compensated")}
        self.model = model
        self.values: dict[str, Tensor] = {name: torch.ones(g.size) for name, g in self.groups.items()}
        """Group name to float32 ``[size]``, on the CPU. Change them by :meth:`set` only."""
        self.places: Places = places(graph, model, self.groups.values())
        self.collector: Collector | None = None
        self.stand_ins: dict[str, list[StandIn]] = {}
        """By path of a module whose input is gated: what stands in for what is shut there, the oldest first."""
        self._vectors: dict[tuple[GateSite, torch.dtype, torch.device], Tensor | None] = {}
        self._of: dict[str, list[GateSite]] = {name: [] for name in self.groups}
        for site in self.places.sites:
            for group, _ in site.where:
                self._of[group].append(site)
        self._in_place = [weight for weight in self.places.weights if not weight.formed]
        self._weights: dict[str, list[GatedWeight]] = {name: [] for name in self.groups}
        for weight in self._in_place:
            self._weights[weight.group].append(weight)
        formed = [weight for weight in self.places.weights if weight.formed]
        self._formed = FormedWeights(formed, self._factor, lambda: self.collector, lambda: self._open)
        self._saved: dict[int, list[tuple[nn.Parameter, int, Tensor, Tensor]]] = {}
        self._hooks: list[Any] = []
        self._attached = self._open = False

    # -- values ------------------------------------------------------------------------------------

    def set(self, values: Mapping[str, Tensor]) -> None:
        """Set the gates of some groups, each float ``[size]``.

        Raises:
            PlanError: no such group, or a value outside 0 to 1.
        """
        for name, value in values.items():
            if name not in self.groups or tuple(value.shape) != (self.groups[name].size,):
                raise PlanError(message(f"there is no gate {name!r} of shape {tuple(value.shape)}"))
            if not bool(((value >= 0) & (value <= 1)).all()):
                raise PlanError(message(f"gates are numbers from 0 to 1; {name} has others"))
        for name, value in values.items():
            self.values[name] = value.detach().to("cpu", torch.float32).clone()
            for site in self._of[name]:
                for key in [k for k in self._vectors if k[0] is site]:
                    del self._vectors[key]
        if self._attached and not self._open:
            self._scale([w for name in values for w in self._weights[name]])

    def close(self, plan: PruningPlan) -> None:
        """Shut what a plan removes, open all else."""
        kept = {cut.name: cut.kept for cut in plan.cuts}
        values = {name: torch.ones(g.size) for name, g in self.groups.items()}
        for name, stay in kept.items():
            if name not in values:
                raise PlanError(message(f"there is no gate {name!r}", todo="pass the plan's groups to Gates"))
            values[name] = torch.zeros(self.groups[name].size)
            values[name][list(stay)] = 1
        self.set(values)

    def shut(self) -> dict[str, list[int]]:
        """For each group with any: the structures whose gate is zero."""
        found = {name: (value == 0).nonzero().flatten().tolist() for name, value in self.values.items()}
        return {name: gone for name, gone in found.items() if gone}

    # -- on the model ------------------------------------------------------------------------------

    @property
    def attached(self) -> bool:
        """Whether the gates are on the model."""
        return self._attached

    def attach(self) -> Gates:
        """Put the gates on the model."""
        if not self._attached:
            self._attached = True
            for site in self.places.sites:
                self._hooks.append(self._hook(site))
            self._formed.attach()
            self._scale(self._in_place)
        return self

    def detach(self) -> None:
        """Take the gates off; the model is what it was, bit for bit."""
        for hook in self._hooks:
            hook.remove()
        self._formed.detach()
        self._hooks, self._attached = [], False
        self._vectors.clear()
        self._restore()

    def __enter__(self) -> Gates:
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.detach()

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """For the while, all gates stand open: the full model, as a teacher or to compare with."""
        before, self._open = self._open, True
        self._restore()
        try:
            yield
        finally:
            self._open = before
            if self._attached and not before:
                self._scale(self._in_place)

    def _hook(self, site: GateSite) -> Any:
        if site.side == "in":

            def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                if args:
                    return (self._pass(site, args[0]), *args[1:]), kwargs
                name = next(iter(kwargs))
                return args, kwargs | {name: self._pass(site, kwargs[name])}

            return site.module.register_forward_pre_hook(before, with_kwargs=True)
        return site.module.register_forward_hook(lambda module, args, output: self._pass(site, output))

    def _pass(self, site: GateSite, x: Tensor) -> Tensor:
        if self._open:
            return x
        vector = self._vector(site, x)
        replaced = () if vector is None or site.side != "in" else tuple(reversed(self.stand_ins.get(site.path, ())))
        if self.collector is not None and torch.is_grad_enabled():
            # a derivative is asked for here, whether or not anything before this place wants one
            x = x if x.requires_grad else x.detach().requires_grad_()
            return collected(x, vector, site, self.collector, replaced)
        if vector is None:
            return x
        x = x * vector
        for one in replaced:
            x = one.apply(x, vector)
        return x

    def _vector(self, site: GateSite, x: Tensor) -> Tensor | None:
        """What the activation is multiplied by, shaped to broadcast; None where that is all ones."""
        key = (site, x.dtype, x.device)
        if key not in self._vectors:
            with torch.inference_mode(False):  # whoever evaluates between steps makes the vector that training uses
                vector = torch.ones(site.size)
                for group, where in site.where:
                    vector *= torch.cat([self.values[group], torch.ones(1)])[where]  # -1 picks the one at the end
                same = bool((vector == 1).all())
                shape = [-1] + [1] * (-1 - site.axis)
                self._vectors[key] = None if same else vector.to(x.device, x.dtype).reshape(shape)
        return self._vectors[key]

    # -- weights that no module's input or output stands for -----------------------------------------

    @torch.no_grad()
    def _scale(self, weights: Iterable[GatedWeight]) -> None:
        """Multiply slices in place. What they were is kept beside, for the slices that are not whole only."""
        touched = {id(w.parameter): w.parameter for w in weights}
        for key, parameter in touched.items():
            self._restore_one(key)
            for weight in (w for w in self._in_place if w.parameter is parameter):
                self._scale_one(key, weight)

    def _factor(self, weight: GatedWeight, formed: Tensor) -> Tensor | None:
        """What a formed weight is multiplied by, shaped to broadcast; None where that is all ones."""
        factor = self._factors_of(weight)
        if bool((factor == 1).all()):
            return None
        return factor.to(formed.device, formed.dtype).reshape(
            [-1 if i == weight.axis else 1 for i in range(formed.dim())]
        )

    def _factors_of(self, weight: GatedWeight) -> Tensor:
        return torch.cat([self.values[weight.group], torch.ones(1)])[weight.where]

    def _scale_one(self, key: int, weight: GatedWeight) -> None:
        factor = self._factors_of(weight)
        index = (factor != 1).nonzero().flatten()
        if not len(index):
            return
        parameter, device = weight.parameter, weight.parameter.device
        index = index.to(device)
        slices = parameter.data.index_select(weight.axis, index)
        self._saved.setdefault(key, []).append((parameter, weight.axis, index, slices))
        shape = [-1 if i == weight.axis else 1 for i in range(parameter.dim())]
        scale = factor[index.cpu()].to(device, parameter.dtype).reshape(shape)
        parameter.data.index_copy_(weight.axis, index, slices * scale)

    def _restore(self) -> None:
        for key in list(self._saved):
            self._restore_one(key)

    @torch.no_grad()
    def _restore_one(self, key: int) -> None:
        for parameter, axis, index, slices in reversed(self._saved.get(key, [])):
            parameter.data.index_copy_(axis, index, slices)
        self._saved.pop(key, None)  # only now: an interrupt in between must not lose them
