"""Which kinds of groups a run may cut."""

from __future__ import annotations

from shearfx.config import ShearConfig
from shearfx.graph import Graph
from shearfx.pipeline.tellers import Teller


def asked(config: ShearConfig) -> tuple[str, ...] | None:
    """What a configuration asks for; None where it says what is the default."""
    return None if config.kinds == ShearConfig.kinds else config.kinds


def kinds_in(graph: Graph, config: ShearConfig, teller: Teller) -> tuple[str, ...]:
    """Those that are asked for. By default, those of the default kinds that the model has: not every model has heads.

    Args:
        graph: of the model.
        config: of the run.
        teller: told which are not there.
    """
    if asked(config) is not None:
        return config.kinds
    there = {group.kind for group in graph.groups}
    found, missing = ([kind for kind in config.kinds if (kind in there) is have] for have in (True, False))
    if not found or not missing:
        return config.kinds
    others = ", ".join(sorted(there - {*found}))
    teller.note(
        f"the model has no groups of kind {', '.join(missing)}; cut are {', '.join(found)} (kinds: also {others})"
    )
    return tuple(found)
