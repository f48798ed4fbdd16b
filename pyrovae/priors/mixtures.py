"""Mixture priors: of free normals, of posteriors at pseudo-inputs, and of normals around encoded training data."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.priors.base import Prior


class MixturePrior(Prior):
    """Mixture of diagonal normals, all learned: p(z) = sum_c pi_c N(z; loc_c, diag(scale_c)^2).

    Components start with equal weight, unit scale, and locations drawn from N(0, I).

    Args:
        latent_dim: Size Z of the latent.
        num_components: Number of components.

    Raises:
        ValueError: If num_components is below 1.
    """

    def __init__(self, latent_dim: int, num_components: int = 10) -> None:
        super().__init__(latent_dim)
        _check_count(num_components)
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.loc = nn.Parameter(torch.randn(num_components, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(num_components, latent_dim))

    def forward(self, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return the mixture; covariates do not enter."""
        components = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), components)


class EncodedPrior(Prior):
    """Base of the mixtures whose components come from the encoder: p(z) = sum_m pi_m r(z|u_m), u_m in data space.

    The encoder is shared with the guide, so gradients of log p(z) reach it too. Inside the prior it runs in evaluation
    mode (no dropout), whatever mode it is in outside. Covariates c enter as r(z|u_m,c).

    Args:
        latent_dim: Size Z of the latent.
        num_components: Number M of components.
    """

    inputs: Tensor
    encoder: nn.Module | None

    def __init__(self, latent_dim: int, num_components: int) -> None:
        super().__init__(latent_dim)
        _check_count(num_components)
        self.num_components = num_components
        self.encoder = None

    def attach(self, encoder: nn.Module, x: Tensor) -> Self:
        """Share the encoder, and take M of the data at random as u (some more than once where there are fewer).

        Args:
            encoder: Module whose forward returns q(z|x).
            x: Training data, with shape (N, D).

        Raises:
            ValueError: If there are no data.
        """
        if not len(x):
            raise ValueError(f"{type(self).__name__} takes its inputs from training data, but x is empty")
        rows = torch.randperm(len(x), device=x.device).repeat(-(-self.num_components // len(x)))
        self.inputs = self.kept(x[rows[: self.num_components]].detach().clone())
        self.encoder = encoder
        return self

    def kept(self, x: Tensor) -> Tensor:
        """How u, with shape (M, D), is kept: as it is."""
        return x

    def encoded(self, covariates: Tensor | None) -> TorchDistributionMixin:
        """q(z|u), with batch_shape (M,), or q(z|u,c), with batch_shape (N, M)."""
        if self.encoder is None:
            name = type(self).__name__
            raise ValueError(f"{name} needs the encoder and training data: call {name}.attach(encoder, x) first")
        with _evaluation_mode(self.encoder):
            q = self.encoder(self.inputs) if covariates is None else self.encoder(self.inputs, covariates.unsqueeze(-2))
        if q.event_shape != (self.latent_dim,):
            raise ValueError(
                f"the encoder's latent has shape {tuple(q.event_shape)}, the prior's ({self.latent_dim},); give the "
                f"encoder's network num_outputs({self.latent_dim}) outputs, or the prior another latent_dim"
            )
        return q


class VampPrior(EncodedPrior):
    """Mixture of the approximate posterior at learned pseudo-inputs: p(z) = sum_m pi_m q(z|u_m).

    From Tomczak and Welling, "VAE with a VampPrior" (AISTATS 2018, https://arxiv.org/abs/1705.07120). Pseudo-inputs
    start at training data, drawn at random, and are free to leave the data's range. Python users write
    `VampPrior(2).attach(encoder, x)`, with the encoder of the same VAE; the scripts do it by themselves.

    Args:
        latent_dim: Size Z of the latent.
        num_components: Number M of pseudo-inputs.
        learn_weights: Learn the weights pi, which start equal; else they stay 1/M.

    Raises:
        ValueError: If num_components is below 1; on a call before `attach`.
    """

    logits: Tensor

    def __init__(self, latent_dim: int, num_components: int = 500, learn_weights: bool = False) -> None:
        super().__init__(latent_dim, num_components)
        self.register_parameter("inputs", None)
        if learn_weights:
            self.logits = nn.Parameter(torch.zeros(num_components))
        else:
            self.register_buffer("logits", torch.zeros(num_components), persistent=False)

    def attach(self, encoder: nn.Module, x: Tensor) -> Self:
        """Do as `EncodedPrior.attach`; the prior lives where the encoder does."""
        self.support = getattr(encoder, "support", self.support)
        return super().attach(encoder, x)

    def kept(self, x: Tensor) -> Tensor:
        """How u, with shape (M, D), is kept: as a parameter."""
        return nn.Parameter(x)

    def forward(self, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return the mixture, p(z), or p(z|c) = sum_m pi_m q(z|u_m,c) for covariates with shape (N, C)."""
        components = self.encoded(covariates)
        weights = dist.Categorical(logits=self.logits.expand(components.batch_shape))
        return dist.MixtureSameFamily(weights, components)


class ExemplarPrior(EncodedPrior):
    """Mixture of normals around encoded training data: p(z) = 1/M sum_m N(z; mean of q(z|x_m), scale^2 I).

    From Norouzi, Fleet and Norouzi, "Exemplar VAE" (NeurIPS 2020, https://arxiv.org/abs/2004.04795), with a learned
    scale that starts at 1 and a fixed random subset of the data as exemplars; their leaving out of a datum from its own
    prior is not done, so training values are flattered by up to log M nats where M comes near N. The exemplars are
    training data, and the saved weights hold them.

    Args:
        latent_dim: Size Z of the latent.
        num_components: Number M of exemplars.

    Raises:
        ValueError: If num_components is below 1; on a call before `attach`; if the encoder's distribution has no mean.
    """

    def __init__(self, latent_dim: int, num_components: int = 500) -> None:
        super().__init__(latent_dim, num_components)
        self.register_buffer("inputs", None)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return the mixture, p(z), or p(z|c) for covariates with shape (N, C)."""
        encoded = self.encoded(covariates)
        try:
            loc = encoded.mean
        except NotImplementedError as error:
            raise ValueError(
                f"ExemplarPrior stands around the means of q(z|x), and {type(encoded).__name__} has none in closed "
                "form; take VampPrior, or another encoder"
            ) from error
        components = dist.Normal(loc, self.log_scale.exp()).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=torch.zeros_like(loc[..., 0])), components)


@contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    training = [part for part in module.modules() if part.training]
    try:
        module.eval()
        yield
    finally:
        for part in training:
            part.training = True


def _check_count(num_components: int) -> None:
    if num_components < 1:
        raise ValueError(f"num_components must be at least 1, got {num_components}")
