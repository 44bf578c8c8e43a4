"""What a state of LHSPG holds beside the variant's, and how a run goes on from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shearfx.errors import PlanError, message
from shearfx.optim.options import check_state
from shearfx.running_time import unit_name

if TYPE_CHECKING:
    from shearfx.optim.lhspg import LHSPG


def state_of(optimizer: LHSPG) -> dict[str, Any]:
    """All that LHSPG knows: tensors, numbers, strings, lists and dicts."""
    return {
        **_what(optimizer), "steps": optimizer.steps, "history": [dict(entry) for entry in optimizer.history],
        "picks": [{name: list(gone) for name, gone in pick.items()} for pick in optimizer.picks],
        "carried": optimizer.carrier.state_dict(), "merges": optimizer.merger.state_dict(),
        "stand_ins": {} if optimizer.stand_ins is None else optimizer.stand_ins.state_dict(),
        "since_merge": optimizer.restart.since, "scores": optimizer.scorer.state_dict(),
    }  # fmt: skip


def _what(optimizer: LHSPG) -> dict[str, Any]:
    """What a state must agree in."""
    schedule, rule = optimizer.schedule, optimizer.carrier.rule
    return {
        "schedule": [schedule.warmup, schedule.periods, schedule.period_length], "amount": optimizer.amount,
        "carrier": type(optimizer.carrier).__name__, "compensated": optimizer.stand_ins is not None,
        "asked": {
            "merge": optimizer.merge, "penalty": rule.penalty, "strength": rule.strength,
            "half_space_eps": str(rule.epsilon), "saliency": optimizer.scorer.name, "ranking": optimizer.ranking,
            "unit": unit_name(optimizer.unit),
        },
    }  # fmt: skip


def go_on(optimizer: LHSPG, own: Mapping[str, Any] | None) -> None:
    """Set an optimiser to what :func:`state_of` returned; the variant's own state is not part of it.

    Raises:
        PlanError: the state is of another schedule, target, carrier or model.
    """
    if own is None:
        raise PlanError(message("this is no state of LHSPG", todo="load what LHSPG.state_dict() returned"))
    check_state(own, _what(optimizer))
    picks = [{name: [int(i) for i in gone] for name, gone in pick.items()} for pick in own["picks"]]
    known = {g.name for g in optimizer.chooser.groups}
    for name in (*(name for pick in picks for name in pick), *own["carried"]["fading"]):
        if name not in known:
            raise PlanError(message(f"the state knows a group {name!r}, which this model does not have"))
    optimizer.merger.load_state_dict(own["merges"])
    optimizer.picks = picks
    optimizer.carrier.load_state_dict(own["carried"], optimizer.redundant)
    if optimizer.stand_ins is not None:
        optimizer.stand_ins.load_state_dict(own["stand_ins"])
    optimizer.steps, optimizer.restart.since = int(own["steps"]), own["since_merge"]
    optimizer.history = [dict(entry) for entry in own["history"]]
    optimizer.scorer.load_state_dict(own["scores"])
