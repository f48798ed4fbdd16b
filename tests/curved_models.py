"""Small VAEs whose posteriors are not normal, with data from their prior predictive."""

import torch

from pyrovae import MLP, VAE, NormalEncoder, StandardNormalPrior
from pyrovae.evidence import LatentSpace

F64 = torch.float64


def space_of(vae, x, **kwargs):
    return LatentSpace(vae.model, vae.guide, x, **kwargs)


def curved(likelihood, latent_dim=1, num_dims=4, dtype=F64):
    """A small VAE with a tanh decoder and data from its prior predictive."""
    network = MLP(latent_dim, num_dims, hidden=[8], activation="tanh")
    vae = VAE(StandardNormalPrior(latent_dim), likelihood(network), NormalEncoder(MLP(num_dims, 2 * latent_dim)))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
    vae.to(dtype)
    with torch.no_grad():
        return vae, vae.model(size=6)
