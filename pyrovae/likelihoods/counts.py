"""Likelihoods of counts, with a known total (Bernoulli, binomial, multinomial) or without one (Poisson, ...)."""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.distributions import (
    LogitBetaBinomial,
    LogitBinomial,
    LogPoisson,
    MeanNegativeBinomial,
    WholeMultinomial,
    ZeroInflated,
)
from pyrovae.likelihoods.base import Likelihood, largest_count, log_of, logit_of
from pyrovae.likelihoods.positive import Choice, Positive


class BernoulliLikelihood(Likelihood):
    """Independent Bernoulli, for data that are 0 or 1.

        p(x|z) = prod_d Bernoulli(x_d; sigmoid(network(z)_d))

    Args:
        network: Module from the latent (and covariates) to the parameters of p(x|z): D logits.
    """

    def intercept(self, x: Tensor) -> Tensor:
        """Return the logits of the data's means."""
        return logit_of(x.mean(0))

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        return dist.Bernoulli(logits=self.outputs(z, covariates)).to_event(1)


class _KnownTotal(Likelihood):
    """Base of the likelihoods of counts with a known total."""

    def __init__(self, network: nn.Module, total_count: int) -> None:
        super().__init__(network)
        if total_count < 1:
            raise ValueError(f"total_count must be at least 1, got {total_count}")
        self.total_count = total_count

    @classmethod
    def arguments_for(cls, x: Tensor) -> dict[str, Any]:
        """Suggest total_count, the largest count in the data."""
        return {"total_count": largest_count(x)}

    def intercept(self, x: Tensor) -> Tensor:
        """Return the logits of the data's means over total_count."""
        return logit_of(x.mean(0) / self.total_count)


class BinomialLikelihood(_KnownTotal):
    """Independent binomial, for counts with a known total.

        p(x|z) = prod_d Bin(x_d; n, sigmoid(network(z)_d))

    Args:
        network: Module from the latent (and covariates) to the parameters of p(x|z): D logits.
        total_count: Number of trials n of every dimension; data are integers 0..n.

    Raises:
        ValueError: If total_count is below 1.
    """

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        return LogitBinomial(self.total_count, self.outputs(z, covariates)).to_event(1)


class BetaBinomialLikelihood(_KnownTotal):
    """Independent beta-binomial, for counts with a known total that are overdispersed against a binomial.

        p(x|z) = prod_d int Bin(x_d; n, p) Beta(p; m_d s_d, (1 - m_d) s_d) dp,  m = sigmoid(network(z))

    The mean is n m, the variance n m (1 - m) (1 + (n - 1)/(s + 1)) (Skellam 1948,
    https://doi.org/10.1111/j.2517-6161.1948.tb00014.x).

    Args:
        network: Module from the latent (and covariates) to the parameters of p(x|z): D logits of the mean, then
            D outputs for s if concentration is "network".
        total_count: Number of trials n of every dimension; data are integers 0..n.
        concentration: Concentration s: a positive number (fixed), "global" (learned, one for all dimensions),
            "dimension" (learned, one per dimension), or "network" (D more outputs). Learned ones start at 10 and stay
            between 0.001 and 1000, beyond which float32 loses the probabilities (see `Positive`). A blueprint
            starts those of dimensions at the data's variances.

    Raises:
        ValueError: If total_count is below 1, or concentration is neither a positive number nor one of the words.
    """

    def __init__(self, network: nn.Module, total_count: int, concentration: Choice = "global") -> None:
        super().__init__(network, total_count)
        num_blocks = self.num_outputs(1, concentration=concentration)
        self.concentration = Positive(
            "concentration", concentration, network, num_blocks, start=10.0, bounds=(1e-3, 1e3)
        )

    def start_at(self, x: Tensor) -> None:
        """Start s of the dimensions at the data's moments, or at 1.01 times a binomial's variance if it is larger."""
        n, share = self.total_count, x.mean(0) / self.total_count
        least = (n * share * (1 - share)).clamp(min=1e-3)
        ratio = (x.var(0, correction=0) / least).clamp(min=1.01)
        self.concentration.start_at((n - 1) / (ratio - 1) - 1)

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        blocks = self.blocks(z, covariates)
        logits, concentration = next(blocks), self.concentration(blocks)
        return LogitBetaBinomial(self.total_count, logits, concentration).to_event(1)


class PoissonLikelihood(Likelihood):
    """Independent Poisson, for counts.

        p(x|z) = prod_d Poisson(x_d; exp(network(z)_d))

    Args:
        network: Module from the latent (and covariates) to the parameters of p(x|z): D logarithms of the mean.
    """

    starts_at_means = True

    def intercept(self, x: Tensor) -> Tensor:
        """Return the logarithms of the data's means."""
        return log_of(x.mean(0))

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        return LogPoisson(self.outputs(z, covariates)).to_event(1)


class ZeroInflatedPoissonLikelihood(Likelihood):
    """Independent zero-inflated Poisson, for counts with extra zeros.

        p(x|z) = prod_d [g_d 1(x_d = 0) + (1 - g_d) Poisson(x_d; exp(a_d))]

    Lambert, "Zero-inflated Poisson regression", Technometrics 1992, https://doi.org/10.2307/1269547.

    Args:
        network: Module from the latent (and covariates) to the parameters of p(x|z): D logarithms a of the Poisson
            mean, then D logits of the share g of extra zeros.
    """

    num_blocks = 2
    starts_at_means = True

    def intercept(self, x: Tensor) -> Tensor:
        """Return the logarithms of twice the data's means, since the share of extra zeros starts at 1/2."""
        return log_of(2 * x.mean(0))

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        log_rate, gate_logits = self.blocks(z, covariates)
        return ZeroInflated(LogPoisson(log_rate), gate_logits=gate_logits).to_event(1)


class _NegativeBinomial(Likelihood):
    """Base of the negative binomial likelihoods, with the inverse dispersion r."""

    starts_at_means = True

    def __init__(self, network: nn.Module, total_count: Choice = "global") -> None:
        super().__init__(network)
        num_blocks = self.num_outputs(1, total_count=total_count)
        self.total_count = Positive("total_count", total_count, network, num_blocks, bounds=(1e-3, 1e4))


class NegativeBinomialLikelihood(_NegativeBinomial):
    """Independent negative binomial, for counts that are overdispersed against a Poisson.

        p(x|z) = prod_d NB(x_d; mean_d, r_d),  mean = exp(network(z))

    The variance is mean + mean^2/r. In Pyro's terms, r is total_count, the inverse dispersion, and the logits are
    log(mean/r) (Lawless 1987, https://doi.org/10.2307/3314912; for gene counts Lopez et al. 2018,
    https://doi.org/10.1038/s41592-018-0229-2).

    Args:
        network: Module from the latent (and covariates) to the parameters of p(x|z): D logarithms of the mean, then
            D outputs for r if total_count is "network".
        total_count: Inverse dispersion r: a positive number (fixed), "global" (learned, one for all dimensions),
            "dimension" (learned, one per dimension), or "network" (D more outputs). Learned ones start at 1 and stay
            between 0.001 and 10,000, beyond which float32 loses the probabilities (see `Positive`). A blueprint
            starts those of dimensions at the data's variances.

    Raises:
        ValueError: If total_count is neither a positive number nor one of the words.
    """

    def intercept(self, x: Tensor) -> Tensor:
        """Return the logarithms of the data's means."""
        return log_of(x.mean(0))

    def start_at(self, x: Tensor) -> None:
        """Start r of the dimensions at the data's moments, or at 1 % more than a Poisson's variance if it is larger."""
        mean = x.mean(0).clamp(min=1e-3)
        self.total_count.start_at(mean.square() / torch.maximum(x.var(0, correction=0) - mean, mean / 100))

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        blocks = self.blocks(z, covariates)
        log_mean, total_count = next(blocks), self.total_count(blocks)
        return MeanNegativeBinomial(log_mean, total_count).to_event(1)


class ZeroInflatedNegativeBinomialLikelihood(_NegativeBinomial):
    """Independent zero-inflated negative binomial, for overdispersed counts with extra zeros.

        p(x|z) = prod_d [g_d 1(x_d = 0) + (1 - g_d) NB(x_d; mean_d, r_d)]

    NB is that of `NegativeBinomialLikelihood` (Greene 1994, https://ssrn.com/abstract=1293115).

    Args:
        network: Module from the latent (and covariates) to the parameters of p(x|z): D logarithms of the mean of
            NB, then D logits of the share g of extra zeros, then D outputs for r if total_count is "network".
        total_count: Inverse dispersion r: a positive number (fixed), "global" (learned, one for all dimensions),
            "dimension" (learned, one per dimension), or "network" (D more outputs). Learned ones start at 1 and stay
            between 0.001 and 10,000, beyond which float32 loses the probabilities (see `Positive`). A blueprint
            starts those of dimensions at the data's variances.

    Raises:
        ValueError: If total_count is neither a positive number nor one of the words.
    """

    num_blocks = 2

    def intercept(self, x: Tensor) -> Tensor:
        """Return the logarithms of twice the data's means, since the share of extra zeros starts at 1/2."""
        return log_of(2 * x.mean(0))

    def start_at(self, x: Tensor) -> None:
        """Start r of the dimensions where the variance is that of the data, or 1 % of the mean above its least one.

        With half of the entries 0, the variance is m + m^2 + 2 m^2/r for the mean m.
        """
        mean = x.mean(0).clamp(min=1e-3)
        excess = x.var(0, correction=0) - mean - mean.square()
        self.total_count.start_at(2 * mean.square() / torch.maximum(excess, mean / 100))

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        blocks = self.blocks(z, covariates)
        log_mean, gate_logits, total_count = next(blocks), next(blocks), self.total_count(blocks)
        counts = MeanNegativeBinomial(log_mean, total_count)
        return ZeroInflated(counts, gate_logits=gate_logits).to_event(1)


class MultinomialLikelihood(_KnownTotal):
    """Multinomial, for D counts with a known sum.

        p(x|z) = Mult(x; total_count, softmax(network(z)))

    The entries of x are dependent, so a mask over single entries is not possible.

    Args:
        network: Module from the latent (and covariates) to the parameters of p(x|z): D logits.
        total_count: Sum of the D counts of every datum.

    Raises:
        ValueError: If total_count is below 1.
    """

    @classmethod
    def arguments_for(cls, x: Tensor) -> dict[str, Any]:
        """Suggest total_count, the largest sum of counts in the data. Data with other sums lie outside the support."""
        return {"total_count": largest_count(x.sum(-1))}

    def intercept(self, x: Tensor) -> Tensor:
        """Return the logarithms of the data's means."""
        return log_of(x.mean(0))

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        return WholeMultinomial(self.total_count, self.outputs(z, covariates))
