"""Collapse: which dimensions, and whether the guide or the decoder is the reason, on linear models in closed form."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from latent_programs import linear_programs

from pyrovae import MLP, Blueprint, MixtureVAE
from pyrovae.diagnostics import collapse

BY_DECODER, BY_GUIDE = "collapsed: the decoder ignores it", "collapsed: the guide's fault, since the decoder uses it"


def test_probabilistic_pca_collapses_exactly_the_dimensions_below_the_noise():
    eigenvalues, noise_variance = torch.tensor([4.0, 2.0, 0.5, 0.3]), 0.8
    x = torch.randn(300, 4) * eigenvalues.sqrt()
    # Tipping and Bishop (1999), eq. 7: W = U (Lambda - s^2 I)^(1/2), and columns of 0 below s^2.
    decoder = (eigenvalues - noise_variance).clamp_min(0.0).sqrt().diag()[:, :3]
    precision = 1 + decoder.square().sum(0) / noise_variance
    encoder = decoder.T / noise_variance / precision[:, None]
    programs = linear_programs(encoder, precision.rsqrt(), decoder=decoder, scale=noise_variance**0.5)
    found = collapse(*programs, x, num_particles=16)
    assert found.collapsed.tolist() == [False, False, True]
    assert found.verdict == ("in use", "in use", BY_DECODER)
    assert abs(found.offered[2]) < 1e-10
    assert found.decoded_variance[2] == 0
    # KL_j(x) = (m^2 + v - 1 - log v) / 2, and the share below epsilon by counting.
    v = 1 / precision
    kl = ((x @ encoder.T).square() + v - 1 - v.log()) / 2
    shares = torch.stack([(kl < epsilon).double().mean(0) for epsilon in found.epsilon])
    assert bool((abs(found.share - shares) < 0.01).all())
    assert bool((found.share[:, 2] == 1).all())
    assert bool((found.share.diff(dim=0) >= 0).all())


@pytest.fixture
def working_decoder():
    return torch.tensor([[1.0, 0.0], [0.5, 0.0], [0.0, 0.0]])


def test_a_column_of_zeros_is_ignored_by_the_decoder_and_a_guide_at_the_prior_is_at_fault(working_decoder):
    x = torch.randn(100, 3)
    frozen = collapse(*linear_programs(torch.zeros(2, 3), torch.ones(2), decoder=working_decoder), x)
    assert frozen.verdict == (BY_GUIDE, BY_DECODER)
    assert frozen.collapsed.tolist() == [True, True]
    moved = collapse(*linear_programs(torch.eye(2, 3), 0.5 * torch.ones(2), decoder=working_decoder), x)
    assert moved.verdict == ("in use", "ignored by the decoder, but the guide differs from the prior")
    assert moved.ignored.tolist() == [False, True]


def test_the_offer_of_the_decoder_is_that_of_the_exact_posterior():
    decoder, x = torch.tensor([[0.8, 0.3], [-0.4, 0.9]]), torch.randn(40, 2)
    guide_mean = 0.2 * torch.eye(2)
    found = collapse(*linear_programs(guide_mean, 0.01 * torch.ones(2), decoder=decoder), x, num_particles=1000)
    precision = 1 + decoder.square().sum(0)
    others = x @ guide_mean.T  # z is nearly the guide's mean
    residual = x[:, None] - (others @ decoder.T)[:, None] + others[..., None] * decoder.T  # without z_j
    mean = (residual * decoder.T).sum(-1) / precision
    exact = ((mean**2 + 1 / precision - 1 + precision.log()) / 2).double().mean(0)
    torch.testing.assert_close(found.offered, exact, rtol=0.05, atol=0)
    torch.testing.assert_close(found.decoded_variance, decoder.square().sum(0).double(), rtol=0.05, atol=0)


def test_a_decoder_that_uses_a_latent_for_the_scale_alone_does_not_ignore_it():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0.0, z.exp()), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    found = collapse(model, guide, torch.randn(50))
    assert found.decoded_variance.tolist() == [0.0]
    assert found.verdict == (BY_GUIDE,)
    assert found.labels == ("z",)


def test_the_upper_of_two_layers_counts_what_it_says_about_the_lower():
    def model(x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(2 * z2[..., :1], 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z1, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("z1", dist.Normal(2 * z2[..., :1], 1.0).to_event(1))

    found = collapse(model, guide, torch.randn(50, 1))
    assert found.verdict == (BY_GUIDE, BY_DECODER, BY_GUIDE)
    assert found.decoded_variance[:2].tolist() == [0.0, 0.0]


def test_discrete_latents_are_skipped_and_sums_are_unknown():
    mixture = MixtureVAE(Blueprint(4, 1, network=lambda i, o: MLP(i, o, hidden=[4])), num_classes=2)
    found = collapse(mixture.model, mixture.guide, (torch.rand(20, 4) > 0.5).float(), num_particles=4)
    assert found.labels == ("z[0]",)
    assert found.skipped == ("site 'y' is discrete (OneHotCategorical)",)

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(4.0 * y, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    found = collapse(model, guide, torch.randn(20), num_particles=4)
    assert found.verdict == ("unknown: KL_j has no known density",)
    assert math.isnan(found.kl.item())


def test_counts_must_be_large_enough():
    with pytest.raises(ValueError, match="num_particles of at least 2"):
        collapse(*linear_programs(torch.eye(2), 1.0), torch.randn(5, 2), num_particles=1)
