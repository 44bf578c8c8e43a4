"""Compensation while structures fade: those that stay take over, by least squares, what the fading ones are read for.

Fitted when a period's structures are picked, it comes in as their gates shut and is whole when they are zero. Nothing
of the base is written until the model is cut (:meth:`StandingIn.fold`).

Source: of its own (see ``shearfx.gating.stand_ins``); LoRAShear has no such step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from shearfx.adapters import base_name
from shearfx.compensation import RIDGE
from shearfx.errors import PlanError, message
from shearfx.gating.gates import Gates
from shearfx.gating.moments import second_moments
from shearfx.gating.sites import GateSite, base_layer
from shearfx.gating.stand_ins import StandIn, fit
from shearfx.gradients import call
from shearfx.low_rank import LowRank
from shearfx.optim.ranks import add_up
from shearfx.pruning_plan import PruningPlan
from shearfx.tracing import evaluation


class StandingIn:
    """Fits stand-ins period by period, and keeps them on the gates.

    Args:
        gates: on the live model.
        adapters: of it, by path.
        batches: read anew each period: arguments by name, in order (a tuple), or one tensor.
        ridge: see :func:`shearfx.gating.stand_ins.fit`.

    Memory: float32 ``[inputs, inputs]`` for each linear layer that reads a fading group while it is fitted, and
    ``[gone, kept]`` of its inputs from then on, which the state holds too.

    Raises:
        PlanError: no linear layer reads a group.
    """

    def __init__(
        self, gates: Gates, adapters: Mapping[str, LowRank], batches: Iterable[Any], ridge: float = RIDGE
    ) -> None:
        self.gates, self.adapters, self.batches, self.ridge = gates, adapters, batches, ridge
        self.sites: dict[str, GateSite] = {}
        for site in gates.places.sites:
            if site.side == "in" and isinstance(base_layer(site.module), (nn.Linear, Conv1D)):
                self.sites[site.path] = site
        if gates.groups and not self.sites:
            what = "no linear layer reads what may become redundant, so nothing can be compensated"
            raise PlanError(message(what, where="LHSPG(compensate=...)", todo="leave it out"))
        read = {group for site in self.sites.values() for group, _ in site.where}
        self.alone = [name for name in gates.groups if name not in read]
        """The groups that fade without anything that stands in for them: no linear layer reads them."""

    @torch.no_grad()
    def fit(self, fading: Mapping[str, Tensor], redundant: Mapping[str, Iterable[int]]) -> None:
        """A period begins: fit stand-ins for what fades in it.

        Args:
            fading: group to LongTensor of structures; their gates are open still.
            redundant: all that was picked, these included.
        """
        chosen = [site for site in self.sites.values() if any(group in fading for group, _ in site.where)]
        model = self.gates.model
        doubled = any(p.dtype == torch.float64 for p in model.parameters())
        precision = torch.float64 if doubled else torch.float32
        with evaluation(model), second_moments(chosen) as moments:
            for batch in self.batches:
                call(model, batch)
        for site in chosen:
            going, stays = torch.zeros(site.size, dtype=torch.bool), torch.ones(site.size, dtype=torch.bool)
            for group, where in site.where:
                going |= torch.isin(where, fading.get(group, torch.empty(0, dtype=torch.long)))
                stays &= ~torch.isin(where, torch.tensor(sorted(redundant.get(group, ())), dtype=torch.long))
            if site.path in moments and going.any() and stays.any():
                summed = add_up(moments[site.path]).to(precision)
                new = fit(summed, going.nonzero().flatten(), stays.nonzero().flatten(), self.ridge)
                self.gates.stand_ins.setdefault(site.path, []).append(new)

    @torch.no_grad()
    def finish(self) -> None:
        """A period is over: one stand-in for each place, and adapters have no part in the replaced inputs, until they
        learn from them again."""
        for path, ones in self.gates.stand_ins.items():
            if len(ones) == 2:
                self.gates.stand_ins[path] = [ones[1].after(ones[0])]
        self._fold_adapters()

    def _fold_adapters(self) -> None:
        """What A has for replaced inputs moves to what stands in for them: the function stays."""
        for path, (one,) in self.gates.stand_ins.items():
            if path in self.adapters:
                a = self.adapters[path].a.data
                gone, kept = one.gone.to(a.device), one.kept.to(a.device)
                a[:, kept] += a[:, gone] @ one.factor.to(a)
                a[:, gone] = 0

    @contextlib.contextmanager
    def folded(self) -> Iterator[None]:
        """For the while, adapters have no part in replaced inputs; between periods."""
        before = {path: self.adapters[path].a.data.clone() for path in self.gates.stand_ins if path in self.adapters}
        try:
            with torch.no_grad():
                self._fold_adapters()
            yield
        finally:
            for path, a in before.items():
                self.adapters[path].a.data.copy_(a)

    @torch.no_grad()
    def fold(self, small: nn.Module, plan: PruningPlan) -> None:
        """Add to the weights of a cut model what stands in for their missing inputs.

        Args:
            small: what the plan made of the live model or its base between periods, adapters :meth:`folded`.
        """
        own = dict(small.named_parameters(remove_duplicate=False))
        for path, one, name in self._named(own):
            base: Any = base_layer(self.sites[path].module)
            turned = isinstance(base, Conv1D)
            change = _as_cut(_stood_in(base, one), plan, name, turned)
            target = own[name].data
            target.copy_(target.double() + change.to(target.device))

    @torch.no_grad()
    def fits(self, plan: PruningPlan) -> dict[str, Tensor]:
        """By name: each weight after the cut, on the CPU, with what stands in for the missing inputs.

        Args:
            plan: of what is redundant between periods, adapters :meth:`folded`.
        """
        found = {}
        for path, one, name in self._named(()):
            base: Any = base_layer(self.sites[path].module)
            turned = isinstance(base, Conv1D)
            weight = base.weight.detach()
            full = weight.T if turned else weight
            new = full[:, one.kept.to(full.device)].double() + _stood_in(base, one)
            found[name] = _as_cut(new.to(weight.dtype), plan, name, turned)
        return found

    def _named(self, own: Collection[str]) -> Iterator[tuple[str, StandIn, str]]:
        """Path, stand-in, and the name of the weight: as in ``own``, or else as it is without adapters."""
        for path, (one,) in self.gates.stand_ins.items():
            module = self.sites[path].module
            live = f"{path}.weight" if base_layer(module) is module else f"{path}.base_layer.weight"
            name = live if live in own else base_name(live)
            assert name is not None
            yield path, one, name

    def state_dict(self) -> dict[str, Any]:
        """Every stand-in, by place."""
        return {path: [one.state_dict() for one in ones] for path, ones in self.gates.stand_ins.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with them."""
        self.gates.stand_ins = {path: [StandIn.of_state(one) for one in ones] for path, ones in state.items()}


def _stood_in(base: Any, one: StandIn) -> Tensor:
    """What a layer does with the missing inputs' stand-ins, as a weight of the kept ones: float64 ``[out, kept]``."""
    weight = base.weight.detach()
    full = weight.T if isinstance(base, Conv1D) else weight
    return full[:, one.gone.to(full.device)].double() @ one.factor.to(full.device).double()  # type: ignore[no-any-return]


def _as_cut(new: Tensor, plan: PruningPlan, name: str, turned: bool) -> Tensor:
    """A layer's weight ``[out, kept]`` without the rows that a plan cuts, on the CPU, in the layer's own layout.

    Args:
        new: the weight.
        plan: what stays of rows.
        name: of the weight, in the plan.
        turned: whether the layer keeps it as ``[in, out]``.
    """
    rows = plan.kept.get(name, {}).get(1 if turned else 0)
    new = new if rows is None else new[rows.to(new.device)]
    return (new.T if turned else new).cpu()
