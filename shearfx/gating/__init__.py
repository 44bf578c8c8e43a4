"""Gates on a live model: structures faded, shut, and differentiated by."""

from shearfx.gating.collector import Collector
from shearfx.gating.gates import Gates

__all__ = ["Collector", "Gates"]
