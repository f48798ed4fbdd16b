"""VAE with two layers of latents, each with a site of its own."""

from collections.abc import Sequence
from typing import Literal

import pyro
from pyro.distributions import constraints
from torch import Tensor, nn

from pyrovae.encoders import constrain_encoder
from pyrovae.likelihoods import NormalLikelihood
from pyrovae.nn import MLP, join
from pyrovae.priors import Prior
from pyrovae.programs.blueprint import Blueprint
from pyrovae.programs.data_program import DataProgram
from pyrovae.programs.program_pair import ProgramPair
from pyrovae.programs.sites import data_plate, fill_missing, sample_datum, sample_latent

Direction = Literal["bottom-up", "top-down"]


class TwoLayerVAE(ProgramPair):
    """VAE with two layers of latents.

        model: p(z2) p(z1|z2) p(x|z1)
        guide: q(z2|x) q(z1|x,z2) if top-down,  q(z1|x) q(z2|z1) if bottom-up

    The sites are "z2", "z1" and "x". p(z2) is the blueprint's prior, p(z1|z2) a diagonal normal, p(x|z1) the
    blueprint's likelihood. Both layers of the guide use the blueprint's encoder. Covariates enter every conditional but
    p(z1|z2). "top-down" follows Sonderby et al., "Ladder variational autoencoders" (NeurIPS 2016,
    https://arxiv.org/abs/1602.02282), "bottom-up" Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders"
    (2016, https://arxiv.org/abs/1509.00519). Train "bottom-up" with `Trace_ELBO`. Its guide draws z1 before z2, and
    `TraceMeanField_ELBO` computes KL(q(z1|x), p(z1|z2)) as if z2 did not depend on z1, which is not a bound.

    Args:
        blueprint: Sizes of the model and makers of its parts; its latent_dim is the dimension of z1.
        top_dim: Dimension of z2; None for half of that of z1.
        direction: Order of the guide's layers: "bottom-up" or "top-down".
        hidden: Sizes of the hidden layers between z2 and z1.

    Raises:
        ValueError: If the prior is discrete, if it needs an encoder q(z2|x) (`VampPrior`) and direction is "bottom-up",
            or if a part rejects its arguments.
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
                    f'{type(prior).__name__} needs an encoder q(z2|x), but direction="bottom-up" defines none; use '
                    'direction="top-down" or another prior'
                )
            lower: nn.Module = blueprint.make_encoder(z1)
            upper = blueprint.make_upper_encoder(z1 + count, prior.encoder_dim, hidden)
        else:
            lower = blueprint.make_encoder(z1, count + z2)
            upper = blueprint.make_encoder(prior.encoder_dim)
            prior = prior.attach(upper, blueprint.data)
        likelihood = blueprint.make_likelihood(z1)
        self.model = TwoLayerModel(prior, between, likelihood, name=f"{self.name}.model")
        lower = constrain_encoder(lower, constraints.real_vector)
        self.guide = TwoLayerGuide(lower, constrain_encoder(upper, prior.support), direction, name=f"{self.name}.guide")


class TwoLayerModel(DataProgram):
    """Pyro program p(z2) p(z1|z2) p(x|z1) of `TwoLayerVAE`.

    Args:
        prior: Module whose forward returns p(z2).
        between: Module whose forward returns p(z1|z2).
        likelihood: Module whose forward returns p(x|z1).
        name: Name in Pyro's parameter store, unique in the process.
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
        """Generate data, or score given data. Arguments, result and errors are those of `Model.forward`."""
        conditions = () if covariates is None else (covariates,)
        with data_plate(x, covariates, size):
            z2 = pyro.sample("z2", self.prior(*conditions))
            z1 = pyro.sample("z1", self.between(z2))
            return sample_datum(self.likelihood(z1, *conditions), x, mask)


class TwoLayerGuide(DataProgram):
    """Pyro program q(z1|x) q(z2|z1), or q(z2|x) q(z1|x,z2), of `TwoLayerVAE`.

    Args:
        lower: Module whose forward returns q(z1|x), or q(z1|x,z2) when called with z2.
        upper: Module whose forward returns q(z2|z1), or q(z2|x).
        direction: Order of the layers: "bottom-up" or "top-down".
        name: Name in Pyro's parameter store, unique in the process.
    """

    def __init__(self, lower: nn.Module, upper: nn.Module, direction: Direction, *, name: str = "guide") -> None:
        super().__init__(name)
        self.lower, self.upper, self.direction = lower, upper, direction

    def forward(self, x: Tensor, *, covariates: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Draw latents given data. Arguments are those of `Guide.forward`."""
        x = fill_missing(x, mask, self)
        conditions = () if covariates is None else (covariates,)
        with data_plate(x):
            if self.direction == "bottom-up":
                z1 = sample_latent("z1", self.lower(x, *conditions))
                sample_latent("z2", self.upper(z1, *conditions))
            else:
                z2 = sample_latent("z2", self.upper(x, *conditions))
                sample_latent("z1", self.lower(x, join(z2, covariates)))
