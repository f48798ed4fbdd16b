"""Mixture of normals as an encoder, with gradients through its draws."""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.encoders.base import Encoder, latent_size
from pyrovae.nn import scale_of


class MixtureOfNormals(dist.MixtureSameFamily):
    """Mixture of diagonal normals with pathwise gradients of its draws.

        q(z) = sum_c pi_c N(z; loc_c, diag(scale_c)^2)

    Draws are reparameterised implicitly in all parameters, including the weights (Figurnov, Mohamed, Mnih, "Implicit
    Reparameterization Gradients", NeurIPS 2018, https://arxiv.org/abs/1805.08498). The conditional distribution
    functions S_d = F(z_d | z_<d) of a draw are uniform for all parameters, so dz = -(dS/dz)^-1 dS. The gradients of
    Pyro's `MixtureOfDiagNormals` underflow to NaN in float32 from about 60 dimensions.

    Args:
        mixture_distribution: Categorical over C components, with batch_shape (...).
        component_distribution: Diagonal normal, with batch_shape (..., C) and event_shape (Z,).
    """

    has_rsample = True

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw with gradients, with shape sample_shape + batch_shape + (Z,)."""
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
            # dS_d/dz_e is the density of z_d given z_<d if e = d, and depends on the weights alone if e < d.
            slope = torch.einsum("...cd,...ce->...de", w * (cdf - uniform.unsqueeze(-2)), score).tril(-1)
            slope = slope + torch.diag_embed((log_w + log_n).logsumexp(-2).exp())
        step = (uniform - uniform.detach()).unsqueeze(-1)
        return z - torch.linalg.solve_triangular(slope, step, upper=False).squeeze(-1)


class MixtureEncoder(Encoder):
    """Mixture of diagonal normals.

        q(z|x) = sum_c pi_c N(z; loc_c, diag(exp(log_scale_c))^2)

    Draws have pathwise gradients with respect to all parameters, including the weights (see `MixtureOfNormals`), so
    every objective for reparameterised guides accepts this encoder.

    Args:
        network: Module from x (and covariates) to the parameters of q(z|x): C logits, C Z locations,
            then C Z log scales, both component by component.
        num_components: Number C of components.

    Raises:
        ValueError: If num_components is below 1; on a call, if the network has another number of outputs.
    """

    def __init__(self, network: nn.Module, num_components: int = 4) -> None:
        super().__init__(network)
        if num_components < 1:
            raise ValueError(f"num_components must be at least 1, got {num_components}")
        self.num_components = num_components

    @classmethod
    def num_outputs(cls, latent_dim: int, *, num_components: int = 4, **arguments: Any) -> int:
        """Return C (2 Z + 1)."""
        return num_components * (2 * latent_dim + 1)

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> TorchDistributionMixin:
        """Return q(z|x), with the batch_shape of x's leading dimensions."""
        outputs, count = self.outputs(x, covariates), self.num_components
        size = latent_size(outputs.shape[-1], 2 * count, count, f"C (2 Z + 1), C = {count},")
        logits, loc, log_scale = outputs.tensor_split((count, count * (1 + size)), -1)
        loc, log_scale = (each.unflatten(-1, (count, size)) for each in (loc, log_scale))
        return MixtureOfNormals(dist.Categorical(logits=logits), dist.Normal(loc, scale_of(log_scale)).to_event(1))
