"""Likelihoods of real and of positive data."""

from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.distributions import LogNormal, MeanGamma, StudentT
from pyrovae.likelihoods.base import Likelihood, LocationScaleLikelihood, scale_in
from pyrovae.likelihoods.positive import Choice, Positive
from pyrovae.likelihoods.units import Moments, Units, log_of_mean, log_units


class NormalLikelihood(LocationScaleLikelihood):
    """Independent normal, for real data.

        p(x|z) = prod_d N(x_d; loc_d, scale_d^2),  loc = centre + spread network(z)

    Without bounds on a variance from the network, the likelihood is unbounded (Mattei and Frellsen, "Leveraging the
    exact likelihood of deep latent variable models", NeurIPS 2018, https://arxiv.org/abs/1802.04826).

    Args:
        network: Module from the latent (and covariates) to the parameters of p(x|z): D locations, then D scales
            if scale is "network".
        scale: Standard deviation: a positive number (fixed, in the data's units), "global" (learned, one for all
            dimensions), "dimension" (learned, one per dimension), or "network" (D more outputs). Learned scales are
            relative to the spread of each column and start at 1.
        scale_bounds: Smooth bounds (low, high) of a relative scale, learned or from the network (see `Positive`).

    Raises:
        ValueError: If scale is neither a positive number nor one of the words, or the bounds are not 0 < low < high.
    """

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        return dist.Normal(*self.loc_and_scale(z, covariates)).to_event(1)


class LaplaceLikelihood(LocationScaleLikelihood):
    """Independent Laplace, for real data with absolute errors.

        p(x|z) = prod_d exp(-|x_d - loc_d| / scale_d) / (2 scale_d),  loc = centre + spread network(z)

    Args:
        network: Module from the latent (and covariates) to the parameters of p(x|z): D medians, then D scales if
            scale is "network".
        scale: Mean absolute error: a positive number (fixed, in the data's units), "global" (learned, one for all
            dimensions), "dimension" (learned, one per dimension), or "network" (D more outputs). Learned scales are
            relative to the spread of each column and start at 1.
        scale_bounds: Smooth bounds (low, high) of a relative scale, learned or from the network (see `Positive`).

    Raises:
        ValueError: If scale is neither a positive number nor one of the words, or the bounds are not 0 < low < high.
    """

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        return dist.Laplace(*self.loc_and_scale(z, covariates)).to_event(1)


class StudentTLikelihood(Likelihood):
    """Independent Student-t, for real data with outliers.

        p(x|z) = prod_d t(x_d; df_d, loc_d, scale_d),  loc = centre + spread network(z)

    The density is t((x - loc)/scale; df)/scale, so the variance is scale^2 df/(df - 2) if df > 2 (Lange, Little and
    Taylor, "Robust statistical modeling using the t distribution", JASA 1989, https://doi.org/10.2307/2290063).

    Args:
        network: Module from the latent (and covariates) to the parameters of p(x|z): D locations, then D scales
            if scale is "network", then D degrees of freedom if df is "network".
        scale: Scale: a positive number (fixed, in the data's units), "global" (learned, one for all dimensions),
            "dimension" (learned, one per dimension), or "network" (D more outputs). Learned scales are relative to the
            spread of each column and start at 1.
        df: Degrees of freedom, with the same choices as scale. Learned ones start at 10 and stay between 1.1, where the
            mean exists, and 1000, where float32 still resolves the density.
        scale_bounds: Smooth bounds (low, high) of a relative scale, learned or from the network (see `Positive`).

    Raises:
        ValueError: If scale or df is neither a positive number nor one of the words, or the bounds are not
            0 < low < high.
    """

    has_units: ClassVar[bool] = True

    def __init__(
        self,
        network: nn.Module,
        scale: Choice = "global",
        df: Choice = "global",
        scale_bounds: tuple[float, float] = (1e-6, 1e6),
    ) -> None:
        super().__init__(network)
        num_blocks = self.num_outputs(1, scale=scale, df=df)
        self.scale = Positive("scale", scale, network, num_blocks, bounds=scale_bounds)
        self.df = Positive("df", df, network, num_blocks, start=10.0, bounds=(1.1, 1000.0))
        self.units = Units.none()

    def set_units(self, moments: Moments) -> None:
        """Take centre and spread of each column from training data."""
        self.units = Units(moments.mean, moments.spread, moments.resolution)

    def intercept(self, x: Tensor) -> Tensor:
        """Return the outputs whose locations are the data's means."""
        return self.units.inverse(x.mean(0))

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        blocks = self.blocks(z, covariates)
        loc, scale, df = self.units.location(next(blocks)), scale_in(self.units, self.scale, blocks), self.df(blocks)
        return StudentT(df, loc, scale).to_event(1)


class LogNormalLikelihood(LocationScaleLikelihood):
    """Independent log-normal, for positive data.

        p(x|z) = prod_d N(log x_d; loc_d, scale_d^2) / x_d,  loc = centre + spread network(z)

    Args:
        network: Module from the latent (and covariates) to the parameters of p(x|z): D means of log x, then D
            scales if scale is "network".
        scale: Standard deviation of log x: a positive number (fixed, without unit), "global" (learned, one for all
            dimensions), "dimension" (learned, one per dimension), or "network" (D more outputs). Learned scales are
            relative to the spread of log x of each column and start at 1.
        scale_bounds: Smooth bounds (low, high) of a relative scale, learned or from the network (see `Positive`).

    Raises:
        ValueError: If scale is neither a positive number nor one of the words, or the bounds are not 0 < low < high.
    """

    def set_units(self, moments: Moments) -> None:
        """Take centre and spread of log x of each column from training data."""
        self.units = log_units(moments)

    def intercept(self, x: Tensor) -> Tensor:
        """Return the outputs whose locations are the means of log x."""
        return self.units.inverse(x.log().mean(0))

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        return LogNormal(*self.loc_and_scale(z, covariates)).to_event(1)


class GammaLikelihood(Likelihood):
    """Independent gamma, for positive data.

        p(x|z) = prod_d Gamma(x_d; s_d, s_d/m_d),  log m = centre + network(z)

    The mean is m, the variance m^2/s, and centre the log of each column's mean in training data, 0 without (McCullagh
    and Nelder, "Generalized linear models", 1989, chapter 8, https://doi.org/10.1007/978-1-4899-3242-6). Every
    conditional standard deviation is in proportion to the mean, as with the log-normal, but the upper tail is lighter.

    Args:
        network: Module from the latent (and covariates) to the parameters of p(x|z): D logarithms of the mean, then
            D outputs for s if concentration is "network".
        concentration: Concentration s: a positive number (fixed), "global" (learned, one for all dimensions),
            "dimension" (learned, one per dimension), or "network" (D more outputs). Learned ones start at 1, the
            exponential, and stay between 0.001 and 10,000 (see `Positive`). A blueprint
            starts those of dimensions at the data's variances.

    Raises:
        ValueError: If concentration is neither a positive number nor one of the words.
    """

    has_units: ClassVar[bool] = True

    def __init__(self, network: nn.Module, concentration: Choice = "global") -> None:
        super().__init__(network)
        num_blocks = self.num_outputs(1, concentration=concentration)
        self.concentration = Positive("concentration", concentration, network, num_blocks, bounds=(1e-3, 1e4))
        self.units = Units.none()

    def set_units(self, moments: Moments) -> None:
        """Take the logarithm of the mean of each column from training data as the centre of log m."""
        self.units = Units(log_of_mean(moments), torch.ones_like(moments.mean))

    def intercept(self, x: Tensor) -> Tensor:
        """Return the outputs whose means are those of the data."""
        return self.units.inverse(x.mean(0).log())

    def start_at(self, x: Tensor) -> None:
        """Start s of the dimensions at the data's moments."""
        self.concentration.start_at(x.mean(0).square() / x.var(0, correction=0))

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        blocks = self.blocks(z, covariates)
        log_mean, concentration = self.units.location(next(blocks)), self.concentration(blocks)
        return MeanGamma(log_mean, concentration).to_event(1)
