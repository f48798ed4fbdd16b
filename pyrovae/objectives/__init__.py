"""Objectives for SVI.

weighted              ELBO split into reconstruction and KL divergence, which it computes; the KL weight of a run
case_weights          the weight of each datum in an objective
bounds                importance-weighted bounds; power_means has their means
gradient_estimators   pathwise, sticking the landing, DReG, VIMCO
decompositions        beta-TC, FactorVAE, InfoVAE, DIP
classification        ELBO with a classification term for labelled data
kl_weights            schedules, capacities, free bits, constraints
recordable_elbos      Pyro's ELBOs as plain tensor operations
base                  `TensorELBO`
"""

from pyrovae.objectives.base import TensorELBO
from pyrovae.objectives.bounds import (
    CombinedImportanceWeightedELBO,
    ImportanceWeightedELBO,
    MultiplyImportanceWeightedELBO,
    PartiallyImportanceWeightedELBO,
    RenyiELBO,
)
from pyrovae.objectives.case_weights import CASE_WEIGHTS, CaseWeighted, check_weighable, sum_over_data
from pyrovae.objectives.classification import ClassificationELBO
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
from pyrovae.objectives.recordable_elbos import recordable, uncompiled
from pyrovae.objectives.weighted import KLControl, WeightedELBO, elbo_parts

__all__ = [
    "CASE_WEIGHTS",
    "DIPVAEELBO",
    "GECO",
    "Beta",
    "BetaTCELBO",
    "Capacity",
    "CaseWeighted",
    "ClassificationELBO",
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
    "TensorELBO",
    "WeightedELBO",
    "check_weighable",
    "elbo_parts",
    "recordable",
    "sum_over_data",
    "uncompiled",
]
