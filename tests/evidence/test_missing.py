"""Missing values (NaN) under a mask in programs that are not ours: the mode is found as if a number stood there."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyrovae import LaplaceProposal, ais, linear_schedule, log_marginal, refine
from pyrovae.evidence.laplace import climb
from pyrovae.evidence.latent_space import LatentSpace

SD, PRIOR_SD = 0.3, 30.0


def inside(x, mask, mean):
    pyro.sample("x", dist.Normal(mean, SD).mask(mask).to_event(1), obs=x)


def outside_sites(x, mask, mean):
    for i in range(x.shape[-1]):
        with poutine.mask(mask=mask[:, i]):
            pyro.sample(f"x{i}", dist.Normal(mean[..., i], SD), obs=x[:, i])


def positive(x, mask, mean):
    pyro.sample("x", dist.LogNormal(mean, SD).mask(mask).to_event(1), obs=x.abs())


def counts(x, mask, mean):
    pyro.sample("x", dist.Poisson((mean / 20).exp()).mask(mask).to_event(1), obs=x.abs().floor())


def factor(x, mask, mean):
    """The mask is unknown outside the program, which drops NaN itself; gradients are NaN all the same."""
    pyro.factor("x", torch.where(mask, dist.Normal(mean, SD).log_prob(x), 0.0).sum(-1))


def model_of(likelihood):
    def model(x, mask):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), PRIOR_SD).to_event(1))
            likelihood(x, mask, z.expand(*z.shape[:-1], x.shape[-1]))

    return model


def guide(x, mask):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x.new_full((1,), 4.0), 1.0).to_event(1))


def data():
    pyro.set_rng_seed(1)
    x = SD * torch.randn(6, 5, dtype=torch.float64) + 5 * torch.arange(6.0, dtype=torch.float64).unsqueeze(-1)
    mask = torch.rand(6, 5) > 0.4
    mask[0] = False
    return x, mask


def closed_form(x, mask):
    """Log density of the observed entries, normal with covariance SD^2 I + PRIOR_SD^2 11'."""
    values = []
    for row, seen in zip(x, mask, strict=True):
        size = int(seen.sum())
        covariance = SD**2 * torch.eye(size, dtype=x.dtype) + PRIOR_SD**2
        q = torch.distributions.MultivariateNormal(torch.zeros(size, dtype=x.dtype), covariance) if size else None
        values.append(q.log_prob(row[seen]) if q else x.new_zeros(()))
    return torch.stack(values)


@pytest.mark.parametrize("likelihood", [inside, outside_sites, positive, counts])
@pytest.mark.parametrize("proposal", [None, LaplaceProposal()])
def test_a_masked_nan_gives_the_numbers_of_any_other_masked_value(likelihood, proposal):
    x, mask = data()
    found = []
    for filled in (torch.where(mask, x, torch.nan), torch.where(mask, x, 1.0)):
        pyro.set_rng_seed(2)
        found.append(log_marginal(model_of(likelihood), guide, filled, mask=mask, num_particles=200, proposal=proposal))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9, equal_nan=True)


def test_log_marginal_of_incomplete_data_agrees_with_the_closed_form():
    x, mask = data()
    found = log_marginal(
        model_of(inside),
        guide,
        torch.where(mask, x, torch.nan),
        mask=mask,
        num_particles=500,
        proposal=LaplaceProposal(),
    )
    assert bool(((found.value - closed_form(x, mask)).abs() < 4.5 * found.std_error + 1e-6).all())
    assert bool((found.ess > 300).all())


def test_ais_and_refine_move_over_masked_nan():
    x, mask = data()
    exact, model, found = closed_form(x, mask), model_of(inside), []
    for filled in (torch.where(mask, x, torch.nan), torch.where(mask, x, 1.0)):
        pyro.set_rng_seed(3)
        settings = {"num_particles": 5, "betas": linear_schedule(10), "num_leapfrog": 3, "num_tuning": 10}
        chains = ais(model, filled, mask=mask, **settings)
        refined = refine(model, guide, filled, mask=mask, log_p=exact, steps=20)
        found.append((chains.value, refined.elbo))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def test_a_failed_climb_is_said_and_replaced_by_the_guide():
    x, mask = data()
    mask[0] = True
    mask[1:3] = True
    missing = torch.where(mask, x, torch.nan)
    bad = missing.isnan().any(-1)
    words = f"the climb to the mode failed for {int(bad.sum())} of 6 data.*moments of the guide"
    pyro.set_rng_seed(4)
    with pytest.warns(UserWarning, match=words):
        found = log_marginal(
            model_of(factor), guide, missing, mask=mask, num_particles=1000, proposal=LaplaceProposal()
        )
    assert bool(((found.value - closed_form(x, mask)).abs()[~bad] < 4.5 * found.std_error[~bad] + 1e-6).all())
    space = LatentSpace(model_of(factor), guide, missing, mask=mask)
    with pytest.warns(UserWarning, match=words), pyro.validation_enabled(False):
        fit = climb(space)
    precision = mask.sum(-1).double() / SD**2 + 1 / PRIOR_SD**2
    posterior = torch.where(mask, x, 0.0).sum(-1) / SD**2 / precision
    mode, scale = fit.mode.reshape(-1, 6), fit.scale_tril.reshape(-1, 6)
    torch.testing.assert_close(mode[:, ~bad], posterior[~bad].expand(len(mode), -1), rtol=0, atol=1e-4)
    torch.testing.assert_close(scale[:, ~bad], precision[~bad].rsqrt().expand(len(mode), -1), rtol=1e-3, atol=0)
    assert bool(((mode[:, bad] - 4.0).abs() < 0.5).all())  # the guide is N(4, 1)
    assert bool(((scale[:, bad] - 1.0).abs() < 0.4).all())
