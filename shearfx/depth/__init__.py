"""Layer pruning: whole residual layers, or branches of them, go where what comes in is nearly what comes out."""

from shearfx.depth.branches import Branches, find_branches
from shearfx.depth.damage import Damages, least_damage, least_missed
from shearfx.depth.distances import AngularDistances, angular_distances, deepest_run, nearest_run, without_gaps
from shearfx.depth.shorter import write_shorter
from shearfx.depth.skipping import skipping
from shearfx.dropping import drop_layers
from shearfx.fewer_layers import renamed
from shearfx.layers import Layer, Layers, find_layers

__all__ = [
    "AngularDistances", "Branches", "Damages", "Layer", "Layers", "angular_distances", "deepest_run", "drop_layers",
    "find_branches", "find_layers", "least_damage", "least_missed", "nearest_run", "renamed", "skipping",
    "without_gaps", "write_shorter",
]  # fmt: skip
