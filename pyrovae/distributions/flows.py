"""Normalising flows from Zuko (https://zuko.readthedocs.io) as Pyro distributions.

No other module imports zuko. Its import disables the validation of distributions in the whole process, and this module
restores the setting.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pyro.contrib.zuko import ZukoToPyro
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.distributions import AffineTransform, Distribution, Transform

_validate_args = Distribution._validate_args
import zuko  # noqa: E402  # disables validation, which the next line restores

Distribution.set_default_validate_args(_validate_args)

FlowKind = Literal["nsf", "maf"]

_FLOWS = {"nsf": zuko.flows.NSF, "maf": zuko.flows.MAF}


class _NormalizingFlow(zuko.distributions.NormalizingFlow):
    arg_constraints: ClassVar[dict[str, Any]] = {}  # torch warns if a class defines none


class FlowDistribution(ZukoToPyro):
    """Normalising flow, the distribution of z for which f(z) has the base distribution.

        log q(z) = log base(f(z)) + log |det df/dz|

    Each draw caches its log density, so scoring that draw costs nothing more.

    Args:
        transform: Transform f of vectors, from z to the space of the base.
        base: Base distribution, with event_shape (Z,) and the batch_shape of the flow.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}  # torch warns if a class defines none
    support = constraints.real_vector

    def __init__(self, transform: Transform, base: Distribution) -> None:
        super().__init__(_NormalizingFlow(transform, base))
        self.transform, self.base = transform, base

    @property
    def event_shape(self) -> torch.Size:
        """Shape (Z,) of the base. Torch would add the batch of an affine transform's loc to it."""
        return self.base.event_shape

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "FlowDistribution":
        """Return the flow expanded to batch_shape."""
        return FlowDistribution(self.transform, self.base.expand(torch.Size(batch_shape)))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw with gradients, with shape sample_shape + batch_shape + (Z,), and cache the log density."""
        return self(torch.Size(sample_shape))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw without gradients, with shape sample_shape + batch_shape + (Z,)."""
        with torch.no_grad():
            return self.dist.rsample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats, with the leading shape of value, (..., Z)."""
        known = self.cache.get(value)
        # A density cached without gradients cannot serve a caller that needs them.
        if known is not None and (known.requires_grad or not torch.is_grad_enabled()):
            return known
        return self.dist.log_prob(value)


def autoregressive_transform(
    kind: FlowKind, latent_dim: int, *, num_features: int = 0, transforms: int, hidden: Sequence[int]
) -> nn.Module:
    """Make a module that returns a stack of autoregressive transforms, y_d = f(z_d; z_<d, c).

    "maf" is affine in z_d (Papamakarios, Pavlakou, Murray, "Masked Autoregressive Flow for Density Estimation", 2017,
    https://arxiv.org/abs/1705.07057); "nsf" is a monotonic rational-quadratic spline of 8 bins on [-5, 5], and the
    identity outside (Durkan, Bekasov, Murray, Papamakarios, "Neural Spline Flows", 2019,
    https://arxiv.org/abs/1906.04032). The transform needs one pass of the network, its inverse one per dimension.

    Args:
        kind: Transforms of the flow: "nsf" (splines) or "maf" (affine).
        latent_dim: Dimension Z of the latent.
        num_features: Number of features c that the module takes; 0 for a module without an argument.
        transforms: Number of transforms; the order of the dimensions reverses from one to the next.
        hidden: Sizes of the hidden layers of each transform's network.

    Raises:
        ValueError: If kind is neither "nsf" nor "maf", or transforms is below 1.
    """
    if kind not in _FLOWS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, _FLOWS))}, got {kind!r}")
    if transforms < 1:
        raise ValueError(f"transforms must be at least 1, got {transforms}")
    return _FLOWS[kind](latent_dim, num_features, transforms=transforms, hidden_features=tuple(hidden)).transform


def inverse_transform(transform: Transform, loc: Tensor, scale: Tensor) -> Transform:
    """Make the map from z to e for z = loc + scale * transform(e), with loc and scale of shape (..., Z)."""
    return zuko.transforms.ComposedTransform(AffineTransform(loc, scale, event_dim=1).inv, transform.inv)
