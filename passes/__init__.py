"""The passes, one a file, and the pipeline that analysis runs."""

from __future__ import annotations

from shearfx.passes.compose import ComposeOperators
from shearfx.passes.infer import InferDims
from shearfx.passes.manager import Pass, run
from shearfx.passes.node_groups import DetectNodeGroups
from shearfx.passes.partition import PartitionGroups

ANALYSIS: tuple[Pass, ...] = (ComposeOperators(), InferDims(), DetectNodeGroups(), PartitionGroups())
"""Composition, dimension inference, node groups, pruning groups."""

__all__ = ["ANALYSIS", "ComposeOperators", "DetectNodeGroups", "InferDims", "PartitionGroups", "Pass", "run"]
