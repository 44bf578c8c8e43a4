"""Random legal plans: as a hypothesis strategy, and from a seed."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shearfx.bundles import Bundle
from shearfx.graph import Graph, Group
from shearfx.pruning_plan import PruningPlan, of_cuts
from shearfx.testing.optional import st

SOUND = ("exact", "compensated")
"""The certificates under which a cut computes what the masked original computes."""


def prunable(graph: Graph, certificates: Sequence[str] = SOUND) -> list[Group]:
    """The groups of these certificates that have a structure to spare."""
    return [g for g in graph.groups if g.certificate in certificates and g.size > 1]


def plans(graph: Graph, certificates: Sequence[str] = SOUND, form: str = "fx") -> st.SearchStrategy[PruningPlan]:
    """Random plans over all groups of these certificates together; every kept set that is not empty may occur.

    Examples shrink to plans that cut little: groups whole, then few structures removed.

    Args:
        graph: an analysed model.
        certificates: which groups may be cut.
        form: recorded in the plan, and so what :func:`shearfx.verify` compares.
    """
    removed: dict[str, st.SearchStrategy[frozenset[int]]] = {
        group.name: st.one_of(
            st.just(frozenset()), st.frozensets(st.integers(0, group.size - 1), min_size=1, max_size=group.size - 1)
        )
        for group in prunable(graph, certificates)
    }
    sizes = {group.name: group.size for group in graph.groups}

    def plan(cuts: Mapping[str, frozenset[int]]) -> PruningPlan:
        kept = {name: [i for i in range(sizes[name]) if i not in gone] for name, gone in cuts.items() if gone}
        return of_cuts(graph, kept, options={"form": form})

    return st.fixed_dictionaries(removed).map(plan)


def random_cuts(graph: Graph, rng: random.Random, certificates: Sequence[str] = SOUND) -> dict[str, list[int]]:
    """Kept structures of a random plan, by group name: most groups are cut, each to a random size of at least one."""
    kept: dict[str, list[int]] = {}
    groups = prunable(graph, certificates)
    share = rng.choice((0.4, 0.8, 1.0))
    for group in groups:
        if rng.random() < share or (group is groups[-1] and not kept):
            count = rng.randint(1, group.size - 1)
            kept[group.name] = sorted(rng.sample(range(group.size), count))
    return kept


def random_tied_cuts(
    bundles: Iterable[Bundle], rng: random.Random, certificates: Sequence[str] = SOUND
) -> dict[str, list[int]]:
    """The same for what the original class can express: of groups that it holds only together, equal shares go."""
    kept: dict[str, list[int]] = {}
    for bundle in bundles:
        most = steps(bundle, certificates)
        if most > 0:
            gone = rng.randint(1, most) * math.lcm(*bundle.weights)
            rows = zip(bundle.groups, bundle.weights, strict=True)
            kept.update({g.name: sorted(rng.sample(range(g.size), g.size - gone // weight)) for g, weight in rows})
    return kept


def steps(bundle: Bundle, certificates: Sequence[str] = SOUND) -> int:
    """In how many steps a bundle can be cut; 0 where the class cannot express it or a certificate is not admitted."""
    if not bundle.expressible or any(g.certificate not in certificates for g in bundle.groups):
        return 0
    stride = math.lcm(*bundle.weights)
    return min((g.size - 1) * weight // stride for g, weight in zip(bundle.groups, bundle.weights, strict=True))


def plan_of(graph: Graph, kept: Mapping[str, Any], form: str = "fx") -> PruningPlan:
    """The plan that keeps these structures, for verification in one form."""
    return of_cuts(graph, kept, options={"form": form})
