"""Saliency: what each structure is worth, by a proxy chosen beforehand. One interface, a registry by name."""

from shearfx.saliency.base import REGISTRY, Saliency, Scores, find, register
from shearfx.saliency.combined import Combined
from shearfx.saliency.compensated import CompensatedFisher
from shearfx.saliency.evidence import Evidence, Progress
from shearfx.saliency.fisher import Fisher
from shearfx.saliency.flap import Flap
from shearfx.saliency.learnt import LoraAverageMagnitude, LoraCosine, LoraMagnitude, LoraTaylor, LoraTaylor2
from shearfx.saliency.llm_pruner import LlmPrunerElement1, LlmPrunerElement2, LlmPrunerVector1, LlmPrunerVector2
from shearfx.saliency.loraprune import LoraPrune
from shearfx.saliency.plain import Magnitude, Random
from shearfx.saliency.sparsegpt import SparseGpt
from shearfx.saliency.taylor import Taylor
from shearfx.saliency.wanda import WandaSp

__all__ = [
    "REGISTRY",
    "Combined",
    "CompensatedFisher",
    "Evidence",
    "Fisher",
    "Flap",
    "LlmPrunerElement1",
    "LlmPrunerElement2",
    "LlmPrunerVector1",
    "LlmPrunerVector2",
    "LoraAverageMagnitude",
    "LoraCosine",
    "LoraMagnitude",
    "LoraPrune",
    "LoraTaylor",
    "LoraTaylor2",
    "Magnitude",
    "Progress",
    "Random",
    "Saliency",
    "Scores",
    "SparseGpt",
    "Taylor",
    "WandaSp",
    "find",
    "register",
]
