"""Training language models: losses, the loop, mixtures of sources, and dynamic recovery."""

from shearfx.training.judging import losses_of
from shearfx.training.loop import Loop
from shearfx.training.losses import token_loss
from shearfx.training.recovery import Recovery, Round, Stage, weights_of
from shearfx.training.sampling import Mixture

__all__ = ["Loop", "Mixture", "Recovery", "Round", "Stage", "losses_of", "token_loss", "weights_of"]
