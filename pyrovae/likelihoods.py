"""Likelihoods p(x|z) and p(x|z,c): modules whose forward returns a distribution of one datum."""

from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.nn import join, out_features, split


class Likelihood(nn.Module):
    """Base of the likelihoods. A new one is a forward that turns the network's numbers into a Pyro distribution.

    The distribution has event_shape (D,) and the batch_shape of z's leading dimensions. Where the network must give
    other than D numbers, `num_outputs` says how many.

    Args:
        network: Maps z, with shape (..., Z), to shape (..., num_outputs(D)).

    Example:
        >>> from pyrovae.nn import MLP
        >>> class PoissonLikelihood(Likelihood):
        ...     def forward(self, z, covariates=None):
        ...         return dist.Poisson(self.outputs(z, covariates).exp()).to_event(1)
        >>> PoissonLikelihood(MLP(2, 5))(torch.zeros(4, 3, 2)).batch_shape
        torch.Size([4, 3])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @classmethod
    def num_outputs(cls, num_dims: int, **arguments: Any) -> int:
        """How many numbers the network must give for data of num_dims dimensions, under these constructor arguments."""
        return num_dims

    @classmethod
    def arguments_for(cls, x: Tensor) -> dict[str, Any]:
        """Constructor arguments without a default that the data, with shape (N, D), suggest."""
        return {}

    def outputs(self, z: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Run the network on z, with shape (..., N, Z), with covariates, with shape (N, C), appended."""
        return self.network(join(z, covariates))

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        raise NotImplementedError(f"{type(self).__name__} needs a forward that returns a distribution")


class BernoulliLikelihood(Likelihood):
    """Independent Bernoulli, for data that are 0 or 1: p(x|z) = prod_d Bernoulli(x_d; sigmoid(network(z)_d)).

    Args:
        network: Maps z to D logits.
    """

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        return dist.Bernoulli(logits=self.outputs(z, covariates)).to_event(1)


class ContinuousBernoulliLikelihood(Likelihood):
    """Independent continuous Bernoulli, a density for grey values in [0, 1].

    p(x|z) = prod_d C(l_d) l_d^x_d (1 - l_d)^(1 - x_d), l = sigmoid(network(z)), with C the normalising constant of
    Loaiza-Ganem and Cunningham, "The continuous Bernoulli: fixing a pervasive error in variational autoencoders"
    (NeurIPS 2019, https://arxiv.org/abs/1907.06845).

    Args:
        network: Maps z to D logits.
    """

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        return dist.ContinuousBernoulli(logits=self.outputs(z, covariates)).to_event(1)


class NormalLikelihood(Likelihood):
    """Independent normal, a density for real data: p(x|z) = prod_d N(x_d; network(z)_d, scale_d^2).

    Args:
        network: Maps z to D locations; to D locations and then D log scales where scale is "network".
        scale: A number fixes the standard deviation; "global" learns one for all dimensions; "dimension" learns one for
            each dimension; "network" lets the network give one per datum and dimension. Learned ones start at 1.
            Units: those of the data.

    Raises:
        ValueError: If a fixed scale is not positive, or the word is none of these.
    """

    def __init__(self, network: nn.Module, scale: float | Literal["global", "dimension", "network"] = "global") -> None:
        super().__init__(network)
        self.scale = scale
        if scale == "global":
            self.log_scale = nn.Parameter(torch.zeros(()))
        elif scale == "dimension":
            self.log_scale = nn.Parameter(torch.zeros(out_features(network)))
        elif scale != "network" and not (isinstance(scale, int | float) and 0 < scale < float("inf")):
            raise ValueError(f'scale must be a positive number, "global", "dimension" or "network", got {scale!r}')

    @classmethod
    def num_outputs(cls, num_dims: int, **arguments: Any) -> int:
        """D, or 2 D where the network gives the scale too."""
        return 2 * num_dims if arguments.get("scale") == "network" else num_dims

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        outputs = self.outputs(z, covariates)
        if self.scale == "network":
            loc, log_scale = split(outputs, 2)
            return dist.Normal(loc, log_scale.exp()).to_event(1)
        scale = self.log_scale.exp() if isinstance(self.scale, str) else self.scale
        return dist.Normal(outputs, scale).to_event(1)


class BinomialLikelihood(Likelihood):
    """Independent binomial, for counts out of a known total: p(x|z) = prod_d Bin(x_d; total_count, sigmoid(net(z)_d)).

    Args:
        network: Maps z to D logits.
        total_count: The number of trials n of every dimension; data are integers 0..n.

    Raises:
        ValueError: If total_count is below 1.
    """

    def __init__(self, network: nn.Module, total_count: int) -> None:
        super().__init__(network)
        if total_count < 1:
            raise ValueError(f"total_count must be at least 1, got {total_count}")
        self.total_count = total_count

    @classmethod
    def arguments_for(cls, x: Tensor) -> dict[str, Any]:
        """The largest count seen, as total_count."""
        return {"total_count": max(1, int(x.max()))}

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        return dist.Binomial(self.total_count, logits=self.outputs(z, covariates)).to_event(1)
