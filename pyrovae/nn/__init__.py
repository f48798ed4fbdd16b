"""Networks from tensors to tensors, for the inside of priors, likelihoods and encoders.

Any torch module can be a network. Those of this room keep every leading dimension, so data of shapes (N, D) and
(K, N, D) share one code path. Their common constructor, `(in_features, out_features, *, ...)`, lets the command line
build them. The room imports torch alone.
"""

from pyrovae.nn.base import (
    Activation,
    Network,
    Offset,
    Standardize,
    StandardizeCounts,
    WithCovariates,
    activation_module,
    bounded_exp,
    join,
    out_features,
    scale_of,
    split,
)
from pyrovae.nn.conv import ConvNet, ResidualConvNet, ResidualTransposedConvNet, TransposedConvNet
from pyrovae.nn.dense import MLP, GatedMLP, ResidualMLP
from pyrovae.nn.recurrent import RecurrentDecoder, RecurrentNet

__all__ = [
    "MLP",
    "Activation",
    "ConvNet",
    "GatedMLP",
    "Network",
    "Offset",
    "RecurrentDecoder",
    "RecurrentNet",
    "ResidualConvNet",
    "ResidualMLP",
    "ResidualTransposedConvNet",
    "Standardize",
    "StandardizeCounts",
    "TransposedConvNet",
    "WithCovariates",
    "activation_module",
    "bounded_exp",
    "join",
    "out_features",
    "scale_of",
    "split",
]
