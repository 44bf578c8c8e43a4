"""Operator rules, one file per family. Importing this package registers them all."""

from __future__ import annotations

from shearfx.rules import (
    attention,
    contraction,
    creation,
    indexing,
    lookups,
    normalisation,
    overwriting,
    pointwise,
    products,
    recurrent,
    reductions,
    routing,
    segments,
    space,
    spectral,
    views,
    weights,
)
from shearfx.rules.notation import pattern
from shearfx.rules.registry import RULES, Site, rule

__all__ = [
    "RULES",
    "Site",
    "attention",
    "contraction",
    "creation",
    "indexing",
    "lookups",
    "normalisation",
    "overwriting",
    "pattern",
    "pointwise",
    "products",
    "recurrent",
    "reductions",
    "routing",
    "rule",
    "segments",
    "space",
    "spectral",
    "views",
    "weights",
]
