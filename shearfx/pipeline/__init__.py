"""LoRAShear from end to end, in stages that are recorded and can be resumed."""

from shearfx.pipeline.shearing import Sheared, Shearing
from shearfx.pipeline.study import Study
from shearfx.pipeline.tellers import Silent, Teller

__all__ = ["Sheared", "Shearing", "Silent", "Study", "Teller"]
