"""Likelihoods of real data that were rounded to a grid, as probabilities."""

import math
from typing import Any, ClassVar

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.columns import grid_of
from pyrovae.distributions import RoundedNormal, RoundedStudentT
from pyrovae.likelihoods.base import LocationScaleLikelihood, scale_in
from pyrovae.likelihoods.positive import Choice, Positive
from pyrovae.likelihoods.units import Units


class RoundedNormalLikelihood(LocationScaleLikelihood):
    """Independent normal rounded to multiples of a resolution, for measurements with few digits.

        P(x_d|z) = Phi((x_d + r/2 - loc_d)/scale_d) - Phi((x_d - r/2 - loc_d)/scale_d)

    loc is centre + spread network(z), with centre and spread of each column from training data (0 and 1 without). log
    p(x) is the log of a probability, at most 0, and comparable with that of counts. With a small scale it does not grow
    without bound on repeated values, as a density does (Heitjan, "Inference from grouped continuous data: a review",
    Statistical Science 1989, https://doi.org/10.1214/ss/1177012601).

    Args:
        network: Module from the latent (and covariates) to the parameters of p(x|z): D numbers for the
            locations, then D for the scales if scale is "network".
        resolution: Distance r of neighbouring values in every column, in the data's units; data are multiples of r.
        scale: Standard deviation before rounding, in the data's units: a positive number (fixed), "global" (learned,
            one for all dimensions), "dimension" (learned, one per dimension), or "network" (D more outputs). Learned
            scales are relative to the spread of each column and start at 1.
        scale_bounds: Smooth bounds (low, high) of a scale that is not a fixed number (see `Positive`).

    Raises:
        ValueError: If resolution is not a positive number, scale is neither a positive number nor one of the words, or
            the bounds are not 0 < low < high.
    """

    floors_scales: ClassVar[bool] = False  # a probability is at most 1 for any scale

    def __init__(
        self,
        network: nn.Module,
        resolution: float,
        scale: Choice = "global",
        scale_bounds: tuple[float, float] = (1e-6, 1e6),
    ) -> None:
        super().__init__(network, scale, scale_bounds)
        self.resolution = _positive(resolution)

    @classmethod
    def arguments_for(cls, x: Tensor) -> dict[str, Any]:
        """Suggest resolution: the largest of 1, 2, 2.5 or 5 times a power of ten that divides all x; 1 if none does."""
        return {"resolution": grid_of(x) or 1.0}

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        return RoundedNormal(*self.loc_and_scale(z, covariates), self.resolution).to_event(1)


class RoundedStudentTLikelihood(LocationScaleLikelihood):
    """Independent Student-t rounded to multiples of a resolution, for measurements with few digits and outliers.

        P(x_d|z) = F((x_d + r/2 - loc_d)/scale_d) - F((x_d - r/2 - loc_d)/scale_d)

    F is the distribution function of t with df degrees of freedom, and loc is that of `RoundedNormalLikelihood`. log
    p(x) is the log of a probability, at most 0, and comparable with that of counts. F is a quadrature: a step takes
    about twenty times as long as with `RoundedNormalLikelihood`.

    Args:
        network: Module from the latent (and covariates) to the parameters of p(x|z): D numbers for the locations, then
            D for the scales if scale is "network", then D for the degrees of freedom if df is "network".
        resolution: Distance r of neighbouring values in every column, in the data's units; data are multiples of r.
        scale: Scale before rounding, in the data's units: a positive number (fixed), "global" (learned, one for all
            dimensions), "dimension" (learned, one per dimension), or "network" (D more outputs). Learned scales are
            relative to the spread of each column and start at 1.
        df: Degrees of freedom, with the same choices as scale. Learned ones start at 10 and stay between 1.1, where the
            mean exists, and 1000.
        scale_bounds: Smooth bounds (low, high) of a scale that is not a fixed number (see `Positive`).

    Raises:
        ValueError: If resolution is not a positive number, scale or df is neither a positive number nor one of the
            words, or the bounds are not 0 < low < high.
    """

    floors_scales: ClassVar[bool] = False  # a probability is at most 1 for any scale

    def __init__(
        self,
        network: nn.Module,
        resolution: float,
        scale: Choice = "global",
        df: Choice = "global",
        scale_bounds: tuple[float, float] = (1e-6, 1e6),
    ) -> None:
        super(LocationScaleLikelihood, self).__init__(network)
        self.resolution = _positive(resolution)
        num_blocks = self.num_outputs(1, scale=scale, df=df)
        self.scale = Positive("scale", scale, network, num_blocks, bounds=scale_bounds)
        self.df = Positive("df", df, network, num_blocks, start=10.0, bounds=(1.1, 1000.0))
        self.units = Units.none()

    @classmethod
    def arguments_for(cls, x: Tensor) -> dict[str, Any]:
        """Suggest resolution: the largest of 1, 2, 2.5 or 5 times a power of ten that divides all x; 1 if none does."""
        return {"resolution": grid_of(x) or 1.0}

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        blocks = self.blocks(z, covariates)
        loc, scale, df = self.units.location(next(blocks)), scale_in(self.units, self.scale, blocks), self.df(blocks)
        return RoundedStudentT(df, loc, scale, self.resolution).to_event(1)


def _positive(resolution: float) -> float:
    if not 0 < resolution < math.inf:
        raise ValueError(f"resolution must be a positive number, got {resolution}")
    return float(resolution)
