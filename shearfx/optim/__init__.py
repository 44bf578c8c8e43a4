"""LHSPG, the optimiser, and what it is made of."""

from shearfx.optim.lhspg import LHSPG

__all__ = ["LHSPG"]
