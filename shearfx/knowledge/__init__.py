"""Where in a model its knowledge sits: what it loses with each node group alone. LoRAShear, Algorithm 3."""

from shearfx.knowledge.analysis import estimate, knowledge_distribution
from shearfx.knowledge.bench import Cost
from shearfx.knowledge.calibrating import factors
from shearfx.knowledge.distribution import KnowledgeDistribution, Row, Standing
from shearfx.knowledge.possible import check_possible, of_file, prunable
from shearfx.knowledge.trials import name_of

__all__ = [
    "Cost",
    "KnowledgeDistribution",
    "Row",
    "Standing",
    "check_possible",
    "estimate",
    "factors",
    "knowledge_distribution",
    "name_of",
    "of_file",
    "prunable",
]
