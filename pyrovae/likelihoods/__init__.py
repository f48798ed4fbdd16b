"""Likelihoods p(x|z) and p(x|z,c): modules whose forward returns the distribution of one datum.

    counts        Bernoulli, binomial, Poisson, negative binomial, multinomial, ...
    real          normal, Laplace, Student-t; log-normal and gamma, for positive data
    interval      continuous Bernoulli, beta, truncated normal
    categorical   classes, ordered bins and ordered levels
    mixed         exact zeros beside positive numbers, exact 0 and 1 beside proportions
    rounded       normal and Student-t rounded to a grid
    positive      scales and dispersions, with smooth bounds
    units         moments, centre and spread of each column
    tables        rows with mixed columns
    base          `Likelihood`

A new likelihood is a class in this room; see `Likelihood` for the steps.
"""

from pyrovae.likelihoods.base import Likelihood
from pyrovae.likelihoods.categorical import (
    CategoricalLikelihood,
    DiscretizedLogisticMixtureLikelihood,
    OrderedLogisticLikelihood,
)
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
from pyrovae.likelihoods.mixed import (
    HurdleGammaLikelihood,
    HurdleLogNormalLikelihood,
    ZeroOneInflatedBetaLikelihood,
)
from pyrovae.likelihoods.positive import Positive
from pyrovae.likelihoods.real import (
    GammaLikelihood,
    LaplaceLikelihood,
    LogNormalLikelihood,
    NormalLikelihood,
    StudentTLikelihood,
)
from pyrovae.likelihoods.rounded import RoundedNormalLikelihood, RoundedStudentTLikelihood
from pyrovae.likelihoods.tables import MixedLikelihood
from pyrovae.likelihoods.units import Moments, Units, floor_of, without_holes

__all__ = [
    "BernoulliLikelihood",
    "BetaBinomialLikelihood",
    "BetaLikelihood",
    "BinomialLikelihood",
    "CategoricalLikelihood",
    "ContinuousBernoulliLikelihood",
    "DiscretizedLogisticMixtureLikelihood",
    "GammaLikelihood",
    "HurdleGammaLikelihood",
    "HurdleLogNormalLikelihood",
    "LaplaceLikelihood",
    "Likelihood",
    "LogNormalLikelihood",
    "MixedLikelihood",
    "Moments",
    "MultinomialLikelihood",
    "NegativeBinomialLikelihood",
    "NormalLikelihood",
    "OrderedLogisticLikelihood",
    "PoissonLikelihood",
    "Positive",
    "RoundedNormalLikelihood",
    "RoundedStudentTLikelihood",
    "StudentTLikelihood",
    "TruncatedNormalLikelihood",
    "Units",
    "ZeroInflatedNegativeBinomialLikelihood",
    "ZeroInflatedPoissonLikelihood",
    "ZeroOneInflatedBetaLikelihood",
    "floor_of",
    "without_holes",
]
