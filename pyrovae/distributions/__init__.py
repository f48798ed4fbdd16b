"""Pyro distributions that Pyro and torch lack, or that need another form here."""

from pyrovae.distributions.categorical import DiscretizedLogistic, FloatCategorical
from pyrovae.distributions.counts import WholeMultinomial, ZeroInflated
from pyrovae.distributions.flows import FlowDistribution, FlowKind, autoregressive_transform, inverse_transform
from pyrovae.distributions.hierarchical import HierarchicalDistribution, checked_top
from pyrovae.distributions.interval import ContinuousBernoulli, OpenBeta, TruncatedNormal
from pyrovae.distributions.real import StudentT

__all__ = [
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "FloatCategorical",
    "FlowDistribution",
    "FlowKind",
    "HierarchicalDistribution",
    "OpenBeta",
    "StudentT",
    "TruncatedNormal",
    "WholeMultinomial",
    "ZeroInflated",
    "autoregressive_transform",
    "checked_top",
    "inverse_transform",
]
