"""Objectives for SVI: importance-weighted bounds, decompositions of the ELBO, and weights of the KL divergence."""

from pyrovae.objectives.bounds import (
    CombinedImportanceWeightedELBO,
    ImportanceWeightedELBO,
    MultiplyImportanceWeightedELBO,
    PartiallyImportanceWeightedELBO,
    RenyiELBO,
)
from pyrovae.objectives.decompositions import DIPVAEELBO, BetaTCELBO, FactorVAEELBO, InfoVAEELBO
from pyrovae.objectives.gradient_estimators import Gradient
from pyrovae.objectives.kl_weights import (
    GECO,
    Beta,
    Capacity,
    CyclicalWarmup,
    FreeBits,
    KLConstraint,
    KLWeight,
    LearnedKLWeight,
    LinearWarmup,
    ShapedKL,
)
from pyrovae.objectives.recordable_elbos import recordable
from pyrovae.objectives.weighted import KLControl, WeightedELBO, elbo_parts

__all__ = [
    "DIPVAEELBO",
    "GECO",
    "Beta",
    "BetaTCELBO",
    "Capacity",
    "CombinedImportanceWeightedELBO",
    "CyclicalWarmup",
    "FactorVAEELBO",
    "FreeBits",
    "Gradient",
    "ImportanceWeightedELBO",
    "InfoVAEELBO",
    "KLConstraint",
    "KLControl",
    "KLWeight",
    "LearnedKLWeight",
    "LinearWarmup",
    "MultiplyImportanceWeightedELBO",
    "PartiallyImportanceWeightedELBO",
    "RenyiELBO",
    "ShapedKL",
    "WeightedELBO",
    "elbo_parts",
    "recordable",
]
