"""Scores of entries against the exact conditional densities of a linear-Gaussian model."""

import pyro
import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from pyrovae import VAE, MultinomialLikelihood, NormalEncoder, NormalLikelihood, StandardNormalPrior
from pyrovae.evidence import score

D, Z, SD = 5, 2, 0.6


@pytest.fixture(scope="module")
def problem():
    pyro.set_rng_seed(0)
    decoder = nn.Linear(Z, D).double()
    vae = VAE(StandardNormalPrior(Z), NormalLikelihood(decoder, scale=SD), NormalEncoder(nn.Linear(D, 2 * Z))).double()
    x = vae.model(size=12).detach()
    x[0, 3] += 6.0
    w = decoder.weight.detach()
    return vae, x, decoder.bias.detach(), w @ w.T + SD**2 * torch.eye(D, dtype=torch.float64)


def log_p(x, loc, covariance, kept):
    if not len(kept):
        return x.new_zeros(())
    return MultivariateNormal(loc[kept], covariance[kept][:, kept]).log_prob(x[kept])


def test_scores_of_entries_are_the_exact_conditional_densities(problem):
    vae, x, loc, covariance = problem
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.7
    mask[0] = True
    pyro.set_rng_seed(1)
    found = score(vae.model, vae.guide, torch.where(mask, x, torch.nan), mask=mask, num_particles=8000)
    errors = []
    for n in range(len(x)):
        kept = mask[n].nonzero().flatten()
        whole = log_p(x[n], loc, covariance, kept)
        assert abs(found.log_marginal.value[n] - whole) < 5 * found.log_marginal.std_error[n] + 1e-6
        for d in kept.tolist():
            exact = whole - log_p(x[n], loc, covariance, kept[kept != d])
            if found.khat[n, d] < 0.5:
                errors.append((found.conditional[n, d] - exact) / found.std_error[n, d])
            else:
                assert abs(found.conditional[n, d] - exact) < 0.5
    errors = torch.stack(errors)
    assert len(errors) >= 25
    assert bool((errors.abs() < 5).all())
    assert 0.5 < errors.std() < 1.5
    assert found.conditional[0].argmin() == 3
    assert bool(found.conditional.isnan().eq(~mask).all())


def test_scores_need_a_product_over_entries():
    pyro.set_rng_seed(0)
    likelihood = MultinomialLikelihood(nn.Linear(Z, D), total_count=4)
    vae = VAE(StandardNormalPrior(Z), likelihood, NormalEncoder(nn.Linear(D, 2 * Z)))
    x = torch.tensor([[1.0, 1, 1, 1, 0]] * 3)
    with pytest.raises(ValueError, match="no product over the entries"):
        score(vae.model, vae.guide, x, num_particles=10)
