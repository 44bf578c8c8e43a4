"""Layer pruning: whole residual layers go where what comes in is nearly what comes out."""

from shearfx.depth.distances import AngularDistances, angular_distances
from shearfx.depth.dropping import drop_layers
from shearfx.depth.layers import Layer, Layers, find_layers

__all__ = ["AngularDistances", "Layer", "Layers", "angular_distances", "drop_layers", "find_layers"]
