"""What the likelihoods share: their base, and the positive numbers (scales, dispersions) beside the network."""

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.nn import join, out_features, split

# A number fixes it; "global" learns one for all dimensions; "dimension" learns one for each; "network" lets the network
# give one per datum and dimension.
Choice = float | Literal["global", "dimension", "network"]


class Likelihood(nn.Module):
    """Base of the likelihoods. A new one is a forward that turns the network's numbers into a Pyro distribution.

    The distribution has event_shape (D,) and the batch_shape of z's leading dimensions. Where the network must give
    other than D numbers, `num_outputs` says how many; each parameter is a block of D of them.

    Args:
        network: Maps z, with shape (..., Z), to shape (..., num_outputs(D)).

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

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @classmethod
    def num_outputs(cls, num_dims: int, **arguments: Any) -> int:
        """How many numbers the network must give for data of num_dims dimensions, under these constructor arguments.

        Unless a class says otherwise: `num_blocks` times D, and D more for each argument that is "network".
        """
        return num_dims * (cls.num_blocks + list(arguments.values()).count("network"))

    @classmethod
    def arguments_for(cls, x: Tensor) -> dict[str, Any]:
        """Constructor arguments without a default that the data, with shape (N, D), suggest."""
        return {}

    def intercept(self, x: Tensor) -> Tensor:
        """The first block of the network's numbers at which p(x|z) has the means of the data.

        Args:
            x: Training data, with shape (N, D).

        Returns:
            D numbers.

        Raises:
            ValueError: If the class does not say.
        """
        raise ValueError(
            f"{type(self).__name__} does not say at which numbers of the network it has the data's means; give it a "
            "method intercept(x), or leave the output bias as it starts"
        )

    def output_bias(self, x: Tensor) -> Tensor:
        """Compute a start for the network's last bias from data: `intercept`, then zeros for the other blocks."""
        first = self.intercept(x)
        return torch.cat([first, first.new_zeros(out_features(self.network) - len(first))])

    def outputs(self, z: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Run the network on z, with shape (..., N, Z), with covariates, with shape (N, C), appended."""
        return self.network(join(z, covariates))

    def blocks(self, z: Tensor, covariates: Tensor | None = None) -> Iterator[Tensor]:
        """Run the network; give its numbers a block, with shape (..., N, D), at a time.

        The likelihood's own `num_blocks` come first, then those for the arguments that are "network", in the order of
        the constructor; `Positive` takes them from the iterator.
        """
        given = sum(isinstance(part, Positive) and part.choice == "network" for part in self.children())
        return iter(split(self.outputs(z, covariates), self.num_blocks + given))

    def forward(self, z: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(x|z), with the batch_shape of z's leading dimensions."""
        raise NotImplementedError(f"{type(self).__name__} needs a forward that returns a distribution")


class Positive(nn.Module):
    """A positive number for each dimension: fixed, learned, or given by the network.

    Learned and given ones stay between smooth bounds, v(a) = exp(m + h tanh(t + a/h)), where m and h are the middle and
    half the length of [log low, log high], and v(0) = start, which sets t. Where start lies outside the bounds, v(0) is
    their geometric mean. Between the bounds, log v follows a nearly one to one; learned ones begin at a = 0.

    Args:
        name: What the number is called in the constructor of its likelihood.
        choice: A number fixes it; "global" learns one for all dimensions; "dimension" learns one for each; "network"
            takes a block of the network's numbers as a.
        network: The likelihood's network, which tells D for "dimension".
        num_blocks: Blocks of D that the network gives in all.
        start: v(0).
        bounds: (low, high).

    Raises:
        ValueError: If a fixed number is not positive, the word is none of these, or the bounds are not 0 < low < high.
    """

    def __init__(
        self,
        name: str,
        choice: Choice,
        network: nn.Module,
        num_blocks: int,
        *,
        start: float = 1.0,
        bounds: tuple[float, float] = (1e-6, 1e6),
    ) -> None:
        super().__init__()
        self.choice = choice
        self.start = start
        self.low, self.high = bounds
        if not 0 < self.low < self.high < math.inf:
            raise ValueError(f"{name}_bounds must be positive numbers low < high, got {tuple(bounds)}")
        if choice == "global":
            self.raw = nn.Parameter(torch.zeros(()))
        elif choice == "dimension":
            self.raw = nn.Parameter(torch.zeros(out_features(network) // num_blocks))
        elif choice != "network" and not (isinstance(choice, int | float) and 0 < choice < math.inf):
            raise ValueError(f'{name} must be a positive number, "global", "dimension" or "network", got {choice!r}')

    def forward(self, blocks: Iterator[Tensor]) -> Tensor | float:
        """Return v, with a shape that broadcasts against (..., D); take the next block where the network gives it."""
        if not isinstance(self.choice, str):
            return self.choice
        raw = next(blocks) if self.choice == "network" else self.raw
        return bounded_exp(raw, start=self.start, low=self.low, high=self.high)

    def extra_repr(self) -> str:
        """Show the choice, and the bounds where they hold."""
        bounds = f", low={self.low:g}, high={self.high:g}" if isinstance(self.choice, str) else ""
        return f"{self.choice!r}{bounds}"


def bounded_exp(raw: Tensor, *, start: float, low: float, high: float) -> Tensor:
    """Map real numbers a to v = exp(m + h tanh(t + a/h)) in [low, high], v(0) = start, as `Positive` says."""
    middle, half = (math.log(high) + math.log(low)) / 2, (math.log(high) - math.log(low)) / 2
    shift = math.atanh((math.log(start) - middle) / half) if low < start < high else 0.0
    return (middle + half * torch.tanh(shift + raw / half)).exp()


class LocationScaleLikelihood(Likelihood):
    """Base of those with a location from the network and a scale of the reader's choice.

    Args:
        network: Maps z to D locations; to D locations and then D numbers for the scales where scale is "network".
        scale: A number fixes the scale; "global" learns one for all dimensions; "dimension" learns one for each;
            "network" lets the network give one per datum and dimension. Learned ones start at 1.
        scale_bounds: (low, high), between which a scale that is learned or given stays, smoothly (see `Positive`); the
            log-variance stays between twice their logarithms.

    Raises:
        ValueError: If a fixed scale is not positive, the word is none of these, or the bounds are not 0 < low < high.
    """

    def __init__(
        self, network: nn.Module, scale: Choice = "global", scale_bounds: tuple[float, float] = (1e-6, 1e6)
    ) -> None:
        super().__init__(network)
        self.scale = Positive("scale", scale, network, self.num_outputs(1, scale=scale), bounds=scale_bounds)

    def loc_and_scale(self, z: Tensor, covariates: Tensor | None = None) -> tuple[Tensor, Tensor | float]:
        """Run the network; return locations, with shape (..., D), and scales, which broadcast against them."""
        blocks = self.blocks(z, covariates)
        return next(blocks), self.scale(blocks)

    def intercept(self, x: Tensor) -> Tensor:
        """The data's means, as locations."""
        return x.mean(0)


def logit_of(share: Tensor) -> Tensor:
    """The logit of shares, kept between 0.001 and 0.999, so that a pixel which is never on can still be learned."""
    return torch.logit(share, eps=1e-3)


def log_of(mean: Tensor) -> Tensor:
    """The logarithm of means, kept above 0.001."""
    return mean.clamp(min=1e-3).log()


def largest_count(x: Tensor) -> int:
    """The largest value of x as a count: at least 1, and at most 2^31, beyond which no value is a count to be had."""
    return int(x.max().clamp(1, 2**31))
