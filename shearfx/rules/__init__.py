"""Operator rules, one file per family. Importing this package registers them all."""

from __future__ import annotations

from shearfx.rules import (
    attention,
    contraction,
    creation,
    indexing,
    normalisation,
    pointwise,
    reductions,
    segments,
    views,
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
    "normalisation",
    "pattern",
    "pointwise",
    "reductions",
    "rule",
    "segments",
    "views",
]
