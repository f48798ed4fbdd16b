"""Codes and decoded places against closed forms of a linear model."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrovae.diagnostics import decode_means, decoded_grid, encode_codes

A, S, W = 0.8, 0.3, torch.tensor([[1.0, 0.0], [2.0, -1.0], [0.0, 3.0]])


def model(x):
    with pyro.plate("data", len(x), dim=-1):
        top = pyro.sample("top", dist.Laplace(1.0, 2.0))
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 0.5).to_event(1))
        pyro.sample("x", dist.Normal(torch.stack([top, z[..., 0]], -1) @ W.T, 1.0).to_event(1), obs=x)


def guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(A * x[:, :1], S).to_event(1))
        pyro.sample("top", dist.Normal(torch.zeros(len(x)), 1.0))


def test_codes_have_the_moments_of_the_guide_and_the_quantiles_of_the_prior():
    x = torch.randn(300, 3)
    codes = encode_codes(model, guide, x, num_particles=400, levels=torch.tensor([0.1, 0.5, 0.9]))
    assert codes.names == ("top", "z[0]")  # the model's order
    assert codes.sites == {"top": torch.Size([]), "z": torch.Size([1])}
    torch.testing.assert_close(codes.mean[:, 1], A * x[:, 0].double(), rtol=0, atol=6 * S / 20)
    assert float((codes.sd.square().mean(0) - torch.tensor([1.0, S**2])).abs().max()) < 0.01
    assert float(((codes.draw[:, 1] - A * x[:, 0]).std() - S).abs()) < 0.06
    exact = torch.tensor([0.0, float((A * x[:, 0]).var())])
    prior = torch.tensor([8.0, 0.25])  # variances, 2 * 2^2 and 0.5^2
    torch.testing.assert_close(codes.activity.float(), exact / prior, rtol=0.1, atol=0.005)
    assert codes.order == [1, 0]
    laplace = torch.distributions.Laplace(1.0, 2.0).icdf(torch.tensor([0.1, 0.5, 0.9]))
    normal = torch.distributions.Normal(0.0, 0.5).icdf(torch.tensor([0.1, 0.5, 0.9]))
    torch.testing.assert_close(codes.quantiles.float(), torch.stack([laplace, normal], 1))


def test_quantiles_of_a_prior_without_an_inverse_cdf_are_those_of_its_draws():
    def mixture(x):
        with pyro.plate("data", len(x), dim=-1):
            parts = dist.Normal(torch.tensor([-3.0, 3.0]), 0.1)
            z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.25, 0.75])), parts))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def normal(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, 1.0))

    codes = encode_codes(mixture, normal, torch.randn(50), levels=torch.tensor([0.125, 0.625]))
    torch.testing.assert_close(codes.quantiles[:, 0], torch.tensor([-3.0, 3.0]).double(), rtol=0, atol=0.03)


def test_decoded_means_are_those_of_the_decoder():
    x = torch.randn(20, 3)
    codes = encode_codes(model, guide, x)
    z = torch.randn(7, 2, dtype=torch.float64)
    means = decode_means(model, x[:1], z=z, sites=codes.sites)
    torch.testing.assert_close(means, z @ W.T.double(), rtol=1e-5, atol=1e-5)
    places = torch.tensor([-1.0, 0.0, 2.0]), torch.tensor([0.5, 1.0])
    grid = decoded_grid(model, x[:1], codes=codes, dims=(1, 0), places=places)
    assert grid.means.shape == (2, 3, 3)
    assert grid.names == ("z[0]", "top")
    torch.testing.assert_close(grid.means[1, 2], (W @ torch.tensor([1.0, 2.0])).double())
    with pytest.raises(ValueError, match="one datum, got 2"):
        decode_means(model, x[:2], z=z, sites=codes.sites)


def test_codes_need_real_latents():
    def coin(x):
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def guess(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("k", dist.Bernoulli(0.5).expand([len(x)]))

    with pytest.raises(ValueError, match="real latent site"):
        encode_codes(coin, guess, torch.randn(5))


def test_activity_leaves_out_the_noise_of_means_from_few_draws():
    def prior(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def ignores(x):  # a distribution whose mean torch does not know
        with pyro.plate("data", len(x), dim=-1):
            normal = dist.Normal(torch.zeros(len(x)), 0.5)
            pyro.sample("z", dist.TransformedDistribution(normal, dist.transforms.AffineTransform(0.0, 2.0)))

    codes = encode_codes(prior, ignores, torch.randn(2000), num_particles=4)
    assert float(codes.mean.var()) > 0.2  # 1/4 by the draws
    assert abs(float(codes.activity)) < 0.03
