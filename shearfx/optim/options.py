"""What LHSPG can be asked for, and what makes no sense."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn

from shearfx.errors import PlanError, message
from shearfx.gating.gates import Gates
from shearfx.low_rank import LowRank, plain_weight
from shearfx.saliency import Scores
from shearfx.saliency.combined import Combined
from shearfx.spending import Ranking

Merge = Literal["end", "period", "never"]
Carry = Literal["gates", "weights"]


EQUAL = 1e-5
"""Scores that differ by less, relative to the largest, differ by rounding only."""


def paper() -> dict[str, Any]:
    """Algorithm 4 as it is printed: K structures, whatever their size, by the five scores of the authors' code ranked
    over all groups; weights fade by equation (2), and every period ends with a merge."""
    return {
        "carrier": "weights", "merge": "period", "saliency": Combined(), "ranking": "loss", "unit": "structures",
        "penalty": "ramp", "half_space_eps": 0.0, "floor": 0.0,
    }  # fmt: skip


def check(
    target: int | float, epsilon: float, penalty: str, strength: float, merge: str, variant: str,
    ranking: str | None, carrier: str, data: Any, compensate: Any,
) -> None:  # fmt: skip
    """Raise PlanError for options that make no sense."""
    where = "LHSPG(...)"
    if isinstance(target, bool) or not isinstance(target, (int, float)) or target < 0 or target != target:
        raise PlanError(message(f"target={target!r} is no amount", where=where, todo="pass 0.2 for 20%"))
    if isinstance(target, float) and target >= 1:
        raise PlanError(message(f"a share of {target:g} is not below 1", where=where, todo="pass 0.2 for 20%"))
    for name, value, known in (
        ("penalty", penalty, ("ramp", "constant")), ("merge", merge, ("end", "period", "never")),
        ("variant", variant, ("adamw", "sgd")), ("ranking", ranking, (None, *get_args(Ranking))),
        ("carrier", carrier, ("gates", "weights")),
    ):  # fmt: skip
        if value not in known:
            raise PlanError(message(f"there is no {name} {value!r}", where=where, todo=f"choose one of {known}"))
    if epsilon != epsilon or epsilon >= 1:
        what = f"half_space_eps={epsilon!r} would zero every structure at once"
        raise PlanError(message(what, where=where, todo="pass a number below 1; -inf for no test"))
    if not 0 <= strength < float("inf") or (penalty == "constant" and strength == 0):
        raise PlanError(
            message(f"a constant penalty of {strength:g} fades nothing", where=where, todo="pass strength=")
        )
    for name, batches in (("data", data), ("compensate", compensate)):
        if batches is not None and not callable(batches) and iter(batches) is batches:
            what = f"{name}= is a {type(batches).__name__}, which can be read once; every period reads it"
            raise PlanError(message(what, where=where, todo="pass a list, or something else that starts anew"))
    if compensate is not None and carrier != "gates":
        what = "what stands in for fading structures comes in as their gates shut"
        raise PlanError(message(what, where=where, todo='pass carrier="gates"'))


def whole(model: nn.Module) -> nn.Module:
    """The model inside ``DistributedDataParallel``; any other is itself.

    Raises:
        PlanError: parameters are sharded.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "placements") or type(parameter).__name__ == "FlatParameter":
            what = f"{name} is sharded over processes, and structures are slices of whole weights"
            raise PlanError(message(what, where="LHSPG(...)", todo="use DistributedDataParallel"))
    return model


def check_gated(gates: Gates, adapters: Mapping[str, LowRank]) -> None:
    """Raise PlanError where a gate would scale a weight and leave out what its adapter adds."""
    bases = {id(one.weight): one.path for one in adapters.values()}
    for place in gates.places.weights:
        if id(place.parameter) in bases and not place.formed:
            what = f"{place.group} is gated in a weight that has an adapter, which the gate would not reach"
            todo = 'pass carrier="weights", or leave the layer out of target_modules='
            raise PlanError(message(what, where=bases[id(place.parameter)], todo=todo))


def check_writable(model: nn.Module, adapters: Mapping[str, LowRank]) -> None:
    """Raise PlanError where what was learnt cannot move into a base: it is quantised, or another layer's weight too."""
    users = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for one in adapters.values():
        todo = 'pass merge="never" and carrier="gates"'
        if not one.weight.is_floating_point():
            what = f"{one.path} has a quantised base, into which nothing can be merged"
            raise PlanError(message(what, todo=todo))
        if users[id(one.weight)] > 1:
            what = f"the weight of {one.path} is also another layer's, where its update does not belong"
            raise PlanError(message(what, todo=f"{todo}, or leave the layer out of target_modules="))


def check_readable(adapters: Mapping[str, LowRank]) -> None:
    """Raise PlanError where weights are to be looked at, and a quantised base cannot be dequantised."""
    for one in adapters.values():
        if not one.weight.is_floating_point():
            plain_weight(one.base)
            return  # one stands for all


def check_scores(scores: Scores, gone: Mapping[str, Sequence[int]]) -> None:
    """Raise PlanError where no structure that is still there is less salient than another of its group."""
    if not any(_differ(score, gone.get(name, ())) for name, score in scores.items()):
        todo = "choose another saliency, or train first (warmup=)"
        raise PlanError(message("all structures of every group score alike, so none is less salient", todo=todo))


def _differ(score: torch.Tensor, gone: Iterable[int]) -> bool:
    here = torch.ones(len(score), dtype=torch.bool)
    here[list(gone)] = False
    left = score[here.to(score.device)].double()
    return len(left) > 0 and bool(left.max() - left.min() > EQUAL * left.abs().max())


def check_state(own: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise PlanError where a state is of a run with other options."""
    what = ""
    if list(own["schedule"]) != here["schedule"] or own["carrier"] != here["carrier"]:
        what = f"the state is of a run with schedule {list(own['schedule'])} and a {own['carrier']}"
    elif own["compensated"] != here["compensated"]:
        what = f"the state is of a run {'with' if own['compensated'] else 'without'} compensate="
    elif abs(own["amount"] - here["amount"]) > 1e-6 * max(1.0, here["amount"]):
        what = f"the state is of a run with a target of {own['amount']:g}"
    else:
        # a state of an older version does not say
        for name, value in dict(own.get("asked", here["asked"])).items():
            if value != here["asked"][name]:
                what = f"the state is of a run with {name}={value!r}, and this one has {here['asked'][name]!r}"
    if what:
        where = f"this one has {here['schedule']}, {here['carrier']}, {here['amount']:g}"
        raise PlanError(message(what, where=where, todo="use the same options"))
