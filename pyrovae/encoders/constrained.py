"""Encoders of real vectors mapped to the support of the prior."""

import pyro.distributions as dist
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.bijections import bijection


class ConstrainedEncoder(nn.Module):
    """Encoder of real vectors mapped to a constrained support.

        z = f(y),  y ~ encoder(x),  log q(z|x) = log q_y(f^-1(z)|x) - log |det df/dy|

    f is the `bijection` to the support. For the simplex of Z entries, y has Z - 1.

    Args:
        encoder: Module whose forward returns a distribution of real vectors.
        support: Support of z.

    Raises:
        ValueError: If torch knows no bijection to the support.

    Example:
        >>> import torch
        >>> from pyrovae import MLP, NormalEncoder
        >>> encoder = ConstrainedEncoder(NormalEncoder(MLP(5, 2 * 2)), constraints.simplex)
        >>> encoder(torch.zeros(4, 5)).event_shape
        torch.Size([3])
    """

    def __init__(self, encoder: nn.Module, support: constraints.Constraint) -> None:
        super().__init__()
        bijection(support)
        self.encoder = encoder
        self.support = support

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return q(z|x), with the batch_shape of x's leading dimensions."""
        conditions = () if covariates is None else (covariates,)
        return dist.TransformedDistribution(self.encoder(x, *conditions), bijection(self.support))


def constrain_encoder(encoder: nn.Module, support: constraints.Constraint) -> nn.Module:
    """Return the encoder if it has this support, or map an encoder of real vectors to it.

    Args:
        encoder: Module whose forward returns q(z|x). Without an attribute `support`, z is assumed to be real.
        support: Support of the prior.

    Raises:
        ValueError: If the encoder has another support, and is discrete or constrained, or the prior is discrete.
    """
    own = getattr(encoder, "support", constraints.real_vector)
    if repr(own) == repr(support) or (_is_real(own) and _is_real(support)):
        return encoder
    if _is_real(own) and not support.is_discrete:
        return ConstrainedEncoder(encoder, support)
    raise ValueError(
        f"the prior is a distribution of {_in_words(support)}, but {type(encoder).__name__} is one of {_in_words(own)} "
        "and cannot be mapped to it; use an encoder with the prior's support (CategoricalEncoder for "
        "CategoricalPrior), or another prior"
    )


def _in_words(support: constraints.Constraint) -> str:
    words = {"Real": "real vectors", "OneHot": "one-hot vectors", "Simplex": "points of the simplex"}
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    name = type(support).__name__.strip("_")
    return words.get(name, f"values in {name}")


def _is_real(support: constraints.Constraint) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real
