"""Whole models as programs, and the blueprint that they, and the reader's own, are built from."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn.module import PyroModule
from torch import Tensor, nn

from pyrovae.encoders import CategoricalEncoder, Encoder, NormalEncoder, carried
from pyrovae.likelihoods import BernoulliLikelihood, Likelihood, NormalLikelihood
from pyrovae.nn import MLP, Offset, Standardize, WithCovariates, join
from pyrovae.priors import Prior, StandardNormalPrior
from pyrovae.vae import VAE, ProgramPair, data_plate, sample_datum, sample_latent, seen

Direction = Literal["bottom-up", "top-down"]
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


class TwoLayerVAE(ProgramPair):
    """Two layers of latents, p(z2) p(z1|z2) p(x|z1), with sites "z2", "z1" and "x".

    p(z2) is the blueprint's prior, p(z1|z2) a diagonal normal, p(x|z1) the likelihood. The guide goes "top-down",
    q(z2|x) q(z1|x,z2) (as in Sonderby et al., "Ladder variational autoencoders", NeurIPS 2016,
    https://arxiv.org/abs/1602.02282), or "bottom-up", q(z1|x) q(z2|z1) (Burda, Grosse and Salakhutdinov, "Importance
    weighted autoencoders", 2016, https://arxiv.org/abs/1509.00519); both layers take the blueprint's encoder.
    Covariates enter every conditional but p(z1|z2). Train the second with `Trace_ELBO`: it draws z1 before z2, the
    model after it, so that `TraceMeanField_ELBO`, which takes KL(q(z1|x), p(z1|z2)) as if z2 did not depend on z1, is
    no bound.

    Args:
        blueprint: Sizes and makers; its latent_dim is the size of z1.
        top_dim: Size of z2; None for half of z1's.
        direction: "top-down" or "bottom-up".
        hidden: Sizes of the hidden layers between z2 and z1.

    Raises:
        ValueError: If the prior is discrete, or needs an encoder of data (`VampPrior`) and the direction is
            "bottom-up", or a part refuses its arguments.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        top_dim: int | None = None,
        direction: Direction = "top-down",
        hidden: Sequence[int] = (100, 100),
    ) -> None:
        super().__init__()
        if direction not in ("bottom-up", "top-down"):
            raise ValueError(f'direction must be "bottom-up" or "top-down", got {direction!r}')
        z1 = blueprint.latent_dim
        z2 = max(1, z1 // 2) if top_dim is None else top_dim
        prior = blueprint.make_prior(z2)
        between = NormalLikelihood(MLP(z2, 2 * z1, hidden=hidden), scale="network")
        count = blueprint.num_covariates
        if direction == "bottom-up":
            if type(prior).attach is not Prior.attach:
                raise ValueError(
                    f'{type(prior).__name__} is made of an encoder of data, q(z2|x), which "bottom-up" has not; take '
                    'direction "top-down", or another prior'
                )
            lower: nn.Module = blueprint.make_encoder(z1)
            upper = blueprint.make_upper_encoder(z1 + count, prior.encoder_dim, hidden)
        else:
            lower = blueprint.make_encoder(z1, count + z2)
            upper = blueprint.make_encoder(prior.encoder_dim)
            prior = prior.attach(upper, blueprint.data)
        likelihood = blueprint.make_likelihood(z1)
        self.model = TwoLayerModel(prior, between, likelihood, name=f"{self.name}.model")
        lower = carried(lower, constraints.real_vector)
        self.guide = TwoLayerGuide(lower, carried(upper, prior.support), direction, name=f"{self.name}.guide")


class TwoLayerModel(PyroModule):
    """The program p(z2) p(z1|z2) p(x|z1); see `TwoLayerVAE`.

    Args:
        prior: Module whose forward returns p(z2).
        between: Module whose forward returns p(z1|z2).
        likelihood: Module whose forward returns p(x|z1).
        name: Name in Pyro's parameter store.
    """

    def __init__(self, prior: nn.Module, between: nn.Module, likelihood: nn.Module, *, name: str = "model") -> None:
        super().__init__(name)
        self.prior, self.between, self.likelihood = prior, between, likelihood

    def forward(
        self,
        x: Tensor | None = None,
        *,
        covariates: Tensor | None = None,
        mask: Tensor | None = None,
        size: int = 1,
    ) -> Tensor:
        """Generate data, or score those given; arguments, result and errors are those of `Model`."""
        conditions = () if covariates is None else (covariates,)
        with data_plate(x, covariates, size):
            z2 = pyro.sample("z2", self.prior(*conditions))
            z1 = pyro.sample("z1", self.between(z2))
            return sample_datum(self.likelihood(z1, *conditions), x, mask)


class TwoLayerGuide(PyroModule):
    """The program q(z1|x) q(z2|z1), or q(z2|x) q(z1|x,z2); see `TwoLayerVAE`.

    Args:
        lower: Module whose forward returns q(z1|x), or q(z1|x,z2) when called with z2.
        upper: Module whose forward returns q(z2|z1), or q(z2|x).
        direction: "bottom-up" or "top-down".
        name: Name in Pyro's parameter store.
    """

    def __init__(self, lower: nn.Module, upper: nn.Module, direction: Direction, *, name: str = "guide") -> None:
        super().__init__(name)
        self.lower, self.upper, self.direction = lower, upper, direction

    def forward(self, x: Tensor, *, covariates: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Draw latents given data; the arguments are those of `Guide`."""
        x = seen(x, mask)
        conditions = () if covariates is None else (covariates,)
        with data_plate(x):
            if self.direction == "bottom-up":
                z1 = sample_latent("z1", self.lower(x, *conditions))
                sample_latent("z2", self.upper(z1, *conditions))
            else:
                z2 = sample_latent("z2", self.upper(x, *conditions))
                sample_latent("z1", self.lower(x, join(z2, covariates)))


class MixtureVAE(ProgramPair):
    """A mixture of VAEs that share their networks, p(y) p(z|y) p(x|z,y), with sites "y" (one-hot), "z" and "x".

    p(y) has learned probabilities, and y enters prior, likelihood and encoder as covariates do; a prior without
    covariates is the same for all y, `ConditionalNormalPrior` makes it a mixture. The guide is q(y|x) q(z|x,y).
    `TraceEnum_ELBO` sums y out exactly, in K times the time for K classes; after Kingma, Rezende, Mohamed and Welling,
    "Semi-supervised learning with deep generative models" (NeurIPS 2014, https://arxiv.org/abs/1406.5298), without
    labels.

    Args:
        blueprint: Sizes and makers.
        num_classes: Number K of values of y.

    Raises:
        ValueError: If num_classes is below 2, prior and encoder cannot live on one space, or a part refuses its
            arguments.
    """

    def __init__(self, blueprint: Blueprint, num_classes: int = 10) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        count = blueprint.num_covariates + num_classes
        prior = blueprint.make_prior(num_covariates=count)
        encoder = carried(blueprint.make_encoder(prior.encoder_dim, count), prior.support)
        likelihood = blueprint.make_likelihood(num_covariates=count)
        prior = prior.attach(encoder, blueprint.data)
        classes = replace(blueprint, encoder=CategoricalEncoder).make_encoder(num_classes)
        self.model = MixtureModel(prior, likelihood, num_classes, name=f"{self.name}.model")
        self.guide = MixtureGuide(classes, encoder, name=f"{self.name}.guide")


class MixtureModel(PyroModule):
    """The program p(y) p(z|y) p(x|z,y); see `MixtureVAE`.

    Args:
        prior: Module whose forward returns p(z|y).
        likelihood: Module whose forward returns p(x|z,y).
        num_classes: Number K of values of y.
        name: Name in Pyro's parameter store.
    """

    def __init__(self, prior: nn.Module, likelihood: nn.Module, num_classes: int, *, name: str = "model") -> None:
        super().__init__(name)
        self.prior, self.likelihood = prior, likelihood
        self.logits = nn.Parameter(torch.zeros(num_classes))

    def forward(
        self,
        x: Tensor | None = None,
        *,
        covariates: Tensor | None = None,
        mask: Tensor | None = None,
        size: int = 1,
    ) -> Tensor:
        """Generate data, or score those given; arguments, result and errors are those of `Model`."""
        with data_plate(x, covariates, size):
            y = pyro.sample("y", dist.OneHotCategorical(logits=self.logits))
            conditions = join(y, covariates)
            z = pyro.sample("z", self.prior(conditions))
            return sample_datum(self.likelihood(z, conditions), x, mask)


class MixtureGuide(PyroModule):
    """The program q(y|x) q(z|x,y); see `MixtureVAE`.

    Args:
        classes: Module whose forward returns q(y|x).
        encoder: Module whose forward returns q(z|x,y).
        name: Name in Pyro's parameter store.
    """

    def __init__(self, classes: nn.Module, encoder: nn.Module, *, name: str = "guide") -> None:
        super().__init__(name)
        self.classes, self.encoder = classes, encoder

    def forward(self, x: Tensor, *, covariates: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Draw latents given data; the arguments are those of `Guide`."""
        x = seen(x, mask)
        conditions = () if covariates is None else (covariates,)
        with data_plate(x):
            y = sample_latent("y", self.classes(x, *conditions))
            sample_latent("z", self.encoder(x, join(y, covariates)))


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
