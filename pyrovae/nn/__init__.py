"""Networks: tensor in, tensor out.

Any torch module serves as a network. Those below keep every leading dimension, so `[N, D]` and `[K, N, D]` go through
the same code, and share one constructor, `(in_features, out_features, *, ...)`, by which the command line builds them.
"""

from pyrovae.nn.base import (
    Activation,
    Network,
    Offset,
    Standardize,
    WithCovariates,
    activation_module,
    join,
    out_features,
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
    "TransposedConvNet",
    "WithCovariates",
    "activation_module",
    "join",
    "out_features",
    "split",
]
