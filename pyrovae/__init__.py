"""Variational autoencoders as Pyro programs, with log-likelihoods that carry their error.

A VAE is made of a prior, a likelihood and an encoder; its `model` and `guide` are Pyro programs. Everything that is
computed from them works for any such pair, the reader's own too.
"""

from pyrovae.densities import log_joint, log_weights
from pyrovae.encoders import (
    CategoricalEncoder,
    ConstrainedEncoder,
    Encoder,
    FlowEncoder,
    FullCovarianceNormalEncoder,
    LowRankNormalEncoder,
    MixtureEncoder,
    NormalEncoder,
    StudentTEncoder,
)
from pyrovae.export import to_arviz
from pyrovae.importance import evidence_lower_bound, log_marginal
from pyrovae.likelihoods import (
    BernoulliLikelihood,
    BinomialLikelihood,
    ContinuousBernoulliLikelihood,
    Likelihood,
    NormalLikelihood,
)
from pyrovae.nn import MLP, ConvNet, Network, Standardize, TransposedConvNet
from pyrovae.priors import (
    AutoregressivePrior,
    CategoricalPrior,
    ConditionalNormalPrior,
    DirichletPrior,
    ExemplarPrior,
    FlowPrior,
    LaplacePrior,
    LogisticNormalPrior,
    MixturePrior,
    NormalPrior,
    Prior,
    StandardNormalPrior,
    StudentTPrior,
    VampPrior,
)
from pyrovae.run import load
from pyrovae.stats import LogMarginal
from pyrovae.svi import History, fit
from pyrovae.vae import VAE, Guide, Model

__all__ = [
    "MLP",
    "VAE",
    "AutoregressivePrior",
    "BernoulliLikelihood",
    "BinomialLikelihood",
    "CategoricalEncoder",
    "CategoricalPrior",
    "ConditionalNormalPrior",
    "ConstrainedEncoder",
    "ContinuousBernoulliLikelihood",
    "ConvNet",
    "DirichletPrior",
    "Encoder",
    "ExemplarPrior",
    "FlowEncoder",
    "FlowPrior",
    "FullCovarianceNormalEncoder",
    "Guide",
    "History",
    "LaplacePrior",
    "Likelihood",
    "LogMarginal",
    "LogisticNormalPrior",
    "LowRankNormalEncoder",
    "MixtureEncoder",
    "MixturePrior",
    "Model",
    "Network",
    "NormalEncoder",
    "NormalLikelihood",
    "NormalPrior",
    "Prior",
    "StandardNormalPrior",
    "Standardize",
    "StudentTEncoder",
    "StudentTPrior",
    "TransposedConvNet",
    "VampPrior",
    "evidence_lower_bound",
    "fit",
    "load",
    "log_joint",
    "log_marginal",
    "log_weights",
    "to_arviz",
]
