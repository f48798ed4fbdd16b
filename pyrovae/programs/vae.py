"""The pair of Pyro programs that a VAE is: `Model`, p(z) p(x|z), and `Guide`, q(z|x), and `VAE`, which holds both."""

import pyro
from pyro.distributions import constraints
from pyro.nn.module import PyroModule
from torch import Tensor, nn

from pyrovae.encoders import constrain_encoder
from pyrovae.programs.program_pair import ProgramPair
from pyrovae.programs.sites import data_plate, fill_missing, sample_datum, sample_latent


class Model(PyroModule):
    """The generative program p(z|c) p(x|z,c), with sites "z" and "x" inside the plate "data" at dim -1.

    Args:
        prior: Module whose forward returns p(z), or p(z|c) when called with covariates.
        likelihood: Module whose forward returns p(x|z), or p(x|z,c).
        name: Name under which Pyro's parameter store knows the program; unique in the process (see `VAE`).
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
        """Generate data, or score those given.

        Args:
            x: Data with shape (N, D), or None to generate.
            covariates: Covariates c with shape (N, C).
            mask: True where x is observed, with shape (N, D), or (N,) for whole data. Missing entries are left out of
                p(x|z), whatever stands there (NaN too); the likelihood must be independent over D.
            size: N, where neither x nor covariates tell it.

        Returns:
            The data, with shape (N, D), or (K, N, D) inside a plate of K particles.

        Raises:
            ValueError: If x is not floating point or not of the likelihood's size, the guide's latents are not of the
                prior's, or a mask over entries meets a likelihood that is not independent over D.
        """
        conditions = () if covariates is None else (covariates,)
        with data_plate(x, covariates, size):
            p_z = self.prior(*conditions)
            z = pyro.sample("z", p_z)
            if z.shape[z.dim() - p_z.event_dim :] != p_z.event_shape:  # they might broadcast
                raise ValueError(
                    f"one latent of the prior has shape {tuple(p_z.event_shape)}, but the guide's latents have shape "
                    f"{tuple(z.shape)}; give the encoder's network num_outputs(prior.encoder_dim) outputs"
                )
            return sample_datum(self.likelihood(z, *conditions), x, mask)


class Guide(PyroModule):
    """The approximate posterior program q(z|x,c), with site "z" inside the plate "data" at dim -1.

    Args:
        encoder: Module whose forward returns q(z|x), or q(z|x,c) when called with covariates.
        name: Name under which Pyro's parameter store knows the program; unique in the process (see `VAE`).
    """

    def __init__(self, encoder: nn.Module, *, name: str = "guide") -> None:
        super().__init__(name)
        self.encoder = encoder

    def forward(self, x: Tensor, *, covariates: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Draw latents given data.

        Args:
            x: Data with shape (N, D).
            covariates: Covariates c with shape (N, C).
            mask: True where x is observed, with shape (N, D) or (N,). The encoder sees 0 where it is not.

        Returns:
            Latents with shape (N, Z), or (K, N, Z) inside a plate of K particles.
        """
        x = fill_missing(x, mask)
        conditions = () if covariates is None else (covariates,)
        with data_plate(x):
            return sample_latent("z", self.encoder(x, *conditions))


class VAE(ProgramPair):
    """A variational autoencoder: the programs `model` and `guide`, made from a prior, a likelihood and an encoder.

    Args:
        prior: Module whose forward returns p(z).
        likelihood: Module whose forward returns p(x|z).
        encoder: Module whose forward returns q(z|x). One of real vectors is carried to where the prior lives, the
            simplex say, by `ConstrainedEncoder`; it gives `prior.encoder_dim` real numbers.
        name: Name in Pyro's parameter store; None for one not yet taken.

    Raises:
        ValueError: If prior and encoder cannot live on one space, or the name is taken by another VAE or by parameters
            in the store.

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
