"""Pyro distributions that Pyro and torch lack, or whose versions there are inaccurate or slow.

    categorical    classes, ordered bins and levels
    counts         Poisson, negative binomial, binomial, beta-binomial, multinomial, zero inflation
    interval       beta, continuous Bernoulli, truncated normal
    rounded        normal and Student-t rounded to a grid
    real           Student-t, log-normal
    positive       gamma
    mixed          point masses beside a density: hurdles at 0, beta with 0 and 1
    by_column      rows of tables, whose columns have distributions of their own
    flows          normalising flows
    hierarchical   vectors in two blocks, p(a) p(b|a)
    mixtures       mixtures of many components at many values

Priors, likelihoods and encoders return them. A new distribution comes here if one of those needs it.
"""

from pyrovae.distributions.by_column import ByColumn, ColumnGroups
from pyrovae.distributions.categorical import DiscretizedLogistic, FloatCategorical, OrderedLogistic
from pyrovae.distributions.counts import (
    LogitBetaBinomial,
    LogitBinomial,
    LogPoisson,
    MeanNegativeBinomial,
    WholeMultinomial,
    ZeroInflated,
)
from pyrovae.distributions.flows import FlowDistribution, FlowKind, autoregressive_transform, inverse_transform
from pyrovae.distributions.hierarchical import HierarchicalDistribution, resolve_top_dim
from pyrovae.distributions.interval import ContinuousBernoulli, LogitBeta, TruncatedNormal
from pyrovae.distributions.mixed import Hurdle, ZeroOneInflatedBeta
from pyrovae.distributions.mixtures import BlockwiseMixture
from pyrovae.distributions.positive import MeanGamma
from pyrovae.distributions.real import LogNormal, StudentT
from pyrovae.distributions.rounded import MultiplesOf, RoundedNormal, RoundedStudentT

__all__ = [
    "BlockwiseMixture",
    "ByColumn",
    "ColumnGroups",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "FloatCategorical",
    "FlowDistribution",
    "FlowKind",
    "HierarchicalDistribution",
    "Hurdle",
    "LogNormal",
    "LogPoisson",
    "LogitBeta",
    "LogitBetaBinomial",
    "LogitBinomial",
    "MeanGamma",
    "MeanNegativeBinomial",
    "MultiplesOf",
    "OrderedLogistic",
    "RoundedNormal",
    "RoundedStudentT",
    "StudentT",
    "TruncatedNormal",
    "WholeMultinomial",
    "ZeroInflated",
    "ZeroOneInflatedBeta",
    "autoregressive_transform",
    "inverse_transform",
    "resolve_top_dim",
]
