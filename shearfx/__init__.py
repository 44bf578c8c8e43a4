"""shearfx: structured pruning of PyTorch models, proven to compute the same as the model with the parts zeroed."""

__version__ = "0.1.0"
