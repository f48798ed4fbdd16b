"""Variational autoencoder: the Pyro programs `Model`, p(z) p(x|z), and `Guide`, q(z|x), and the pair `VAE`."""

import pyro
from pyro.distributions import constraints
from torch import Tensor, nn

from pyrovae.encoders import constrain_encoder
from pyrovae.programs.data_program import DataProgram
from pyrovae.programs.program_pair import ProgramPair
from pyrovae.programs.sites import data_plate, fill_missing, sample_datum, sample_latent


class Model(DataProgram):
    """Pyro program p(z|c) p(x|z,c), with sites "z" and "x" inside the plate "data" at dim -1.

    Args:
        prior: Module whose forward returns p(z), or p(z|c) when called with covariates.
        likelihood: Module whose forward returns p(x|z), or p(x|z,c).
        name: Name in Pyro's parameter store, unique in the process.
    """

    def __init__(self, prior: nn.Module, likelihood: nn.Module, *, name: str = "model") -> None:
        super().__init__(name)
        self.prior = prior
        self.likelihood = likelihood

    def forward(
        self,
        x: Tensor | None = None,
        *,
        covariates: Tensor | None = None,
        mask: Tensor | None = None,
        size: int = 1,
    ) -> Tensor:
        """Generate data, or score given data.

        Args:
            x: Data, with shape (N, D); None to generate data.
            covariates: Covariates c, with shape (N, C); None if the model has none.
            mask: Whether each entry of x is observed, with shape (N, D) or (N,); None if all are. Missing entries do
                not enter p(x|z) and may be NaN. A mask over entries needs a likelihood that is independent over D.
            size: Number of data N if neither x nor covariates are given.

        Returns:
            The data, with shape (N, D), or (K, N, D) inside a plate of K particles.

        Raises:
            ValueError: If x is not floating point or does not have the likelihood's shape, if the guide's latents do
                not have the prior's shape, or if a mask over entries is given and the likelihood is not independent
                over D.
        """
        conditions = () if covariates is None else (covariates,)
        with data_plate(x, covariates, size):
            p_z = self.prior(*conditions)
            z = pyro.sample("z", p_z)
            if z.shape[z.dim() - p_z.event_dim :] != p_z.event_shape:  # other shapes might broadcast
                raise ValueError(
                    f"one latent of the prior has shape {tuple(p_z.event_shape)}, but the guide's latents have shape "
                    f"{tuple(z.shape)}; give the encoder's network num_outputs(prior.encoder_dim) outputs"
                )
            return sample_datum(self.likelihood(z, *conditions), x, mask)


class Guide(DataProgram):
    """Pyro program q(z|x,c), with site "z" inside the plate "data" at dim -1.

    Args:
        encoder: Module whose forward returns q(z|x), or q(z|x,c) when called with covariates.
        name: Name in Pyro's parameter store, unique in the process.
    """

    def __init__(self, encoder: nn.Module, *, name: str = "guide") -> None:
        super().__init__(name)
        self.encoder = encoder

    def forward(self, x: Tensor, *, covariates: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Draw latents given data.

        Args:
            x: Data, with shape (N, D).
            covariates: Covariates c, with shape (N, C); None if the model has none.
            mask: Whether each entry of x is observed, with shape (N, D) or (N,); None if all are. For missing
                entries the encoder of a blueprint receives the centre of the column, any other 0 (see `fill_missing`).

        Returns:
            The latents, with shape (N, Z), or (K, N, Z) inside a plate of K particles.
        """
        x = fill_missing(x, mask, self.encoder)
        conditions = () if covariates is None else (covariates,)
        with data_plate(x):
            return sample_latent("z", self.encoder(x, *conditions))


class VAE(ProgramPair):
    """Variational autoencoder made from a prior, a likelihood and an encoder.

        model: p(z) p(x|z),  guide: q(z|x)

    Args:
        prior: Module whose forward returns p(z), or p(z|c) when called with covariates.
        likelihood: Module whose forward returns p(x|z), or p(x|z,c).
        encoder: Module whose forward returns q(z|x), or q(z|x,c) when called with covariates. `ConstrainedEncoder` maps
            an encoder of real vectors, of dimension `prior.encoder_dim`, to the support of the prior.
        name: Name in Pyro's parameter store; None for a name that is not taken.

    Raises:
        ValueError: If the encoder cannot be mapped to the support of the prior, or another VAE or parameters in the
            store have this name.

    Example:
        >>> from pyrovae import BernoulliLikelihood, MLP, NormalEncoder, StandardNormalPrior
        >>> vae = VAE(
        ...     prior=StandardNormalPrior(2),
        ...     likelihood=BernoulliLikelihood(MLP(2, 784)),
        ...     encoder=NormalEncoder(MLP(784, 4)),
        ... )
        >>> vae.model(size=3).shape
        torch.Size([3, 784])
    """

    model: Model
    guide: Guide

    def __init__(
        self,
        prior: nn.Module,
        likelihood: nn.Module,
        encoder: nn.Module,
        *,
        name: str | None = None,
    ) -> None:
        encoder = constrain_encoder(encoder, getattr(prior, "support", constraints.real_vector))
        super().__init__(name)
        self.model = Model(prior, likelihood, name=f"{self.name}.model")
        self.guide = Guide(encoder, name=f"{self.name}.guide")
