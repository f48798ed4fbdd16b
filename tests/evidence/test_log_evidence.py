"""The evidence of the whole data set agrees with quadrature and closed forms."""

import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearGaussian
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from scipy import stats

from pyrovae import log_evidence, log_marginal
from pyrovae.densities import LoopedWarning
from pyrovae.evidence import GuideProposal, PriorProposal, WidenedProposal

Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    tau = pyro.sample("tau", dist.HalfCauchy(25.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_by_quadrature():
    """Integrate over (mu, tau), with theta integrated out: y_j ~ N(mu, sigma_j^2 + tau^2)."""
    mu, log_tau = np.linspace(-60, 60, 601)[:, None], np.linspace(-15, 12, 541)
    tau = np.exp(log_tau)
    log_p = stats.norm.logpdf(mu, 0, 10) + stats.halfcauchy.logpdf(tau, scale=25) + log_tau
    for y, sigma in zip(Y.tolist(), SIGMA.tolist(), strict=True):
        log_p = log_p + stats.norm.logpdf(y, mu, np.sqrt(sigma**2 + tau**2))
    # The trapezoid rule, for a smooth density that vanishes at the ends: all digits with two points a width.
    return math.log(np.exp(log_p).sum() * 0.2 * 0.05)


def conjugate(x):
    """A mean with prior N(0, 2) and N data with standard deviation 1."""
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def conjugate_evidence(x):
    covariance = torch.eye(len(x)) + 4.0
    return dist.MultivariateNormal(torch.zeros(len(x)), covariance).log_prob(x).item()


def hierarchical(x):
    """Latents for each datum around one mean, x_n ~ N(mean, 3)."""
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(mean, math.sqrt(2.0)))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def hierarchical_evidence(x):
    covariance = 3 * torch.eye(len(x)) + 4.0
    return dist.MultivariateNormal(torch.zeros(len(x)), covariance).log_prob(x).item()


def trained(model, make, *args, steps=300):
    pyro.set_rng_seed(0)
    guide = make(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), Trace_ELBO())
    for _ in range(steps):
        svi.step(*args)
    return guide


def assert_near(found, exact, worst_error=0.05):
    assert all(value.shape == () for value in found)
    assert found.std_error.item() < worst_error
    assert abs(found.value.item() - exact) < 5 * found.std_error.item() + 1e-4


@pytest.fixture
def x():
    pyro.set_rng_seed(1)
    return torch.randn(6) + 1.0


def test_eight_schools_agree_with_quadrature():
    exact = eight_schools_by_quadrature()
    assert exact == pytest.approx(-32.42, abs=0.005)
    guide = trained(eight_schools, partial(AutoNormal, init_scale=0.5), Y, SIGMA)
    found = log_evidence(eight_schools, guide, Y, SIGMA, num_particles=40_000)
    assert_near(found, exact)
    assert found.ess.item() > 100


@pytest.mark.parametrize(
    "make", [AutoMultivariateNormal, AutoNormal, AutoDiagonalNormal, AutoLowRankMultivariateNormal]
)
@pytest.mark.parametrize(
    ("model", "evidence"), [(conjugate, conjugate_evidence), (hierarchical, hierarchical_evidence)]
)
@pytest.mark.parametrize("proposal", [None, GuideProposal(), WidenedProposal(df=5.0)], ids=["default", "guide", "wide"])
@pytest.mark.thin(3)
def test_auto_guides_give_the_evidence_of_a_normal_model(x, make, model, evidence, proposal):
    guide = trained(model, make, x)
    found = log_evidence(model, guide, x, num_particles=4000, proposal=proposal)
    heavy = isinstance(proposal, GuideProposal)
    assert_near(found, evidence(x), 0.3 if heavy else 0.05)


def test_the_normal_of_a_laplace_approximation_gives_the_evidence_and_its_point_is_refused(x):
    point = trained(hierarchical, AutoLaplaceApproximation, x)
    with pytest.raises(ValueError, match=r"AutoLaplaceApproximation is a point mass.*laplace_approximation\("):
        log_evidence(hierarchical, point, x, num_particles=10)
    guide = point.laplace_approximation(x)
    found = log_evidence(hierarchical, guide, x, num_particles=1000, proposal=GuideProposal())
    assert_near(found, hierarchical_evidence(x), 0.02)


def test_a_program_per_datum_has_the_sum_of_log_p_as_evidence():
    oracle = LinearGaussian()
    vae, x = oracle.vae(sd_factor=1.0), oracle.data(4)
    exact = oracle.log_marginal(x).sum().item()
    assert_near(log_evidence(vae.model, vae.guide, x, num_particles=2000), exact)
    per_datum = log_marginal(vae.model, vae.guide, x, num_particles=2000)
    assert abs(per_datum.value.sum().item() - exact) < 5 * per_datum.std_error.square().sum().sqrt().item() + 1e-6


def test_a_proposal_may_be_a_program_and_the_data_need_no_argument(x):
    def guide():
        pyro.sample("mean", dist.Normal(x.sum() / (len(x) + 0.25), 0.6))

    model = partial(conjugate, x)
    for proposal in (None, guide, PriorProposal()):
        found = log_evidence(model, guide, num_particles=4000, proposal=proposal)
        assert_near(found, conjugate_evidence(x))


def test_recorded_evidence_equals_eager_evidence(x):
    guide = trained(hierarchical, AutoMultivariateNormal, x, steps=30)
    values = []
    for execution in ("eager", "recorded"):
        pyro.set_rng_seed(3)
        values.append(log_evidence(hierarchical, guide, x, num_particles=1000, execution=execution).value)
    torch.testing.assert_close(*values, rtol=1e-5, atol=1e-5)


def test_latents_outside_the_plate_are_referred_to_log_evidence(x):
    with pytest.raises(ValueError, match=r"site 'mean' of the model lies outside a plate .*log_evidence"):
        log_marginal(conjugate, AutoNormal(conjugate), x, num_particles=10)


@pytest.mark.slow
def test_a_scale_is_refused_and_dims_by_position_run_once_per_draw(x):
    guide = AutoNormal(conjugate)
    with pytest.raises(ValueError, match="carries scale 2"):
        log_evidence(poutine.scale(conjugate, 2.0), guide, x, num_particles=10)

    def by_position(x):
        weights = pyro.sample("weights", dist.Normal(torch.zeros(6), 1.0).to_event(1))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(weights.softmax(0), 1.0), obs=x)

    def centred_by_position(x):  # on several draws at once, it runs and centres over the draws
        weights = pyro.sample("weights", dist.Normal(torch.zeros(6), 1.0).to_event(1))
        loc = (weights - weights.mean(0)).square().sum(-1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def over_draws(x):
        weights = pyro.sample("weights", dist.Normal(torch.zeros(6), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(weights.cumsum(0), 1.0).to_event(1), obs=x)

    def from_the_left(x):
        weights = pyro.sample("weights", dist.Normal(torch.zeros(6), 1.0).to_event(1))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(6), torch.diag(weights.exp())), obs=torch.zeros(6))

    for program in (by_position, centred_by_position, over_draws, from_the_left):
        with pytest.warns(LoopedWarning, match="once per draw"):
            log_evidence(program, AutoNormal(program), x, num_particles=10)

    def with_hidden_noise(x):
        pyro.sample("weights", dist.Normal(torch.zeros(6), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(torch.randn(6), 1.0).to_event(1), obs=torch.zeros(6))

    with pytest.raises(ValueError, match=r"gives site 'y' another log density in a second run at the same latents"):
        log_evidence(with_hidden_noise, AutoNormal(with_hidden_noise), x, num_particles=10)


def test_discrete_sites_that_the_guide_leaves_out_are_summed_out():
    x = torch.tensor([-1.5, 2.0, 1.6, -1.0, 2.4], dtype=torch.float64)

    def mixture(x):
        locs = pyro.sample("locs", dist.Normal(torch.zeros(2, dtype=torch.float64), 2.0).to_event(1))
        with pyro.plate("data", len(x)):
            which = pyro.sample("which", dist.Categorical(torch.tensor([0.3, 0.7], dtype=torch.float64)))
            pyro.sample("x", dist.Normal(locs[..., 0] * (which == 0) + locs[..., 1] * (which == 1), 0.8), obs=x)

    def guide(x):
        pyro.sample("locs", dist.Normal(torch.zeros(2, dtype=torch.float64), 2.0).to_event(1))

    grid = np.linspace(-12, 12, 1201)
    a, b = np.meshgrid(grid, grid, indexing="ij")
    log_p = stats.norm.logpdf(a, 0, 2) + stats.norm.logpdf(b, 0, 2)
    for value in x.tolist():
        log_p += np.log(0.3 * stats.norm.pdf(value, a, 0.8) + 0.7 * stats.norm.pdf(value, b, 0.8))
    exact = math.log(np.exp(log_p).sum() * (grid[1] - grid[0]) ** 2)
    pyro.set_rng_seed(3)
    found = log_evidence(mixture, guide, x, num_particles=20_000)
    assert found.std_error.item() < 0.03
    assert abs(found.value.item() - exact) < 4.5 * found.std_error.item()
