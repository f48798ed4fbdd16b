"""The mixture of normals as an encoder, with gradients through its draws."""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.encoders.base import Encoder, latent_size


class MixtureOfNormals(dist.MixtureSameFamily):
    """Mixture of diagonal normals whose draws have pathwise gradients: q(z) = sum_c pi_c N(z; loc_c, diag(scale_c)^2).

    Implicit reparameterisation of all that is learned, the weights too (Figurnov, Mohamed, Mnih, "Implicit
    Reparameterization Gradients", NeurIPS 2018, https://arxiv.org/abs/1805.08498): the conditional distribution
    functions S_d = F(z_d | z_<d) of a draw are uniform whatever the parameters, so dz = -(dS/dz)^-1 dS. Pyro's
    `MixtureOfDiagNormals` has gradients as well, but they underflow to NaN in single precision from some 60 dimensions.

    Args:
        mixture_distribution: Categorical with batch_shape (...), over C components.
        component_distribution: Normal of one event dimension, with batch_shape (..., C) and event_shape (Z,).
    """

    has_rsample = True

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw with gradients; the shape is sample_shape + batch_shape + (Z,)."""
        z = self.sample(torch.Size(sample_shape))
        if not torch.is_grad_enabled():
            return z
        normals, at = self.component_distribution.base_dist, z.unsqueeze(-2)
        log_n, cdf = normals.log_prob(at), normals.cdf(at)  # (..., C, Z)
        before = self.mixture_distribution.logits.unsqueeze(-1) + log_n.cumsum(-1) - log_n
        log_w = before.log_softmax(-2)  # of component c given z_<d
        w = log_w.exp()
        uniform = (w * cdf).sum(-2)
        with torch.no_grad():
            score = (normals.loc - at) / normals.scale**2
            # dS_d/dz_e is the density of z_d given z_<d where e = d, and through the weights where e < d.
            slope = torch.einsum("...cd,...ce->...de", w * (cdf - uniform.unsqueeze(-2)), score).tril(-1)
            slope = slope + torch.diag_embed((log_w + log_n).logsumexp(-2).exp())
        step = (uniform - uniform.detach()).unsqueeze(-1)
        return z - torch.linalg.solve_triangular(slope, step, upper=False).squeeze(-1)


class MixtureEncoder(Encoder):
    """Mixture of diagonal normals: q(z|x) = sum_c pi_c N(z; loc_c, diag(exp(log_scale_c))^2).

    Draws have pathwise gradients with respect to everything, the weights too (see `MixtureOfNormals`), so every
    objective for reparameterised guides takes it.

    Args:
        network: Maps x to C logits, C Z locations and then C Z log scales, both component by component.
        num_components: Number C of components.

    Raises:
        ValueError: If num_components is below 1; on a call, if the network gives another number of outputs.
    """

    def __init__(self, network: nn.Module, num_components: int = 4) -> None:
        super().__init__(network)
        if num_components < 1:
            raise ValueError(f"num_components must be at least 1, got {num_components}")
        self.num_components = num_components

    @classmethod
    def num_outputs(cls, latent_dim: int, *, num_components: int = 4, **arguments: Any) -> int:
        """C (2 Z + 1)."""
        return num_components * (2 * latent_dim + 1)

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return q(z|x), with the batch_shape of x's leading dimensions."""
        outputs, count = self.outputs(x, covariates), self.num_components
        size = latent_size(outputs.shape[-1], 2 * count, count, f"C (2 Z + 1), C = {count},")
        logits, loc, log_scale = outputs.tensor_split((count, count * (1 + size)), -1)
        loc, log_scale = (each.unflatten(-1, (count, size)) for each in (loc, log_scale))
        return MixtureOfNormals(dist.Categorical(logits=logits), dist.Normal(loc, log_scale.exp()).to_event(1))
