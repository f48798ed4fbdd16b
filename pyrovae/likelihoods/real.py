"""Likelihoods of real and of positive data."""

import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.distributions import StudentT
from pyrovae.likelihoods.base import Choice, Likelihood, LocationScaleLikelihood, Positive


class NormalLikelihood(LocationScaleLikelihood):
    """Independent normal, a density for real data: p(x|z) = prod_d N(x_d; network(z)_d, scale_d^2).

    A variance that the network gives without a bound makes the likelihood unbounded (Mattei and Frellsen, "Leveraging
    the exact likelihood of deep latent variable models", NeurIPS 2018, https://arxiv.org/abs/1802.04826).

    Args:
        network: Maps z to D locations; to D locations and then D numbers for the scales where scale is "network".
        scale: A number fixes the standard deviation; "global" learns one for all dimensions; "dimension" learns one for
            each; "network" lets the network give one per datum and dimension. Learned ones start at 1. Units: those of
            the data.
        scale_bounds: (low, high), between which a scale that is learned or given stays, smoothly: log scale = m +
            h tanh(t + a/h) for the number a (see `Positive`); the log-variance stays between twice their logarithms.

    Raises:
        ValueError: If a fixed scale is not positive, the word is none of these, or the bounds are not 0 < low < high.
    """

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        return dist.Normal(*self.loc_and_scale(z, covariates)).to_event(1)


class LaplaceLikelihood(LocationScaleLikelihood):
    """Independent Laplace, for real data with absolute errors: prod_d exp(-|x_d - network(z)_d| / scale_d)/(2 scale_d).

    Args:
        network: Maps z to D medians; to D medians and then D numbers for the scales where scale is "network".
        scale: The mean absolute error, as `NormalLikelihood` takes it. Units: those of the data.
        scale_bounds: As `NormalLikelihood`.

    Raises:
        ValueError: As `NormalLikelihood`.
    """

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        return dist.Laplace(*self.loc_and_scale(z, covariates)).to_event(1)


class StudentTLikelihood(Likelihood):
    """Independent Student-t, for real data with outliers: p(x|z) = prod_d t(x_d; df_d, network(z)_d, scale_d).

    The density is t((x - loc)/scale; df)/scale, so the variance is scale^2 df/(df - 2) where df > 2 (Lange, Little and
    Taylor, "Robust statistical modeling using the t distribution", JASA 1989, https://doi.org/10.2307/2290063).

    Args:
        network: Maps z to D locations, then D numbers for the scales where scale is "network", then D for the degrees
            of freedom where df is.
        scale: As `NormalLikelihood` takes it. Units: those of the data.
        df: Degrees of freedom: a number fixes them; "global", "dimension" and "network" as for the scale. Learned ones
            start at 10 and stay between 1.1, where there is a mean, and 1000, where float32 still tells their density.
        scale_bounds: As `NormalLikelihood`.

    Raises:
        ValueError: As `NormalLikelihood`, for scale and for df.
    """

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

    def intercept(self, x: Tensor) -> Tensor:
        """The data's means, as locations."""
        return x.mean(0)

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        blocks = self.blocks(z, covariates)
        loc, scale, df = next(blocks), self.scale(blocks), self.df(blocks)
        return StudentT(df, loc, scale).to_event(1)


class LogNormalLikelihood(LocationScaleLikelihood):
    """Independent log-normal, for positive data: p(x|z) = prod_d N(log x_d; network(z)_d, scale_d^2) / x_d.

    Args:
        network: Maps z to the D means of log x; to them and then D numbers for the scales where scale is "network".
        scale: The standard deviation of log x, as `NormalLikelihood` takes it. It has no unit.
        scale_bounds: As `NormalLikelihood`.

    Raises:
        ValueError: As `NormalLikelihood`.
    """

    def intercept(self, x: Tensor) -> Tensor:
        """The means of log x."""
        return x.log().mean(0)

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        return dist.LogNormal(*self.loc_and_scale(z, covariates)).to_event(1)
