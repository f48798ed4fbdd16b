"""NUTS for chosen data, against quadrature."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrovae import exact_log_marginal
from pyrovae.diagnostics import nuts_check

LOC = torch.tensor([1.0, -0.5])


def model(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(torch.tanh(2 * z) * LOC, 0.5).to_event(1), obs=x)


def guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x[:, :1] + 0.2, 0.8).to_event(1))


def quantiles_by_grid(x, probs):
    """Quantiles of p(z|x) by a sum over a fine grid."""
    z = torch.linspace(-7, 7, 20_001, dtype=torch.float64)
    log_p = dist.Normal(0.0, 1.0).log_prob(z)
    log_p = log_p + dist.Normal(torch.tanh(2 * z.unsqueeze(-1)) * LOC, 0.5).log_prob(x).sum(-1)
    return z[torch.searchsorted(log_p.softmax(0).cumsum(0), probs)]


X = torch.tensor([[0.9, -0.3], [-0.2, 0.4], [0.1, 0.3]])


def agrees_with_quadrature(found):
    exact = exact_log_marginal(model, X[found.data])
    ess = found.ess
    assert ((found.mean - exact.loc).abs() < 4.5 * found.sd / ess.sqrt()).all()
    assert ((found.sd / exact.covariance[:, 0].sqrt() - 1).abs() < 4.5 / ess.sqrt()).all()
    for m, datum in enumerate(found.data.tolist()):
        q = quantiles_by_grid(X[datum], found.probabilities).unsqueeze(-1)
        below = dist.Normal(X[datum, 0] + 0.2, 0.8).cdf(q.float())
        assert ((found.guide_below[m] - below).abs() < 4.5 * found.below_error[m]).all()
        assert ((found.weighted[m] - q).abs() < 0.15).all()
        assert ((found.nuts[m] - q).abs() < 8 * found.sd[m] / ess[m].sqrt() + 0.02).all()
    return True


def test_nuts_agrees_with_quadrature():
    state = torch.random.get_rng_state()
    found = nuts_check(model, guide, X, data=[0], num_samples=100, num_warmup=60, num_chains=2, num_draws=4000)
    assert torch.equal(state, torch.random.get_rng_state())
    assert found.labels == ("z[0]",)
    assert found.nuts.shape == found.guide.shape == found.weighted.shape == found.guide_below.shape == (1, 5, 1)
    assert found.ess.min() > 20
    assert agrees_with_quadrature(found)


@pytest.mark.slow
def test_longer_chains_agree_with_quadrature_and_name_a_guide_that_does_not():
    found = nuts_check(model, guide, X, data=[2, 0], num_samples=400, num_warmup=150, num_chains=2, num_draws=4000)
    assert found.data.tolist() == [2, 0]
    assert found.rhat.max() < 1.05
    assert found.ess.min() > 100
    assert agrees_with_quadrature(found)
    assert (found.weighted_below.squeeze(-1) - found.probabilities).abs().max() < 0.12
    assert "datum 2: the guide's quantiles differ from those of NUTS, in probability, in z[0]" in found.words[0]


def test_chains_that_have_not_converged_are_no_reference():
    found = nuts_check(model, guide, torch.zeros(1, 2), data=[0], num_samples=5, num_warmup=2, num_chains=2)
    assert "NUTS has not converged" in found.words[0]


def test_discrete_latents_are_refused():
    def coins(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def of_coins(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli(torch.full((len(x),), 0.3)))

    with pytest.raises(ValueError, match=r"nuts_check needs continuous latents .* 'z' \(Bernoulli\) is discrete"):
        nuts_check(coins, of_coins, torch.zeros(2), data=[0])


def test_mistakes_are_told():
    x = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="data must be indices from 0 to 1"):
        nuts_check(model, guide, x, data=[2])
    with pytest.raises(ValueError, match="at least 2 chains"):
        nuts_check(model, guide, x, data=[0], num_chains=1)
    with pytest.raises(ValueError, match="probabilities must lie between 0 and 1"):
        nuts_check(model, guide, x, data=[0], probabilities=[1.0])
