"""Encoders given by a normalising flow."""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.distributions import FlowDistribution, FlowKind, autoregressive_transform, inverse_transform
from pyrovae.encoders.base import Encoder, latent_size
from pyrovae.nn import out_features, scale_of


class FlowEncoder(Encoder):
    """Inverse autoregressive flow.

        z = loc + exp(log_scale) f(e; h),  e ~ N(0, I),  (loc, log_scale, h) = network(x)

    f is a stack of autoregressive transforms (see `pyrovae.distributions.autoregressive_transform`). A draw and its log
    density need one pass of each transform, the log density at any other point needs Z. From Kingma et al., "Improved
    Variational Inference with Inverse Autoregressive Flow" (NeurIPS 2016, https://arxiv.org/abs/1606.04934).

    Args:
        network: Module from x (and covariates) to the parameters of q(z|x): Z locations, Z log scales,
            then the features h.
        kind: Transforms of the flow: "nsf" (splines) or "maf" (affine).
        transforms: Number of transforms; the order of the dimensions reverses from one to the next.
        num_features: Number of features h.
        hidden: Sizes of the hidden layers of each transform's network.

    Raises:
        ValueError: If kind is neither "nsf" nor "maf", transforms or num_features is below 1, or the network has
            another or an unknown number of outputs (see `pyrovae.nn.out_features`).
    """

    def __init__(
        self,
        network: nn.Module,
        kind: FlowKind = "maf",
        transforms: int = 2,
        num_features: int = 16,
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__(network)
        if num_features < 1:
            raise ValueError(f"num_features must be at least 1, got {num_features}")
        formula = f"2 Z + num_features, num_features {num_features},"
        self.latent_dim = latent_size(out_features(network), 2, num_features, formula)
        self.transform = autoregressive_transform(
            kind, self.latent_dim, num_features=num_features, transforms=transforms, hidden=hidden
        )

    @classmethod
    def num_outputs(cls, latent_dim: int, *, num_features: int = 16, **arguments: Any) -> int:
        """Return 2 Z + num_features."""
        return 2 * latent_dim + num_features

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return q(z|x), with the batch_shape of x's leading dimensions."""
        loc, log_scale, features = self.outputs(x, covariates).tensor_split((self.latent_dim, 2 * self.latent_dim), -1)
        to_noise = inverse_transform(self.transform(features), loc, scale_of(log_scale))
        return FlowDistribution(to_noise, dist.Normal(torch.zeros_like(loc), torch.ones_like(loc)).to_event(1))
