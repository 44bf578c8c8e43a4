"""Options that are set and cannot act, beside the others that were asked for."""

from __future__ import annotations

import dataclasses

from shearfx.config import ShearConfig

FADING = ("warmup", "periods", "penalty", "strength", "half_space_eps", "carrier", "merge_moments", "merge_warmup")
RECOVERY = (
    "pretrain", "instruct", "min_tokens", "max_tokens", "sequence_length", "check_tokenizer", "validation", "rounds",
    "balance", "tolerance", "distill", "tokens", "steps", "minutes", "rank", "alpha", "dropout", "targets", "lr",
    "weight_decay", "batch_size", "accumulate", "gradient_checkpointing", "dtype", "quantize", "device",
    "seed", "checkpoint_seconds", "recipe",
)  # fmt: skip
"""What recovery by itself looks at."""
KNOWLEDGE = (
    "pretrain", "instruct", "min_tokens", "max_tokens", "sequence_length", "validation", "kinds", "exclude", "scope",
    "gamma", "knowledge_ratios", "knowledge_windows", "tokens", "batch_size", "dtype", "device", "seed", "recipe",
)  # fmt: skip
"""What the knowledge analysis by itself looks at."""


def idle(config: ShearConfig) -> dict[str, str]:
    """Options of a whole run that were given other values than the recipe's and do nothing, each with the reason.

    >>> idle(ShearConfig(periods=7, branches=2, missed_windows=8))
    {'periods': 'prune_share: 0 lets all structures go at once'}
    """
    given = _given(config)
    found: dict[str, str] = {}
    if config.prune_share == 0:
        found |= {name: "prune_share: 0 lets all structures go at once" for name in FADING if name in given}
        if config.merge == "period" and "merge" in given:
            found["merge"] = "there are no periods with prune_share: 0"
    elif "cuts" in given:
        found["cuts"] = f"prune_share: {config.prune_share:g} lets structures go in periods"
    if config.gamma is None and config.knowledge is None and config.calibrate == "none":
        why = "nothing asks for a knowledge analysis (gamma, calibrate)"
        found |= {name: why for name in ("knowledge_ratios", "knowledge_windows") if name in given}
    if not config.layers and not config.branches and "missed_windows" in given:
        found["missed_windows"] = "no layers or branches go whole"
    return found


def beside(config: ShearConfig, used: tuple[str, ...]) -> list[str]:
    """Options that were given other values than the recipe's, and are none of those that a stage looks at."""
    return [name for name in _given(config) if name not in used]


def _given(config: ShearConfig) -> list[str]:
    usual = ShearConfig.paper() if config.recipe == "paper" else ShearConfig()
    names = (field.name for field in dataclasses.fields(config))
    return [name for name in names if getattr(config, name) != getattr(usual, name)]
