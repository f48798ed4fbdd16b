"""Variational autoencoders as Pyro programs, with log-likelihoods that carry their error.

A VAE is made of a prior, a likelihood and an encoder; its `model` and `guide` are Pyro programs. Everything that is
computed from them works for any such pair, the reader's own too.
"""

from pyrovae.densities import log_joint, log_weights
from pyrovae.encoders import Encoder, NormalEncoder
from pyrovae.export import to_arviz
from pyrovae.importance import evidence_lower_bound, log_marginal
from pyrovae.likelihoods import (
    BernoulliLikelihood,
    BetaBinomialLikelihood,
    BetaLikelihood,
    BinomialLikelihood,
    CategoricalLikelihood,
    ContinuousBernoulliLikelihood,
    DiscretizedLogisticMixtureLikelihood,
    LaplaceLikelihood,
    Likelihood,
    LogNormalLikelihood,
    MultinomialLikelihood,
    NegativeBinomialLikelihood,
    NormalLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
    TruncatedNormalLikelihood,
    ZeroInflatedNegativeBinomialLikelihood,
    ZeroInflatedPoissonLikelihood,
)
from pyrovae.nn import (
    MLP,
    ConvNet,
    GatedMLP,
    Network,
    RecurrentDecoder,
    RecurrentNet,
    ResidualConvNet,
    ResidualMLP,
    ResidualTransposedConvNet,
    Standardize,
    TransposedConvNet,
)
from pyrovae.priors import MixturePrior, NormalPrior, Prior, StandardNormalPrior
from pyrovae.run import load
from pyrovae.stats import LogMarginal
from pyrovae.svi import History, fit
from pyrovae.vae import VAE, Guide, Model

__all__ = [
    "MLP",
    "VAE",
    "BernoulliLikelihood",
    "BetaBinomialLikelihood",
    "BetaLikelihood",
    "BinomialLikelihood",
    "CategoricalLikelihood",
    "ContinuousBernoulliLikelihood",
    "ConvNet",
    "DiscretizedLogisticMixtureLikelihood",
    "Encoder",
    "GatedMLP",
    "Guide",
    "History",
    "LaplaceLikelihood",
    "Likelihood",
    "LogMarginal",
    "LogNormalLikelihood",
    "MixturePrior",
    "Model",
    "MultinomialLikelihood",
    "NegativeBinomialLikelihood",
    "Network",
    "NormalEncoder",
    "NormalLikelihood",
    "NormalPrior",
    "PoissonLikelihood",
    "Prior",
    "RecurrentDecoder",
    "RecurrentNet",
    "ResidualConvNet",
    "ResidualMLP",
    "ResidualTransposedConvNet",
    "StandardNormalPrior",
    "Standardize",
    "StudentTLikelihood",
    "TransposedConvNet",
    "TruncatedNormalLikelihood",
    "ZeroInflatedNegativeBinomialLikelihood",
    "ZeroInflatedPoissonLikelihood",
    "evidence_lower_bound",
    "fit",
    "load",
    "log_joint",
    "log_marginal",
    "log_weights",
    "to_arviz",
]
