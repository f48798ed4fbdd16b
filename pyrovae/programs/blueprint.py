"""Whole models as programs, and the blueprint that they, and the reader's own, are built from."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyrovae.encoders import Encoder, NormalEncoder
from pyrovae.likelihoods import BernoulliLikelihood, Likelihood
from pyrovae.nn import MLP, Offset, Standardize, WithCovariates
from pyrovae.priors import Prior, StandardNormalPrior
from pyrovae.programs.vae import VAE

OutputBias = Literal["random", "data"]


_FEATURES = 200  # numbers that an image or a sequence becomes before covariates join them


@dataclass(frozen=True)
class Blueprint:
    """The sizes of a model and the makers of its parts: what is needed to build any model on any data.

    A maker is a class, or `functools.partial` of one with further arguments. Networks get the sizes that the parts ask
    for, covariates included, so that an encoder q(z|x,c) needs no writing.

    Args:
        num_dims: D, the size of one flat datum.
        latent_dim: Z, the size of the latent.
        num_covariates: C, the number of covariates; 0 for none.
        prior: Makes p(z) from the size of z.
        likelihood: Makes p(x|z) from its network.
        encoder: Makes q(z|x) from its network.
        network: Makes a network from the numbers of its inputs and outputs; its mirror stands in the decoder.
        x: Training data, with shape (N, D), by which encoders standardise and to which priors are attached; None where
            the saved weights will bring what was taken from them.
        output_bias: "data" starts the decoder's last bias where p(x|z) has the means of x, "random" as its layer does.

    Example:
        >>> from functools import partial
        >>> from pyrovae import NormalLikelihood
        >>> blueprint = Blueprint(6, 2, num_covariates=3, likelihood=partial(NormalLikelihood, scale="network"))
        >>> vae = blueprint.vae()
        >>> vae.model(covariates=torch.zeros(4, 3)).shape
        torch.Size([4, 6])
    """

    num_dims: int
    latent_dim: int
    num_covariates: int = 0
    prior: Callable[..., Prior] = StandardNormalPrior
    likelihood: Callable[..., Likelihood] = BernoulliLikelihood
    encoder: Callable[..., Encoder] = NormalEncoder
    network: Callable[..., nn.Module] = MLP
    x: Tensor | None = None
    output_bias: OutputBias = "random"

    def vae(self) -> VAE:
        """The model z -> x, with covariates where there are some.

        Raises:
            ValueError: As `VAE`, and as the parts.
        """
        prior = self.make_prior()
        likelihood = self.make_likelihood()
        encoder = self.make_encoder(prior.encoder_dim)
        return VAE(prior.attach(encoder, self.data), likelihood, encoder)

    @property
    def data(self) -> Tensor:
        """The training data, or one datum of zeros in their stead."""
        return torch.zeros(1, self.num_dims) if self.x is None else self.x

    def make_prior(self, latent_dim: int | None = None, num_covariates: int | None = None) -> Prior:
        """Make p(z), or p(z|c), for latents of this size; None for Z, and for C covariates."""
        part, arguments = _class_and_arguments(self.prior)
        count = self.num_covariates if num_covariates is None else num_covariates
        if count and "num_covariates" in inspect.signature(part).parameters:
            arguments = {**arguments, "num_covariates": count}
        return part(self.latent_dim if latent_dim is None else latent_dim, **arguments)

    def make_likelihood(self, latent_dim: int | None = None, num_covariates: int | None = None) -> Likelihood:
        """Make p(x|z), or p(x|z,c), of latents of this size; None for Z, and for C covariates."""
        part, arguments = _class_and_arguments(self.likelihood)
        network, options = _class_and_arguments(self.network)
        size = self.latent_dim if latent_dim is None else latent_dim
        size += self.num_covariates if num_covariates is None else num_covariates
        mirror = getattr(network, "mirror", lambda: network)()
        likelihood = part(mirror(size, part.num_outputs(self.num_dims, **arguments), **options), **arguments)
        if self.output_bias == "data":
            _start_at(likelihood, self.data)
        return likelihood

    def make_encoder(self, latent_dim: int | None = None, num_covariates: int | None = None) -> Encoder:
        """Make q(z|x), or q(z|x,c), of latents of this size; None for Z, and for C covariates."""
        part, arguments = _class_and_arguments(self.encoder)
        network, options = _class_and_arguments(self.network)
        count = self.num_covariates if num_covariates is None else num_covariates
        outputs = part.num_outputs(self.latent_dim if latent_dim is None else latent_dim, **arguments)
        standardize = Standardize.from_data(self.data, count)
        if count and getattr(network, "structured", False):
            head = MLP(_FEATURES + count, outputs, hidden=[_FEATURES])
            body: nn.Module = WithCovariates(network(self.num_dims, _FEATURES, **options), head, self.num_dims)
        else:
            body = network(self.num_dims + count, outputs, **options)
        return part(nn.Sequential(standardize, body), **arguments)

    def make_upper_encoder(self, num_inputs: int, latent_dim: int, hidden: Sequence[int]) -> Encoder:
        """Make an encoder from numbers without an order, a lower layer's latents say, by an `MLP`."""
        part, arguments = _class_and_arguments(self.encoder)
        return part(MLP(num_inputs, part.num_outputs(latent_dim, **arguments), hidden=hidden), **arguments)


class WatchedBlueprint(Blueprint):
    """A blueprint that remembers which of its makers were asked for."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("prior", "likelihood", "encoder", "network"):
            self.asked.add(name)
        return super().__getattribute__(name)

    @property
    def asked(self) -> set[str]:
        """The kinds of parts: "prior", "likelihood", "encoder", "network"."""
        return vars(self).setdefault("asked_for", set())


def _class_and_arguments(maker: Callable[..., Any]) -> tuple[Any, dict[str, Any]]:
    """The class that a maker is, or is a partial of, and the arguments that it adds."""
    if isinstance(maker, partial):
        return maker.func, dict(maker.keywords)
    return maker, {}


def _start_at(likelihood: Likelihood, x: Tensor) -> None:
    """Start the likelihood's network where p(x|z) has the means of the data: by its last bias, or by one more."""
    start = likelihood.output_bias(x)
    last = list(likelihood.network.modules())[-1]
    if isinstance(last, nn.Linear) and last.bias is not None and last.out_features == len(start):
        with torch.no_grad():
            last.bias.copy_(start)
    else:
        likelihood.network = nn.Sequential(likelihood.network, Offset(start))
