"""Priors p(z) and p(z|c): modules whose forward returns the distribution of one latent.

A new prior is a class in this room; see `Prior` for the steps.
"""

from pyrovae.priors.base import Prior
from pyrovae.priors.conditional import ConditionalNormalPrior
from pyrovae.priors.discrete import CategoricalPrior
from pyrovae.priors.flows import AutoregressivePrior, FlowPrior
from pyrovae.priors.independent import LaplacePrior, NormalPrior, StandardNormalPrior, StudentTPrior
from pyrovae.priors.mixtures import ExemplarPrior, MixturePrior, VampPrior
from pyrovae.priors.simplex import DirichletPrior, LogisticNormalPrior
from pyrovae.priors.two_layer import TwoLayerPrior

__all__ = [
    "AutoregressivePrior",
    "CategoricalPrior",
    "ConditionalNormalPrior",
    "DirichletPrior",
    "ExemplarPrior",
    "FlowPrior",
    "LaplacePrior",
    "LogisticNormalPrior",
    "MixturePrior",
    "NormalPrior",
    "Prior",
    "StandardNormalPrior",
    "StudentTPrior",
    "TwoLayerPrior",
    "VampPrior",
]
