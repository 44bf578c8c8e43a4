"""Layer pruning: whole residual layers go where what comes in is nearly what comes out."""

from shearfx.depth.damage import Damages, least_damage
from shearfx.depth.distances import AngularDistances, angular_distances, nearest_run
from shearfx.depth.dropping import drop_layers, renamed
from shearfx.depth.layers import Layer, Layers, find_layers
from shearfx.depth.shorter import write_shorter
from shearfx.depth.skipping import skipping

__all__ = [
    "AngularDistances", "Damages", "Layer", "Layers", "angular_distances", "drop_layers", "find_layers", "least_damage",
    "nearest_run", "renamed", "skipping", "write_shorter",
]  # fmt: skip
