"""What the values of a configuration have to be, each and together."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from shearfx.config_values import bad_value
from shearfx.errors import PlanError, message

if TYPE_CHECKING:
    from shearfx.config import ShearConfig

SHARES = ("ratio", "floor", "prune_share", "warmup", "balance", "distill", "dropout")
COUNTS = ("sequence_length", "validation", "scoring_windows", "fitting_windows", "periods", "rounds", "rank",
          "batch_size", "accumulate", "cuts", "knowledge_windows", "missed_windows", "alpha")  # fmt: skip
POSITIVE = ("alpha", "checkpoint_seconds")
BUDGETS = ("tokens", "steps", "minutes")


def check(config: ShearConfig) -> None:
    """Raise PlanError unless the values make sense."""
    _check_numbers(config)
    _check_what_goes(config)
    _check_budget(config)
    _check_fading(config)


def _check_numbers(config: ShearConfig) -> None:
    """Each by itself."""
    for name in SHARES:
        value = getattr(config, name)
        inside = 0 < value < 1 if name == "ratio" else 0 <= value <= 1
        if not inside or (name in ("floor", "warmup", "dropout") and value == 1):
            raise bad_value(name, value, "a share between 0 and 1")
    for name in COUNTS:
        least = 2 if name == "sequence_length" else 1
        if getattr(config, name) < least:
            raise bad_value(name, getattr(config, name), f"a whole number of at least {least}")
    if config.merge_warmup < 0:
        raise bad_value("merge_warmup", config.merge_warmup, "a whole number of at least 0")
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, float) and not math.isfinite(value) and field.name != "half_space_eps":
            raise bad_value(field.name, value, "a number")
    if not 0 <= config.seed < 2**62:
        raise bad_value("seed", config.seed, "a whole number of at least 0, below 2**62")
    if config.weight_decay < 0:
        raise bad_value("weight_decay", config.weight_decay, "a number of at least 0")
    for name in POSITIVE:
        if not getattr(config, name) > 0:
            raise bad_value(name, getattr(config, name), "a positive number")
    if config.milliseconds is not None and not 0 < config.milliseconds < math.inf:
        raise bad_value("milliseconds", config.milliseconds, "a positive number, or null")
    if config.lr != "auto" and not config.lr > 0:
        raise bad_value("lr", config.lr, 'a positive number, or "auto"')
    if config.round_to != "auto" and config.round_to < 1:
        raise bad_value("round_to", config.round_to, 'a whole number of at least 1, or "auto"')
    if config.layers != "auto" and config.layers < 0:
        raise bad_value("layers", config.layers, 'a number of layers, or "auto"')
    if config.branches != "auto" and config.branches < 0:
        raise bad_value("branches", config.branches, 'a number of branches, or "auto"')
    if isinstance(config.gamma, float) and not 0 <= config.gamma < 1:
        raise bad_value("gamma", config.gamma, 'a share below 1, "auto" or null')
    if not all(0 < ratio < 1 for ratio in config.knowledge_ratios) or not config.knowledge_ratios:
        raise bad_value("knowledge_ratios", config.knowledge_ratios, "shares between 0 and 1")


def _check_what_goes(config: ShearConfig) -> None:
    """How much, of what, and by which scores."""
    if config.milliseconds is not None and config.unit == "flops":
        what = f"milliseconds: {config.milliseconds:g} is a budget of time, and unit: flops"
        raise PlanError(message(what, where="configuration", todo="set unit: milliseconds, or milliseconds: null"))
    if config.milliseconds is not None and config.ratio != type(config).ratio:
        what = f"milliseconds: {config.milliseconds:g} says how much goes, and so does ratio: {config.ratio:g}"
        raise PlanError(message(what, where="configuration", todo="leave one of them out"))
    if config.of != "all" and config.counts != "params":
        what = f"of: {config.of} is about parameters, and unit: {config.counts}"
        raise PlanError(message(what, where="configuration", todo="set of: all"))
    if config.layers != 0 and config.knowledge is not None:
        what = f"layers: {config.layers} goes before widths are cut, and knowledge: was measured on the whole model"
        raise PlanError(message(what, where="knowledge", todo="set knowledge: null and a gamma, or layers: 0"))
    if config.calibrate != "none" and config.knowledge is not None:
        what = f"calibrate: {config.calibrate} lays what is measured beside this run's own scores"
        raise PlanError(message(what, where="knowledge", todo="set knowledge: null, or calibrate: none"))
    if config.branches != 0 and config.scope == "uniform":
        what = f"branches: {config.branches} makes layers differ, and scope: uniform cuts all layers alike"
        raise PlanError(message(what, where="branches", todo="set branches: 0, or scope: global"))
    if config.branches != 0 and config.prune_share > 0:
        what = f"branches: {config.branches} go at once, and prune_share: {config.prune_share:g} lets structures fade"
        raise PlanError(message(what, where="branches", todo="set branches: 0, or prune_share: 0"))
    if config.calibrate != "none" and config.prune_share > 0:
        what = f"calibrate: {config.calibrate} is for structures that go at once"
        raise PlanError(message(what, where="calibrate", todo="set prune_share: 0, or calibrate: none"))


def _check_budget(config: ShearConfig) -> None:
    """One of the three, and enough for a step."""
    given = {name: getattr(config, name) for name in BUDGETS if getattr(config, name) is not None}
    if len(given) != 1:
        shown = " and ".join(f"{name}: {value:g}" for name, value in given.items()) or "none given"
        todo = f"set one of {', '.join(BUDGETS)}, and the others to null"
        raise PlanError(message(f"a run has one budget ({shown})", where="configuration", todo=todo))
    ((name, value),) = given.items()
    if value < 0 or (name == "minutes" and value == 0):
        raise bad_value(name, value, "a positive number")
    step = config.batch_size * config.accumulate * config.sequence_length
    if name == "tokens" and 0 < value < step:
        shown = f"{config.batch_size} x {config.accumulate} x {config.sequence_length}"
        what = f"tokens: {value} are less than one step takes, {step} ({shown}: batch_size, accumulate, "
        what += "sequence_length)"
        raise PlanError(message(what, where="configuration", todo="raise tokens, or set it to 0 for no training"))


def _check_fading(config: ShearConfig) -> None:
    """What does not go together where LHSPG prunes."""
    if config.prune_share == 0:
        return
    if (config.merge == "period" or config.carrier == "weights") and config.distill > 0:
        how = f"merge: {config.merge}, carrier: {config.carrier}"
        what = f"{how} change the weights that the full model's word comes from"
        raise PlanError(message(what, where="distill", todo="set distill: 0, or merge: end and carrier: gates"))
    if config.carrier == "weights" and config.compensation != "none":
        what = "carrier: weights fades the weights that would be refitted"
        raise PlanError(message(what, where="compensation", todo="set compensation: none, or carrier: gates"))
    if config.compensation == "bias":
        what = "compensation: bias is for structures that go at once"
        raise PlanError(message(what, where="compensation", todo="set prune_share: 0, or another compensation"))
