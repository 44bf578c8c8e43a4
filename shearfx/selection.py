"""Which groups a plan may cut, and which of them only together."""

from __future__ import annotations

import fnmatch
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from shearfx.bundles import Bundle, bundles
from shearfx.errors import PlanError, message
from shearfx.graph import CERTIFICATES, Graph, Group
from shearfx.saliency.base import Saliency

OPTIONAL_KINDS = ("hidden", "head_dim")
"""Kinds that plans cut only when asked to: one cut goes through all layers at once."""
UNSEEN = "{} does not tell what it is worth (saliency=)"
"""Why a group stays whole that a saliency does not see."""


@dataclass(frozen=True)
class Selection:
    """What a plan may cut; the fields are those of :func:`shearfx.plan`."""

    allow: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    kinds: tuple[str, ...] | None = None
    exclude_kinds: tuple[str, ...] = ()
    scope: Literal["global", "uniform"] = "global"
    form: Literal["module", "fx"] = "module"
    unprunable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tied:
    """Groups that are cut together: from each as many structures that structures times weight are equal."""

    groups: tuple[Group, ...]
    weights: tuple[int, ...]

    @property
    def kind(self) -> str:
        """The kinds in it."""
        return "+".join(dict.fromkeys(group.kind for group in self.groups))


def select(graph: Graph, model: nn.Module | None, wanted: Selection) -> tuple[list[Tied], dict[str, list[Group]]]:
    """The tied groups that may be cut, and the groups that may not, by reason.

    Raises:
        PlanError: a kind, a certificate or a pattern that nothing in the graph has.
    """
    _check(graph, wanted)
    refused: dict[str, list[Group]] = {}
    allowed = {}
    for group in graph.groups:
        reason = _refusal(graph, group, wanted)
        if reason:
            refused.setdefault(reason, []).append(group)
        elif group.size > 1:
            allowed[group.name] = group
    admitted: list[Tied] = []
    for one, reason in _admissible(graph, model, wanted.form) if allowed else ():
        left = [g for g in one.groups if g.name in allowed]
        if not reason and len(left) < len(one.groups):
            reason = "tied to groups that may not be cut"
        if not reason:
            admitted.append(one)
        elif left:
            refused.setdefault(reason, []).extend(left)
    if wanted.scope == "uniform":
        configured = wanted.form == "module" and hasattr(model, "config")
        admitted = alike(admitted, place_counts=not configured)
    return admitted, refused


def seen(
    tied: Sequence[Tied],
    refused: dict[str, list[Group]],
    saliency: Saliency,
    graph: Graph,
    model: nn.Module | None,
    kinds: Sequence[str] | None,
) -> list[Tied]:
    """Without the groups that a saliency does not see, which stay whole; with those of a kind that was asked for and
    of which it sees none, and with all where it sees none at all: these it refuses itself.

    Args:
        tied, refused: of :func:`select`; what is left out is added to ``refused``.
        saliency: which structures go by.
        graph, model: as of :func:`select`.
        kinds: which were asked for; None for the default.
    """
    groups = list({g.name: g for one in tied for g in one.groups}.values())
    blind = {} if model is None else {g.name: g for g in saliency.unseen(graph, model, groups)}
    known = {g.kind for g in groups if g.name not in blind}
    gone = {name for name, group in blind.items() if group.kind in known or group.kind not in (kinds or ())}
    left = [one for one in tied if not any(g.name in gone for g in one.groups)]
    if not left:
        return list(tied)
    staying = {g.name for one in left for g in one.groups}
    whole = [g for g in groups if g.name not in staying]
    if whole:
        refused.setdefault(UNSEEN.format(saliency.name), []).extend(whole)
    return left


def tell_whole(left_whole: Mapping[str, Sequence[str]], stacklevel: int) -> None:
    """Warn of groups that stay whole, by reason, in the name of whoever asked for a plan.

    Args:
        left_whole: names of groups by reason.
        stacklevel: as of :func:`warnings.warn`.
    """
    for reason, names in left_whole.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        warnings.warn(f"left whole: {', '.join(names[:3])}{more}: {reason}", stacklevel=stacklevel)


def _check(graph: Graph, wanted: Selection) -> None:
    known = sorted({g.kind for g in graph.groups})
    for kind in wanted.kinds or ():
        if kind not in (*known, "all"):
            raise PlanError(message(f"the model has no groups of kind {kind!r}", todo=f"it has {', '.join(known)}"))
    for certificate in wanted.allow:
        if certificate not in CERTIFICATES:
            todo = f"choose from {', '.join(CERTIFICATES)}"
            raise PlanError(message(f"there is no certificate {certificate!r}", where="allow=", todo=todo))
    names = {g.name for g in graph.groups}
    for name in wanted.unprunable:
        if name not in names:
            todo = "take the knowledge analysis of the same model"
            raise PlanError(message(f"the model has no group {name!r}", where="unprunable=", todo=todo))
    check_patterns(graph, "include", wanted.include)
    check_patterns(graph, "exclude", wanted.exclude)


def check_patterns(graph: Graph, what: str, patterns: Sequence[str]) -> None:
    """Raise PlanError where a glob matches nothing in the graph.

    Args:
        graph: of the model.
        what: where the patterns were given.
        patterns: globs, as of :func:`matches`.
    """
    for pattern in patterns:
        if not any(matches(name, pattern) for t in graph.tensors.values() for name in t.aliases):
            todo = "match paths as in model.named_modules(), such as 'model.layers.0.*'"
            raise PlanError(message(f"{what}={pattern!r} matches no module with parameters", todo=todo))


def _refusal(graph: Graph, group: Group, wanted: Selection) -> str:
    """Why a group may not be cut; empty where it may."""
    names = [alias for m in group.members for alias in graph.tensors[m.name].aliases]
    if group.name in wanted.unprunable:
        return "left whole for what it knows (unprunable=)"
    if group.certificate not in ("exact", "compensated", *wanted.allow):
        return f"only {group.certificate} (allow=)"
    if wanted.kinds is None and group.kind in OPTIONAL_KINDS:
        return 'a kind that is not cut by default (kinds="all")'
    if wanted.kinds is not None and not {group.kind, "all"} & {*wanted.kinds}:
        return "not among the kinds asked for (kinds=)"
    if group.kind in wanted.exclude_kinds:
        return "a kind that was excluded (exclude_kinds=)"
    if any(matches(name, pattern) for name in names for pattern in wanted.exclude):
        return "excluded by module (exclude=)"
    if wanted.include and not any(matches(name, pattern) for name in names for pattern in wanted.include):
        return "in no included module (include=)"
    return ""


def matches(name: str, pattern: str) -> bool:
    """Whether a glob matches a parameter's name, or the path of a module around it."""
    parts = name.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[:i]), pattern) for i in range(1, len(parts) + 1))


def _admissible(graph: Graph, model: nn.Module | None, form: Literal["module", "fx"]) -> list[tuple[Tied, str]]:
    """What the form can express, some groups only together, and what it cannot, with the reason."""
    if form == "fx" or model is None:
        return [(Tied((g,), (1,)), "") for g in graph.groups]
    return [(Tied(b.groups, b.weights), _inexpressible(b)) for b in bundles(graph, model)]


def _inexpressible(bundle: Bundle) -> str:
    if bundle.expressible:
        return ""
    return " ".join(
        f'the class cannot express it (form="fx" can): {bundle.reason.splitlines()[0]} {bundle.where}'.split()
    )


def alike(tied: Sequence[Tied], place_counts: bool = True) -> list[Tied]:
    """One for all layers: what has the same kinds, sizes and place within its layer is cut to equal counts.

    Where a configuration has to describe the result, the place does not count: its fields know no places (one width
    for encoder and decoder).
    """
    layers: dict[tuple[object, ...], list[Tied]] = {}
    for one in tied:
        rows = zip(one.groups, one.weights, strict=True)
        key = tuple(sorted((place(g) if place_counts else "", g.kind, g.size, w) for g, w in rows))
        layers.setdefault(key, []).append(one)
    return [
        Tied(tuple(g for t in same for g in t.groups), tuple(w for t in same for w in t.weights))
        for same in layers.values()
    ]


def place(group: Group) -> str:
    """A group's name with the numbers of layers left open: the same for its like in every layer."""
    path, colon, position = group.name.rpartition(":")
    return re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", "*", path) + colon + position
