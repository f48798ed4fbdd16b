"""Normalising flows from Zuko (https://zuko.readthedocs.io) as Pyro distributions; the one module that imports it.

Importing zuko switches the validation of distributions off for the whole process; it is put back here.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pyro.contrib.zuko import ZukoToPyro
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.distributions import AffineTransform, Distribution, Transform

_validate_args = Distribution._validate_args
import zuko  # noqa: E402  # it switches validation off, which is put back below

Distribution.set_default_validate_args(_validate_args)

FlowKind = Literal["nsf", "maf"]

_FLOWS = {"nsf": zuko.flows.NSF, "maf": zuko.flows.MAF}


class _NormalizingFlow(zuko.distributions.NormalizingFlow):
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  # torch warns where validation finds none


class FlowDistribution(ZukoToPyro):
    """Density of z where f(z) has the base's: log q(z) = log base(f(z)) + log |det df/dz|.

    The log density of a draw is kept from the drawing of it, so that scoring one's own draws costs nothing more.

    Args:
        transform: f, from z to the base's space, a transform of vectors.
        base: Distribution with event_shape (Z,), whose batch_shape is the flow's.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  # as above
    support = constraints.real_vector

    def __init__(self, transform: Transform, base: Distribution) -> None:
        super().__init__(_NormalizingFlow(transform, base))
        self.transform, self.base = transform, base

    @property
    def event_shape(self) -> torch.Size:
        """(Z,): the base's, since torch counts the batch of an affine transform's loc among the shapes it maps."""
        return self.base.event_shape

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "FlowDistribution":
        """The same flow with this batch_shape, which its own must broadcast to."""
        return FlowDistribution(self.transform, self.base.expand(torch.Size(batch_shape)))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw with gradients, and keep the log density; the shape is sample_shape + batch_shape + (Z,)."""
        return self(torch.Size(sample_shape))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw without gradients; the shape is sample_shape + batch_shape + (Z,)."""
        with torch.no_grad():
            return self.dist.rsample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, with the leading shape of value, (..., Z)."""
        known = self.cache.get(value)
        # What was kept while gradients were off does not serve where they are on.
        if known is not None and (known.requires_grad or not torch.is_grad_enabled()):
            return known
        return self.dist.log_prob(value)


def autoregressive_transform(
    kind: FlowKind, latent_dim: int, *, num_features: int = 0, transforms: int, hidden: Sequence[int]
) -> nn.Module:
    """Make a module that returns a stack of autoregressive transforms, y_d = f(z_d; z_<d, c), the order turning round.

    "maf" is affine in z_d (Papamakarios, Pavlakou, Murray, "Masked Autoregressive Flow for Density Estimation", 2017,
    https://arxiv.org/abs/1705.07057); "nsf" is a monotonic rational-quadratic spline of 8 bins on [-5, 5], and the
    identity outside (Durkan, Bekasov, Murray, Papamakarios, "Neural Spline Flows", 2019,
    https://arxiv.org/abs/1906.04032). The way there takes one pass of the network, the way back one for each dimension.

    Args:
        kind: "maf" or "nsf".
        latent_dim: Size Z of z.
        num_features: Size of the features c that the module is called with; 0 where it is called without.
        transforms: Number of transforms in the stack.
        hidden: Sizes of the hidden layers of the masked network in each.

    Raises:
        ValueError: If the kind is neither of these, or transforms is below 1.
    """
    if kind not in _FLOWS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, _FLOWS))}, got {kind!r}")
    if transforms < 1:
        raise ValueError(f"transforms must be at least 1, got {transforms}")
    return _FLOWS[kind](latent_dim, num_features, transforms=transforms, hidden_features=tuple(hidden)).transform


def inverse_transform(transform: Transform, loc: Tensor, scale: Tensor) -> Transform:
    """The map f from z to e where z = loc + scale * transform(e), loc and scale with shape (..., Z)."""
    return zuko.transforms.ComposedTransform(AffineTransform(loc, scale, event_dim=1).inv, transform.inv)
