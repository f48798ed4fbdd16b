"""Linear programs with exact answers for the diagnostics of latents."""

import pyro
import pyro.distributions as dist
import torch


def linear_programs(encoder, noise, *, decoder=None, prior=None, scale=1.0):
    """Return a model with prior N(0, I), or another, and x = decoder z + scale e, and q(z|x) = N(encoder x, noise^2).

    Args:
        encoder: Matrix with shape (Z, D).
        noise: Standard deviations of the guide, with shape (Z,).
        decoder: Matrix with shape (D, Z); None for zeros.
        prior: Distribution of one latent; None for N(0, I).
        scale: Standard deviation of x given z.
    """
    encoder = torch.as_tensor(encoder)
    latent_dim, data_dim = encoder.shape
    decoder = encoder.new_zeros(data_dim, latent_dim) if decoder is None else decoder
    prior = dist.Normal(encoder.new_zeros(latent_dim), 1.0).to_event(1) if prior is None else prior

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z @ decoder.T, scale).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ encoder.T, noise).to_event(1))

    return model, guide
