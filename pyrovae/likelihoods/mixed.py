"""Likelihoods with point masses beside a density: exact zeros beside positive numbers, exact 0 and 1 beside shares."""

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.distributions import Hurdle, LogNormal, MeanGamma, ZeroOneInflatedBeta
from pyrovae.likelihoods.base import Likelihood, LocationScaleLikelihood, log_of, logit_of, scale_in
from pyrovae.likelihoods.positive import Choice, Positive
from pyrovae.likelihoods.units import Moments, Units, log_units


class HurdleLogNormalLikelihood(LocationScaleLikelihood):
    """Independent log-normal with exact zeros, for amounts of which some are 0, such as rain or spending.

        P(x_d = 0|z) = sigmoid(g_d),  p(x_d|z) = sigmoid(-g_d) N(log x_d; a_d, scale_d^2) / x_d,  x_d > 0

    a is centre + spread times the network's first D outputs, with centre and spread of log x of each column from
    training data (0 and 1 without). The base measure is mixed: Lebesgue measure plus a point mass at 0. So log p(x) is
    comparable only with that of another likelihood with a point mass at 0, such as `HurdleGammaLikelihood`, and an
    evaluation says so. The two parts are those of Duan et al., "A comparison of alternative models for the demand for
    medical care", JBES 1983, https://doi.org/10.1080/07350015.1983.10509330.

    Args:
        network: Module from the latent (and covariates) to the parameters of p(x|z): D numbers for a, then D logits g
            of the probability of 0, then D scales if scale is "network".
        scale: Standard deviation of log x, without unit: a positive number (fixed), "global" (learned, one for all
            dimensions), "dimension" (learned, one per dimension), or "network" (D more outputs). Learned scales are
            relative to the spread of log x and start at 1.
        scale_bounds: Smooth bounds (low, high) of a scale that is not a fixed number (see `Positive`).

    Raises:
        ValueError: If scale is neither a positive number nor one of the words, or the bounds are not 0 < low < high.
    """

    num_blocks = 2

    def set_units(self, moments: Moments) -> None:
        """Take centre and spread of log x of each column, over its positive entries, from training data."""
        self.units = log_units(moments)

    def intercept(self, x: Tensor) -> Tensor:
        """Return the outputs whose locations are the means of log x over the positive data, or 0 without one."""
        return self.units.inverse(_mean_where(x > 0, x.log()))

    def output_bias(self, x: Tensor) -> Tensor:
        """Return an initial bias of the network's last layer: `intercept`, the logits of the share of 0, then zeros.

        Args:
            x: Training data, with shape (N, D).
        """
        return _with_gate(super().output_bias(x), x)

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        blocks = self.blocks(z, covariates)
        loc, gate_logits = self.units.location(next(blocks)), next(blocks)
        scale = scale_in(self.units, self.scale, blocks)
        return Hurdle(LogNormal(loc, scale), gate_logits).to_event(1)


class HurdleGammaLikelihood(Likelihood):
    """Independent gamma with exact zeros, for amounts of which some are 0, such as rain or spending.

        P(x_d = 0|z) = sigmoid(g_d),  p(x_d|z) = sigmoid(-g_d) Gamma(x_d; s_d, s_d/m_d),  x_d > 0

    m is the mean of the positive numbers and m^2/s their variance. log m is the mean of log x of the column plus the
    network's first D outputs. The base measure is mixed: Lebesgue measure plus a point mass at 0. So log p(x) is
    comparable only with that of another likelihood with a point mass at 0, such as `HurdleLogNormalLikelihood`, and an
    evaluation says so. The two parts are those of Duan et al., "A comparison of alternative models for the demand for
    medical care", JBES 1983, https://doi.org/10.1080/07350015.1983.10509330.

    Args:
        network: Module from the latent (and covariates) to the parameters of p(x|z): D numbers for log m, then D logits
            g of the probability of 0, then D outputs for s if concentration is "network".
        concentration: Concentration s: a positive number (fixed), "global" (learned, one for all dimensions),
            "dimension" (learned, one per dimension), or "network" (D more outputs). Learned ones start at 1, the
            exponential, and stay between 0.001 and 10,000 (see `Positive`). A blueprint
            starts those of dimensions at the data's variances.

    Raises:
        ValueError: If concentration is neither a positive number nor one of the words.
    """

    num_blocks = 2
    has_units = True

    def __init__(self, network: nn.Module, concentration: Choice = "global") -> None:
        super().__init__(network)
        num_blocks = self.num_outputs(1, concentration=concentration)
        self.concentration = Positive("concentration", concentration, network, num_blocks, bounds=(1e-3, 1e4))
        self.units = Units.none()

    def set_units(self, moments: Moments) -> None:
        """Take the mean of log x of each column, over its positive entries, as the centre of log m."""
        self.units = Units(moments.log_mean, torch.ones_like(moments.log_mean))

    def intercept(self, x: Tensor) -> Tensor:
        """Return the outputs whose means are those of the positive data, or 1 without one."""
        mean = _mean_where(x > 0, x)
        return self.units.inverse(torch.where(mean > 0, mean, 1.0).log())

    def start_at(self, x: Tensor) -> None:
        """Start s of the dimensions at the moments of the positive data."""
        mean, variance = _moments_where(x > 0, x)
        self.concentration.start_at(torch.where(variance > 0, mean.square() / variance, 1.0))

    def output_bias(self, x: Tensor) -> Tensor:
        """Return an initial bias of the network's last layer: `intercept`, the logits of the share of 0, then zeros.

        Args:
            x: Training data, with shape (N, D).
        """
        return _with_gate(super().output_bias(x), x)

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        blocks = self.blocks(z, covariates)
        log_mean, gate_logits = self.units.location(next(blocks)), next(blocks)
        concentration = self.concentration(blocks)
        return Hurdle(MeanGamma(log_mean, concentration), gate_logits).to_event(1)


class ZeroOneInflatedBetaLikelihood(Likelihood):
    """Independent beta with exact 0 and 1, for proportions in the closed interval [0, 1].

        P(x_d = 0|z) = exp(u_d)/n_d,  P(x_d = 1|z) = exp(v_d)/n_d,  n = 1 + exp(u) + exp(v),
        p(x_d|z) = Beta(x_d; m_d s_d, (1 - m_d) s_d)/n_d,  0 < x_d < 1,  m = sigmoid(l)

    The base measure is mixed: Lebesgue measure plus point masses at 0 and 1. So log p(x) is comparable only with that
    of another likelihood with these point masses, and an evaluation says so (Ospina and Ferrari, "Inflated beta
    distributions", Statistical Papers 2010, https://doi.org/10.1007/s00362-008-0125-4).

    Args:
        network: Module from the latent (and covariates) to the parameters of p(x|z): D logits l of the mean of the
            beta, then D log odds u of 0 against the interval, then D log odds v of 1 against it, then D outputs for s
            if concentration is "network".
        concentration: Concentration s: a positive number (fixed), "global" (learned, one for all dimensions),
            "dimension" (learned, one per dimension), or "network" (D more outputs). Learned ones start at 10 and stay
            between 0.001 and 1000, beyond which float32 loses the density (see `Positive`). A blueprint
            starts those of dimensions at the data's variances.

    Raises:
        ValueError: If concentration is neither a positive number nor one of the words.
    """

    num_blocks = 3

    def __init__(self, network: nn.Module, concentration: Choice = "global") -> None:
        super().__init__(network)
        num_blocks = self.num_outputs(1, concentration=concentration)
        self.concentration = Positive(
            "concentration", concentration, network, num_blocks, start=10.0, bounds=(1e-3, 1e3)
        )

    def intercept(self, x: Tensor) -> Tensor:
        """Return the logits of the means of the data between 0 and 1; 0 where there are none."""
        between = (x > 0) & (x < 1)
        return torch.where(between.any(0), logit_of(_mean_where(between, x)), 0.0)

    def start_at(self, x: Tensor) -> None:
        """Start s of the dimensions at the moments of the data between 0 and 1."""
        mean, variance = _moments_where((x > 0) & (x < 1), x)
        self.concentration.start_at(torch.where(variance > 0, mean * (1 - mean) / variance - 1, 10.0))

    def output_bias(self, x: Tensor) -> Tensor:
        """Return an initial bias of the network's last layer: `intercept`, the log odds of 0 and of 1, then zeros.

        Args:
            x: Training data, with shape (N, D).
        """
        bias, size = super().output_bias(x), x.shape[-1]
        between = log_of(((x > 0) & (x < 1)).to(x.dtype).mean(0))
        for block, end in ((1, 0.0), (2, 1.0)):
            bias[block * size : (block + 1) * size] = log_of((x == end).to(x.dtype).mean(0)) - between
        return bias

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        blocks = self.blocks(z, covariates)
        logits, zero_logits, one_logits = next(blocks), next(blocks), next(blocks)
        return ZeroOneInflatedBeta(logits, self.concentration(blocks), zero_logits, one_logits).to_event(1)


def _mean_where(chosen: Tensor, x: Tensor) -> Tensor:
    """Compute the means of chosen entries of x, with shape (D,), over its first dimension; 0 where none is chosen."""
    return torch.where(chosen, x, 0.0).sum(0) / chosen.sum(0).clamp(min=1)


def _moments_where(chosen: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the means and variances of chosen entries of x, each with shape (D,), over its first dimension."""
    mean = _mean_where(chosen, x)
    return mean, _mean_where(chosen, (x - mean).square())


def _with_gate(bias: Tensor, x: Tensor) -> Tensor:
    """Set the second block of a bias to the logits of the share of zeros in x."""
    size = x.shape[-1]
    bias[size : 2 * size] = logit_of((x == 0).to(x.dtype).mean(0))
    return bias
