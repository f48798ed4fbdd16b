"""Mixture priors: of learned normals, of posteriors at pseudo-inputs, and of normals around encoded training data."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.distributions import BlockwiseMixture
from pyrovae.priors.base import Prior


class MixturePrior(Prior):
    """Mixture of diagonal normals, all parameters learned.

        p(z) = sum_c pi_c N(z; loc_c, diag(scale_c)^2)

    Initially all components have equal weight and unit scale, and their locations are drawn from N(0, I).

    Args:
        latent_dim: Dimension Z of the latent.
        num_components: Number C of components.

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
        """Return the mixture. Covariates are ignored."""
        components = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
        return BlockwiseMixture(dist.Categorical(logits=self.logits), components)


class EncodedPrior(Prior):
    """Base class of the mixtures whose components come from the encoder.

        p(z) = sum_m pi_m r(z|u_m),  p(z|c) = sum_m pi_m r(z|u_m,c),  u_m in data space

    The prior and the guide share the encoder, so gradients of log p(z) reach the encoder. The prior always runs the
    encoder in evaluation mode (no dropout).

    Args:
        latent_dim: Dimension Z of the latent.
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
        """Share the encoder, and choose M of the data at random as u, some repeatedly if N < M.

        Args:
            encoder: Module whose forward returns q(z|x); the prior shares it and does not copy it.
            x: Training data, with shape (N, D).

        Raises:
            ValueError: If x is empty.
        """
        if not len(x):
            raise ValueError(f"{type(self).__name__} needs training data, but x is empty; give at least one datum")
        rows = torch.randperm(len(x), device=x.device).repeat(-(-self.num_components // len(x)))
        self.inputs = self.make_inputs(x[rows[: self.num_components]].detach().clone())
        self.encoder = encoder
        return self

    def make_inputs(self, x: Tensor) -> Tensor:
        """Return u, with shape (M, D), as it is stored: a buffer."""
        return x

    def encode_inputs(self, covariates: Tensor | None) -> TorchDistributionMixin:
        """Return q(z|u), with batch_shape (M,), or q(z|u,c), with batch_shape (N, M)."""
        if self.encoder is None:
            name = type(self).__name__
            raise ValueError(
                f"{name} needs an encoder and training data, but has none; call {name}.attach(encoder, x) first"
            )
        with _evaluation_mode(self.encoder):
            q = self.encoder(self.inputs) if covariates is None else self.encoder(self.inputs, covariates.unsqueeze(-2))
        if q.event_shape != (self.latent_dim,):
            raise ValueError(
                f"{type(self).__name__} needs an encoder with latents of shape ({self.latent_dim},), got "
                f"{tuple(q.event_shape)}; give the encoder's network num_outputs({self.latent_dim}) outputs"
            )
        return q


class VampPrior(EncodedPrior):
    """Mixture of approximate posteriors at learned pseudo-inputs.

        p(z) = sum_m pi_m q(z|u_m)

    From Tomczak and Welling, "VAE with a VampPrior" (AISTATS 2018, https://arxiv.org/abs/1705.07120). Pseudo-inputs are
    initialised at random training data and may leave the range of the data. In Python, call
    `VampPrior(2).attach(encoder, x)` with the encoder of the same VAE; the scripts call it themselves.

    Args:
        latent_dim: Dimension Z of the latent.
        num_components: Number M of pseudo-inputs.
        learn_weights: Whether to learn the weights pi; if not, they stay 1/M.

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
        """Attach encoder and data as in `EncodedPrior`, and adopt the support of the encoder."""
        self.support = getattr(encoder, "support", self.support)
        return super().attach(encoder, x)

    def make_inputs(self, x: Tensor) -> Tensor:
        """Return u, with shape (M, D), as it is stored: a parameter."""
        return nn.Parameter(x)

    def forward(self, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return the mixture p(z), or p(z|c) for covariates with shape (N, C)."""
        components = self.encode_inputs(covariates)
        weights = dist.Categorical(logits=self.logits.expand(components.batch_shape))
        return BlockwiseMixture(weights, components)


class ExemplarPrior(EncodedPrior):
    """Mixture of normals around encoded training data.

        p(z) = 1/M sum_m N(z; mean of q(z|x_m), scale^2 I)

    From Norouzi, Fleet and Norouzi, "Exemplar VAE" (NeurIPS 2020, https://arxiv.org/abs/2004.04795). The scale is
    learned and initially 1; the exemplars x_m are a fixed random subset of the data. Unlike in the paper, the prior of
    a datum includes its own component, so values on training data are too high by up to log M nats if M is close to N.
    The saved weights contain the exemplars, which are training data.

    Args:
        latent_dim: Dimension Z of the latent.
        num_components: Number M of exemplars.

    Raises:
        ValueError: If num_components is below 1; on a call before `attach`; if the encoder's distribution has no mean.
    """

    def __init__(self, latent_dim: int, num_components: int = 500) -> None:
        super().__init__(latent_dim, num_components)
        self.register_buffer("inputs", None)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return the mixture p(z), or p(z|c) for covariates with shape (N, C)."""
        encoded = self.encode_inputs(covariates)
        try:
            loc = encoded.mean
        except NotImplementedError as error:
            raise ValueError(
                f"ExemplarPrior needs the mean of q(z|x), but {type(encoded).__name__} has none in closed form; use "
                "VampPrior or another encoder"
            ) from error
        components = dist.Normal(loc, self.log_scale.exp()).to_event(1)
        return BlockwiseMixture(dist.Categorical(logits=torch.zeros_like(loc[..., 0])), components)


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
