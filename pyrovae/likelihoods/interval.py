"""Likelihoods of data in an interval, such as grey values and proportions."""

import math

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.distributions import ContinuousBernoulli, LogitBeta, TruncatedNormal
from pyrovae.likelihoods.base import Likelihood, LocationScaleLikelihood, logit_of
from pyrovae.likelihoods.positive import Choice, Positive


class ContinuousBernoulliLikelihood(Likelihood):
    """Independent continuous Bernoulli, a density for grey values in [0, 1].

        p(x|z) = prod_d C(l_d) l_d^x_d (1 - l_d)^(1 - x_d),  l = sigmoid(network(z))

    C is the normalising constant of Loaiza-Ganem and Cunningham, "The continuous Bernoulli: fixing a pervasive error
    in variational autoencoders" (NeurIPS 2019, https://arxiv.org/abs/1907.06845).

    Args:
        network: Module from the latent (and covariates) to the parameters of p(x|z): D logits.
    """

    def intercept(self, x: Tensor) -> Tensor:
        """Return the logits with the data's means, by bisection in [-1000, 1000]."""
        mean = x.mean(0).clamp(1e-3, 1 - 1e-3)
        low, high = torch.full_like(mean, -1e3), torch.full_like(mean, 1e3)
        for _ in range(60):
            middle = (low + high) / 2
            below = ContinuousBernoulli(middle).mean < mean
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        return ContinuousBernoulli(self.outputs(z, covariates)).to_event(1)


class BetaLikelihood(Likelihood):
    """Independent beta, for proportions in the open interval (0, 1).

        p(x|z) = prod_d Beta(x_d; m_d s_d, (1 - m_d) s_d),  m = sigmoid(network(z))

    The mean is m, the variance m (1 - m)/(s + 1) (Ferrari and Cribari-Neto, "Beta regression for modelling rates and
    proportions", 2004, https://doi.org/10.1080/0266476042000214501).

    Args:
        network: Module from the latent (and covariates) to the parameters of p(x|z): D logits of the mean, then
            D outputs for s if concentration is "network".
        concentration: Concentration s: a positive number (fixed), "global" (learned, one for all dimensions),
            "dimension" (learned, one per dimension), or "network" (D more outputs). Learned ones start at 10 and stay
            between 0.001 and 1000, beyond which float32 loses the density (see `Positive`). A blueprint
            starts those of dimensions at the data's variances.

    Raises:
        ValueError: If concentration is neither a positive number nor one of the words.
    """

    def __init__(self, network: nn.Module, concentration: Choice = "global") -> None:
        super().__init__(network)
        num_blocks = self.num_outputs(1, concentration=concentration)
        self.concentration = Positive(
            "concentration", concentration, network, num_blocks, start=10.0, bounds=(1e-3, 1e3)
        )

    def intercept(self, x: Tensor) -> Tensor:
        """Return the logits of the data's means."""
        return logit_of(x.mean(0))

    def start_at(self, x: Tensor) -> None:
        """Start s of the dimensions at the data's moments."""
        mean = x.mean(0)
        self.concentration.start_at(mean * (1 - mean) / x.var(0, correction=0) - 1)

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        blocks = self.blocks(z, covariates)
        logits, concentration = next(blocks), self.concentration(blocks)
        return LogitBeta(logits, concentration).to_event(1)


class TruncatedNormalLikelihood(LocationScaleLikelihood):
    """Independent normal truncated to [low, high].

        p(x|z) = prod_d N(x_d; loc_d, scale_d^2) / P(low <= x_d <= high),  loc = centre + spread network(z)

    Args:
        network: Module from the latent (and covariates) to the parameters of p(x|z): D locations before
            truncation, then D scales if scale is "network".
        low: Lower end, in the data's units.
        high: Upper end, in the data's units.
        scale: Standard deviation before truncation: a positive number (fixed, in the data's units), "global" (learned,
            one for all dimensions), "dimension" (learned, one per dimension), or "network" (D more outputs). Learned
            scales are relative to the spread of each column and start at 1.
        scale_bounds: Smooth bounds (low, high) of a relative scale, learned or from the network (see `Positive`).

    Raises:
        ValueError: If scale is neither a positive number nor one of the words, the bounds are not 0 < low < high, or
            low and high are not finite numbers with low < high.
    """

    def __init__(
        self,
        network: nn.Module,
        low: float = 0.0,
        high: float = 1.0,
        scale: Choice = "global",
        scale_bounds: tuple[float, float] = (1e-6, 1e6),
    ) -> None:
        super().__init__(network, scale, scale_bounds)
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"low and high must be finite numbers with low < high, got {low} and {high}")
        self.low = low
        self.high = high

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        loc, scale = self.loc_and_scale(z, covariates)
        return TruncatedNormal(loc, scale, self.low, self.high).to_event(1)
