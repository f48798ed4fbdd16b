"""Imputations against the exact conditional normal of a linear-Gaussian model, for all patterns of five columns."""

from itertools import product

import pyro
import pytest
import torch
from torch import nn

from pyrovae import VAE, GuideProposal, NormalEncoder, NormalLikelihood, StandardNormalPrior
from pyrovae.evidence import impute

D, Z, SD = 5, 2, 0.6


@pytest.fixture(scope="module")
def problem():
    """A linear decoder, an untrained encoder, and one datum for each pattern of holes."""
    pyro.set_rng_seed(0)
    decoder = nn.Linear(Z, D).double()
    vae = VAE(StandardNormalPrior(Z), NormalLikelihood(decoder, scale=SD), NormalEncoder(nn.Linear(D, 2 * Z))).double()
    mask = torch.tensor(list(product([True, False], repeat=D)))
    x = vae.model(size=len(mask)).detach()
    return vae, torch.where(mask, x, torch.nan), mask, decoder.weight.detach(), decoder.bias.detach()


def exact(x, mask, weight, bias):
    """log p(x_obs), and mean and covariance of all entries given the observed ones."""
    covariance = weight @ weight.T + SD**2 * torch.eye(D, dtype=torch.float64)
    a, b = mask.nonzero().flatten(), (~mask).nonzero().flatten()
    mean, spread = x.clone(), torch.zeros(D, D, dtype=torch.float64)
    if not len(a):
        return torch.zeros(()), bias, covariance
    gain = torch.linalg.solve(covariance[a][:, a], covariance[a][:, b]).T
    mean[b] = bias[b] + gain @ (x[a] - bias[a])
    spread[b[:, None], b] = covariance[b][:, b] - gain @ covariance[a][:, b]
    log_p = torch.distributions.MultivariateNormal(bias[a], covariance[a][:, a]).log_prob(x[a])
    return log_p, mean, spread


def test_means_draws_and_log_p_are_exact_for_every_pattern_of_holes(problem):
    vae, x, mask, weight, bias = problem
    pyro.set_rng_seed(1)
    found = impute(vae.model, vae.guide, x, mask=mask, num_particles=4000, num_draws=4000)
    for n in range(len(x)):
        log_p, mean, spread = exact(x[n], mask[n], weight, bias)
        assert abs(found.log_marginal.value[n] - log_p) < 5 * found.log_marginal.std_error[n] + 1e-6
        torch.testing.assert_close(found.value[n], mean, rtol=0, atol=0.1)
        torch.testing.assert_close(found.draws[:, n].mean(0), mean, rtol=0, atol=0.12)
        torch.testing.assert_close(found.draws[:, n].T.cov(), spread, rtol=0, atol=0.2)
        assert bool((found.draws[:, n, mask[n]] == x[n, mask[n]]).all())


def test_the_guide_as_proposal_agrees_if_its_weights_are_even(problem):
    vae, x, mask, weight, bias = problem
    pyro.set_rng_seed(2)
    found = impute(vae.model, vae.guide, x, mask=mask, num_particles=20_000, num_draws=0, proposal=GuideProposal())
    good = found.log_marginal.khat < 0.5
    assert int(good.sum()) >= 8
    exact_means = torch.stack([exact(x[n], mask[n], weight, bias)[1] for n in range(len(x))])
    torch.testing.assert_close(found.value[good], exact_means[good], rtol=0, atol=0.15)
    assert found.draws.shape == (0, *x.shape)


def test_blocks_of_data_do_not_change_the_result_beyond_noise(problem):
    vae, x, mask, weight, bias = problem
    pyro.set_rng_seed(3)
    found = impute(vae.model, vae.guide, x, mask=mask, num_particles=2000, num_draws=3, chunk_size=10_000)
    assert found.draws.shape == (3, *x.shape)
    exact_means = torch.stack([exact(x[n], mask[n], weight, bias)[1] for n in range(len(x))])
    torch.testing.assert_close(found.value, exact_means, rtol=0, atol=0.15)


def test_what_cannot_be_imputed_is_refused(problem):
    vae, x, mask, _, _ = problem
    with pytest.raises(ValueError, match=r"mask must have the shape \(32, 5\) of x"):
        impute(vae.model, vae.guide, x, mask=mask[:, 0])
    with pytest.raises(ValueError, match=r"the model has no site 'y', but 'z', 'x'"):
        impute(vae.model, vae.guide, x, mask=mask, site="y", num_particles=5)
