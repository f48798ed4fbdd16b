"""Encoders q(z|x) and q(z|x,c): modules whose forward returns the distribution of one latent given one datum.

A new encoder is a class in this room; see `Encoder` for the steps.
"""

from pyrovae.encoders.base import Encoder
from pyrovae.encoders.constrained import ConstrainedEncoder, constrain_encoder
from pyrovae.encoders.discrete import CategoricalEncoder
from pyrovae.encoders.elliptical import (
    FullCovarianceNormalEncoder,
    LowRankNormalEncoder,
    NormalEncoder,
    StudentTEncoder,
)
from pyrovae.encoders.features import Features
from pyrovae.encoders.flow import FlowEncoder
from pyrovae.encoders.mixture import MixtureEncoder
from pyrovae.encoders.two_layer import TwoLayerEncoder

__all__ = [
    "CategoricalEncoder",
    "ConstrainedEncoder",
    "Encoder",
    "Features",
    "FlowEncoder",
    "FullCovarianceNormalEncoder",
    "LowRankNormalEncoder",
    "MixtureEncoder",
    "NormalEncoder",
    "StudentTEncoder",
    "TwoLayerEncoder",
    "constrain_encoder",
]
