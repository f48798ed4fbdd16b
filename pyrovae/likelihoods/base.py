"""Base classes of likelihoods."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.likelihoods.positive import Choice, Positive
from pyrovae.likelihoods.units import Moments, Units
from pyrovae.nn import join, out_features, split

# A positive number (fixed), "global" (learned, one for all dimensions), "dimension" (learned, one per dimension), or
# "network" (an output of the network per datum and dimension).


class Likelihood(nn.Module):
    """Base class of likelihoods p(x|z) and p(x|z,c).

    To add a likelihood:

    1. Subclass `Likelihood`. A constructor with further arguments takes `network` first and calls
       `super().__init__(network)`.
    2. Write `forward`. It calls `outputs` or `blocks`, and returns a Pyro distribution with event_shape (D,) and the
       batch_shape of z's leading dimensions.
    3. If the distribution has several parameters, set `num_blocks` to the number of blocks of D outputs, or override
       `num_outputs`.
    4. If an argument has no default, override `arguments_for`, which suggests its value from data.
    5. For `output_bias="data"`, override `intercept`.
    6. If the network's outputs are in the data's units, override `set_units`, and set `has_units = True`. `Blueprint`
       then takes the units from the data, and the encoder's input is standardised by column.
    7. If the data are counts without a known total, set `starts_at_means = True`. By default `Blueprint` then starts
       the decoder at the data's means and gives the encoder log(1 + x).

    Args:
        network: Module from the latent (and covariates) to the parameters of p(x|z), with shape (..., num_outputs(D)).

    Example:
        >>> import pyro.distributions as dist
        >>> from pyrovae.nn import MLP
        >>> class ExponentialLikelihood(Likelihood):
        ...     def forward(self, z, covariates=None):
        ...         return dist.Exponential(self.outputs(z, covariates).exp()).to_event(1)
        >>> ExponentialLikelihood(MLP(2, 5))(torch.zeros(4, 3, 2)).batch_shape
        torch.Size([4, 3])
    """

    num_blocks: ClassVar[int] = 1
    starts_at_means: ClassVar[bool] = False
    has_units: ClassVar[bool] = False
    floors_scales: ClassVar[bool] = True  # whether learned scales need a floor, as those of densities do

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @classmethod
    def num_outputs(cls, num_dims: int, **arguments: Any) -> int:
        """Return the number of outputs that the network needs: D times (`num_blocks` + arguments equal to "network").

        Args:
            num_dims: Dimension D of one datum.
            **arguments: Constructor arguments of the likelihood.
        """
        return num_dims * (cls.num_blocks + list(arguments.values()).count("network"))

    @classmethod
    def arguments_for(cls, x: Tensor) -> dict[str, Any]:
        """Suggest values for the constructor arguments without a default.

        Args:
            x: Training data, with shape (N, D).
        """
        return {}

    def intercept(self, x: Tensor) -> Tensor:
        """Return the intercept-only fit: the first block of outputs for which p(x|z) has the data's means.

        Args:
            x: Training data, with shape (N, D).

        Returns:
            The first block of outputs, with shape (D,).

        Raises:
            ValueError: If the class does not override this method.
        """
        raise ValueError(
            f"the initial output bias needs a method intercept(x), but {type(self).__name__} has none; write one, or "
            'use output_bias="random"'
        )

    def set_units(self, moments: Moments) -> None:
        """Take centre and spread of each column from training data, if the parameters of p(x|z) have their units.

        Args:
            moments: Moments of the D columns.
        """

    def start_at(self, x: Tensor) -> None:
        """Start learned parameters of the dimensions, such as dispersions, where p(x|z) has the data's variances.

        Args:
            x: Training data, with shape (N, D).
        """

    def output_bias(self, x: Tensor) -> Tensor:
        """Return an initial bias of the network's last layer: `intercept`, then zeros for the other blocks.

        Args:
            x: Training data, with shape (N, D).
        """
        first = self.intercept(x)
        return torch.cat([first, first.new_zeros(out_features(self.network) - len(first))])

    def outputs(self, z: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Run the network on the latent with covariates appended.

        Args:
            z: Latents, with shape (..., N, Z).
            covariates: Covariates c, with shape (N, C); None if the model has none.
        """
        return self.network(join(z, covariates))

    def blocks(self, z: Tensor, covariates: Tensor | None = None) -> Iterator[Tensor]:
        """Run the network, and iterate over its output in blocks of shape (..., N, D).

        The first `num_blocks` are those of the likelihood. One more follows for each argument equal to "network", in
        the order of the constructor; `Positive` takes it from the iterator.

        Args:
            z: Latents, with shape (..., N, Z).
            covariates: Covariates c, with shape (N, C); None if the model has none.
        """
        from_network = sum(isinstance(part, Positive) and part.choice == "network" for part in self.children())
        return iter(split(self.outputs(z, covariates), self.num_blocks + from_network))

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions.

        Args:
            z: Latents, with shape (..., N, Z).
            covariates: Covariates c, with shape (N, C); None if the model has none.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a method forward; write one that returns p(x|z)")


class LocationScaleLikelihood(Likelihood):
    """Base class of the likelihoods with a location from the network and a scale.

        location = centre + spread network(z),  learned scale = spread v

    Centre and spread of each column are those of `set_units`, or 0 and 1.

    Args:
        network: Module from the latent (and covariates) to the parameters of p(x|z): D locations, then D scales
            if scale is "network".
        scale: Scale: a positive number (fixed, in the data's units), "global" (learned, one for all dimensions),
            "dimension" (learned, one per dimension), or "network" (D more outputs). Learned scales v are relative to
            the spread of each column and start at 1.
        scale_bounds: Smooth bounds (low, high) of a scale v that is not a fixed number (see `Positive`).

    Raises:
        ValueError: If scale is neither a positive number nor one of the words, or the bounds are not 0 < low < high.
    """

    has_units: ClassVar[bool] = True

    def __init__(
        self, network: nn.Module, scale: Choice = "global", scale_bounds: tuple[float, float] = (1e-6, 1e6)
    ) -> None:
        super().__init__(network)
        self.scale = Positive("scale", scale, network, self.num_outputs(1, scale=scale), bounds=scale_bounds)
        self.units = Units.none()

    def set_units(self, moments: Moments) -> None:
        """Take centre and spread of each column from training data."""
        self.units = Units(moments.mean, moments.spread, moments.resolution)

    def loc_and_scale(self, z: Tensor, covariates: Tensor | None = None) -> tuple[Tensor, Tensor | float]:
        """Run the network. Return locations, with shape (..., D), and scales, which broadcast against them."""
        blocks = self.blocks(z, covariates)
        return self.units.location(next(blocks)), scale_in(self.units, self.scale, blocks)

    def intercept(self, x: Tensor) -> Tensor:
        """Return the outputs whose locations are the data's means."""
        return self.units.inverse(x.mean(0))


def scale_in(units: Units, scale: Positive, blocks: Iterator[Tensor]) -> Tensor | float:
    """Return a scale in the data's units: a fixed number as it is, a learned one times the spread of the column."""
    value = scale(blocks)
    return units.scale(value) if isinstance(value, Tensor) else value


def logit_of(share: Tensor) -> Tensor:
    """Return the logits of shares, clamped to [0.001, 0.999] so that a pixel that is always 0 can still be learned."""
    return torch.logit(share, eps=1e-3)


def log_of(mean: Tensor) -> Tensor:
    """Return the logarithms of means, clamped from below at 0.001."""
    return mean.clamp(min=1e-3).log()


def largest_count(x: Tensor) -> int:
    """Return the largest value of x as a count, clamped to [1, 2^31]."""
    return int(x.max().clamp(1, 2**31))
