"""Likelihoods p(x|z) and p(x|z,c): modules whose forward returns the distribution of one datum.

    counts        Bernoulli, binomial, Poisson, negative binomial, multinomial, ...
    real          normal, Laplace, Student-t, log-normal
    interval      continuous Bernoulli, beta, truncated normal
    categorical   classes and ordered bins
    positive      scales and dispersions, with smooth bounds
    units         centre and spread of each column
    base          `Likelihood`

A new likelihood is a class in this room; see `Likelihood` for the steps.
"""

from pyrovae.likelihoods.base import Likelihood
from pyrovae.likelihoods.categorical import CategoricalLikelihood, DiscretizedLogisticMixtureLikelihood
from pyrovae.likelihoods.counts import (
    BernoulliLikelihood,
    BetaBinomialLikelihood,
    BinomialLikelihood,
    MultinomialLikelihood,
    NegativeBinomialLikelihood,
    PoissonLikelihood,
    ZeroInflatedNegativeBinomialLikelihood,
    ZeroInflatedPoissonLikelihood,
)
from pyrovae.likelihoods.interval import BetaLikelihood, ContinuousBernoulliLikelihood, TruncatedNormalLikelihood
from pyrovae.likelihoods.real import LaplaceLikelihood, LogNormalLikelihood, NormalLikelihood, StudentTLikelihood
from pyrovae.likelihoods.units import Units

__all__ = [
    "BernoulliLikelihood",
    "BetaBinomialLikelihood",
    "BetaLikelihood",
    "BinomialLikelihood",
    "CategoricalLikelihood",
    "ContinuousBernoulliLikelihood",
    "DiscretizedLogisticMixtureLikelihood",
    "LaplaceLikelihood",
    "Likelihood",
    "LogNormalLikelihood",
    "MultinomialLikelihood",
    "NegativeBinomialLikelihood",
    "NormalLikelihood",
    "PoissonLikelihood",
    "StudentTLikelihood",
    "TruncatedNormalLikelihood",
    "Units",
    "ZeroInflatedNegativeBinomialLikelihood",
    "ZeroInflatedPoissonLikelihood",
]
