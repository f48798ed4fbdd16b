"""The default proposal covers funnels: posteriors of a scale and the entries that it scales."""

import math
import runpy
from collections import deque
from functools import partial
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from script_helpers import path_of

from pyrovae import ais, linear_schedule, log_marginal
from pyrovae.evidence import MixtureProposal, NestedLaplaceProposal, PriorProposal
from pyrovae.evidence.latent_space import LatentSpace
from pyrovae.evidence.nested import funnel_coordinate, nested_fit, other_funnels
from pyrovae.evidence.proposals import default_proposal
from pyrovae.evidence.splines import LogLinearDensity, interpolation_weights

edges = SimpleNamespace(**runpy.run_path(str(path_of("coverage").with_name("edge_problems.py"))))


@pytest.fixture(autouse=True)
def seed():
    pyro.set_rng_seed(0)


def space_of(problem):
    return LatentSpace(problem.model, problem.guide, problem.x)


def neals_funnel(size, num_data):
    """v ~ N(0, 3^2), z_j ~ N(0, e^v), x_j ~ N(z_j, 1), with log p(x) on a grid of v."""
    v = 3 * torch.randn(num_data, 1, dtype=torch.float64)
    x = torch.randn(num_data, size, dtype=torch.float64) * (1 + v.exp()).sqrt()

    def model(x):
        v = pyro.sample("v", dist.Normal(torch.zeros((), dtype=torch.float64), 3.0))
        scale = (v / 2).exp().unsqueeze(-1).expand(*v.shape, size)
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, scale).to_event(1)), 1.0).to_event(1), obs=x)

    def guide(x):
        v = (x.square().mean(-1) - 1).clamp(min=0.1)
        pyro.sample("v", dist.Normal(v.log(), 1.0))
        shrink = (v / (1 + v)).unsqueeze(-1)
        pyro.sample("z", dist.Normal(x * shrink, shrink.sqrt()).to_event(1))

    def joint(v):
        each = edges.normal_log_density(x, 0.0, (1 + v.exp()).sqrt()).sum(-1, keepdim=True)
        return edges.normal_log_density(v, 0.0, 3.0) + each

    log_p = edges.by_grid(joint, -40, 40).squeeze(-1)
    return edges.EdgeProblem(edges.program(model), edges.program(guide), x, log_p)


def schools(noise, num_data):
    """mu ~ N(0, 5^2), tau ~ C+(1), theta_j ~ N(mu, tau^2), x_j ~ N(theta_j, s_j^2), log p(x) on a grid of log tau."""
    noise = torch.tensor(noise, dtype=torch.float64)
    tau = dist.HalfCauchy(torch.ones(num_data, 1, dtype=torch.float64)).sample()
    mu = 5 * torch.randn(num_data, 1, dtype=torch.float64)
    x = mu + torch.randn(num_data, len(noise), dtype=torch.float64) * (tau.square() + noise.square()).sqrt()

    def model(x):
        mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=torch.float64), 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(torch.ones((), dtype=torch.float64)))
        loc, scale = torch.broadcast_tensors(mu.unsqueeze(-1), tau.unsqueeze(-1).expand(*tau.shape, len(noise)))
        theta = pyro.sample("theta", dist.Normal(loc, scale).to_event(1))
        pyro.sample("x", dist.Normal(theta, noise).to_event(1), obs=x)

    def guide(x):
        spread, loc = (x.var(-1) - noise.square().mean()).clamp(min=0.1).sqrt(), x.mean(-1)
        pyro.sample("mu", dist.Normal(loc, x.std(-1) / len(noise) ** 0.5))
        pyro.sample("tau", dist.LogNormal(spread.log(), 0.5))
        shrink = spread.square().unsqueeze(-1) / (spread.square().unsqueeze(-1) + noise.square())
        mean = loc.unsqueeze(-1) + (x - loc.unsqueeze(-1)) * shrink
        pyro.sample("theta", dist.Normal(mean, shrink.sqrt() * noise).to_event(1))

    log_tau = torch.linspace(-12, 12, 961, dtype=torch.float64)[:, None]
    covariance = 25.0 + ((2 * log_tau).exp() + noise.square()).diag_embed()  # x given tau is normal
    log_x = dist.MultivariateNormal(torch.zeros_like(noise), covariance.unsqueeze(1)).log_prob(x)
    log_joint = math.log(2 / math.pi) - torch.log1p((2 * log_tau).exp()) + log_tau + log_x
    log_p = log_joint.logsumexp(0) + math.log(24 / 960)
    return edges.EdgeProblem(edges.program(model), edges.program(guide), x, log_p)


def test_cubic_interpolation_reproduces_parabolas_and_stays_constant_beyond_the_grid():
    grid = torch.tensor([[-2.0, 0.0], [-1.5, 1.0], [0.5, 1.5], [1.0, 4.0]], dtype=torch.float64)
    a = torch.tensor([[-1.8, 0.3], [-0.2, 3.0], [0.9, 1.2], [5.0, -1.0]], dtype=torch.float64)
    found = torch.einsum("kns,sn->kn", interpolation_weights(grid, a), 3 * grid.square() - grid + 2)
    inside = a.maximum(grid[0]).minimum(grid[-1])
    torch.testing.assert_close(found, 3 * inside.square() - inside + 2)


def test_a_log_linear_density_integrates_to_one_and_is_that_of_its_draws():
    grid = torch.randn(6, 3, dtype=torch.float64).sort(0).values
    q = LogLinearDensity(grid, 3 * torch.randn(6, 3, dtype=torch.float64), 4.0)
    a = torch.linspace(-60, 60, 600_001, dtype=torch.float64)
    density = q.log_density(a.unsqueeze(-1).expand(-1, 3)).exp() * 120 / 600_000
    torch.testing.assert_close(density.sum(0), torch.ones(3, dtype=torch.float64), rtol=1e-3, atol=0)
    drawn = q.draw(20_000)
    for n in range(3):
        below = torch.searchsorted(drawn[:, n].sort().values, a) / 20_000
        assert (below - density[:, n].cumsum(0)).abs().max() < 2.0 / 20_000**0.5  # Kolmogorov-Smirnov, p = 7e-4


@pytest.mark.slow
def test_no_more_latents_are_decoded_at_once_than_a_chunk():
    problem, decoded = edges.scales(3, 20), deque()  # no list, which would be part of the program's state

    def model(x):
        with pyro.poutine.trace() as tracer:
            problem.model(x)
        decoded.append(tracer.trace.nodes["tau"]["value"].numel())

    call = partial(log_marginal, model, problem.guide, problem.x, num_particles=50, chunk_size=40)
    call()  # the check of the programs has a size of its own
    decoded.clear()
    call()
    assert max(size for size in decoded if size != 200 * 4) == 40  # 200 draws for 4 data show mass at the edge


def test_slices_of_a_funnel_are_the_exact_conditional_posteriors():
    problem = edges.scales(5, 20)
    fit = nested_fit(space_of(problem), 0)
    variance = 1 / (1 + (-2 * fit.grid).exp())
    torch.testing.assert_close(fit.loc, problem.x * variance.unsqueeze(-1), rtol=1e-3, atol=1e-3)
    exact = (variance.rsqrt().unsqueeze(-1).expand_as(fit.loc)).diag_embed()
    torch.testing.assert_close(fit.inverse, exact, rtol=1e-3, atol=1e-3)
    tau = fit.grid.exp().unsqueeze(-1)
    log_p = edges.normal_log_density(problem.x, 0.0, (1 + tau.square()).sqrt()).sum(-1)
    log_p = log_p - torch.log1p(tau.square()).squeeze(-1) + fit.grid
    torch.testing.assert_close(fit.log_density, log_p - log_p.amax(0), rtol=1e-3, atol=1e-3)
    ends = fit.log_density[[0, -1]]
    assert (ends < -4).all()
    assert ((fit.log_density > -4).sum(0) >= 5).all()


def test_the_funnel_coordinate_is_the_scale_among_all_latents():
    assert funnel_coordinate(space_of(edges.scales(8, 10))) == 0
    assert funnel_coordinate(space_of(schools([1.0] * 8, 10))) == 1
    assert funnel_coordinate(space_of(neals_funnel(8, 10))) == 0


def scale_beside_others(noise, num_others):
    """Make a log scale t ~ N(0, 1.5^2), five z_j ~ N(0, e^(2t)), other latents, and data with a noise of their own."""
    noise = torch.tensor(noise, dtype=torch.float64)[:, None]
    t = 1.5 * torch.randn(len(noise), 1, dtype=torch.float64)
    x = torch.randn(len(noise), 5, dtype=torch.float64) * ((2 * t).exp() + noise.square()).sqrt()
    y = 2**0.5 * torch.randn(len(noise), num_others, dtype=torch.float64)

    def model(x, noise, y):
        with pyro.plate("data", len(x)):
            t = pyro.sample("t", dist.Normal(torch.zeros((), dtype=x.dtype), 1.5))
            z = pyro.sample("z", dist.Normal(0.0, t.exp().unsqueeze(-1).expand(*t.shape, 5)).to_event(1))
            pyro.sample("x", dist.Normal(z, noise).to_event(1), obs=x)
            others = pyro.sample("others", dist.Normal(torch.zeros_like(y), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(others, 1.0).to_event(1), obs=y)

    def guide(x, noise, y):
        with pyro.plate("data", len(x)):
            variance = (x.square().mean(-1, True) - noise.square()).maximum(0.1 * noise.square())
            pyro.sample("t", dist.Normal(variance.squeeze(-1).log() / 2, 0.6))
            shrink = variance / (variance + noise.square())
            pyro.sample("z", dist.Normal(x * shrink, (shrink.sqrt() * noise).expand_as(x)).to_event(1))
            pyro.sample("others", dist.Normal(y / 2, 0.5**0.5).to_event(1))

    grid = torch.linspace(-15, 15, 3001, dtype=torch.float64)[:, None, None]
    each = edges.normal_log_density(x, 0.0, ((2 * grid).exp() + noise.square()).sqrt()).sum(-1)
    log_p = (each + edges.normal_log_density(grid[:, 0], 0.0, 1.5)).logsumexp(0) + math.log(0.01)
    return model, guide, (x, noise, y), log_p + edges.normal_log_density(y, 0.0, 2**0.5).sum(-1)


def test_a_scale_beside_many_latents_makes_a_funnel():
    model, guide, data, log_p = scale_beside_others([0.5] * 200, 40)
    found = log_marginal(model, guide, *data, num_particles=1000)
    assert funnel_coordinate(LatentSpace(model, guide, *data)) == 0
    assert (found.value - log_p).mean().abs() < 0.02  # -0.1 by normals at the modes
    assert ((found.value - log_p).abs() < 1.96 * found.std_error).double().mean() > 0.9


@pytest.mark.parametrize("last", [False, True])
def test_the_funnel_of_any_datum_counts(last):
    # All but one of 120 data determine the entries, so that the scale makes no funnel of theirs.
    noise = [0.02] * 119 + [1.0]
    model, guide, data, _ = scale_beside_others(noise[::-1] if last else noise, 1)
    assert funnel_coordinate(LatentSpace(model, guide, *data)) == 0
    precise = [part[1:] if last else part[:-1] for part in data]
    assert funnel_coordinate(LatentSpace(model, guide, *precise)) is None


def test_ais_warns_that_a_normal_start_does_not_cover_a_funnel(recwarn):
    funnel = edges.scales(8, 10)

    def anneal(problem, **given):
        settings = {"num_particles": 4, "betas": linear_schedule(4), "num_leapfrog": 2, "num_tuning": 8}
        pyro.set_rng_seed(0)
        return ais(problem.model, problem.x, **settings, **given).value

    def start(space):
        return space.pack(space.from_prior(64)).mean(0), torch.eye(space.size, dtype=torch.float64).expand(10, -1, -1)

    with pytest.warns(UserWarning, match="narrows along 'tau' like a funnel.*std_error does not show it") as told:
        anneal(funnel, start=start)
    assert told[0].filename == __file__
    recwarn.clear()
    anneal(funnel)
    anneal(funnel, guide=funnel.guide)
    anneal(edges.linear(2, 10), start=start)
    assert not recwarn.list


def test_a_model_with_one_latent_site_has_no_funnel_coordinate():
    space = space_of(edges.squares(3, 10))
    assert funnel_coordinate(space) is None
    assert "prior scale" not in space.memo  # no draws, no gradients
    assert len(default_proposal(space).components) == 4
    with pytest.raises(ValueError, match="needs a latent site with one coordinate"):
        NestedLaplaceProposal().adapt(space)


def test_a_scalar_site_that_scales_nothing_has_no_funnel():
    def program(x, obs):
        with pyro.plate("data", len(x)):
            loc = pyro.sample("loc", dist.Normal(torch.zeros(()), 1.0))
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            if obs:
                pyro.sample("x", dist.Normal(z + loc.unsqueeze(-1), 0.5).to_event(1), obs=x)

    space = LatentSpace(lambda x: program(x, True), lambda x: program(x, False), torch.randn(5, 3))
    assert funnel_coordinate(space) is None


def two_scales(x):
    """Two half-Cauchy scales of six entries each, and a guide."""

    def program(x, obs):
        one, two = (
            pyro.sample(name, dist.HalfCauchy(torch.ones((), dtype=torch.float64))).unsqueeze(-1)
            for name in ("one", "two")
        )
        scale = torch.cat([one.expand(*one.shape[:-1], 6), two.expand(*two.shape[:-1], 6)], -1)
        theta = pyro.sample("theta", dist.Normal(0.0, scale).to_event(1))
        if obs:
            pyro.sample("x", dist.Normal(theta, 1.0).to_event(1), obs=x)

    model, guide = (edges.program(lambda x, obs=obs: program(x, obs)) for obs in (True, False))
    return LatentSpace(model, guide, x)


def test_data_with_a_second_funnel_are_flagged():
    x = torch.randn(10, 12, dtype=torch.float64)
    x[:5] *= 50  # far from the neck of either funnel
    space = two_scales(x)
    held = funnel_coordinate(space)
    assert held in (0, 1)
    found = other_funnels(space, nested_fit(space, held), held)
    assert not bool(found[:5].any())
    assert bool(found[5:].all())
    assert NestedLaplaceProposal().adapt(space).unsettled[5:].all()
    space = space_of(schools([1.0] * 8, 10))
    assert not bool(other_funnels(space, nested_fit(space, 1), 1).any())


def test_a_second_coordinate_that_is_skewed_by_itself_makes_no_funnel():
    x = torch.cat([5 * torch.randn(6, 8, dtype=torch.float64), torch.zeros(6, 1, dtype=torch.float64)], -1)

    def program(x, obs):
        tau = pyro.sample("tau", dist.HalfCauchy(torch.ones((), dtype=torch.float64)))
        rate = pyro.sample("rate", dist.Normal(torch.zeros((), dtype=torch.float64), 10.0))
        theta = pyro.sample("theta", dist.Normal(0.0, tau.unsqueeze(-1).expand(*tau.shape, 8)).to_event(1))
        if obs:
            pyro.sample("x", dist.Normal(theta, 1.0).to_event(1), obs=x[:, :8])
            pyro.sample("count", dist.Poisson(rate.exp()), obs=x[:, 8])

    space = LatentSpace(*(edges.program(lambda x, obs=obs: program(x, obs)) for obs in (True, False)), x)
    assert funnel_coordinate(space) == 0
    assert not bool(other_funnels(space, nested_fit(space, 0), 0).any())


def test_the_points_of_a_grid_are_dense_where_the_density_is_high_also_if_it_is_the_prior():
    problem = neals_funnel(2, 5)
    far = edges.EdgeProblem(problem.model, problem.guide, torch.zeros_like(problem.x), problem.log_p)
    fit = nested_fit(space_of(far), 0)
    step = fit.grid.diff(dim=0)
    assert (step.amin(0) < 0.8 * step.amax(0)).all()


@pytest.mark.parametrize("df", [None, 5.0])
@pytest.mark.parametrize("held", [0, 1])
def test_the_nested_density_integrates_to_one_and_is_that_of_its_draws(df, held):
    problem = edges.scales(2, 4) if held == 0 else schools([1.0, 2.0], 4)
    space = space_of(problem)
    component = NestedLaplaceProposal(df=df).adapt(space)
    assert component.held == held
    points = component.draw(10_000)
    assert component.log_density(points).isfinite().all()
    log_q = component.log_density(points) + points.log_det
    middle = points.u.quantile(0.5, 0)
    target = dist.Normal(middle, points.u.std(0) / 6).to_event(1)  # inside the density, hence of bounded ratio
    ratio = (target.log_prob(points.u) - log_q).exp()
    error = ratio.std(0) / len(ratio) ** 0.5
    assert (error < 0.25).all()
    assert ((ratio.mean(0) - 1).abs() < 4.5 * error).all()


def check_covered(found, exact, most):
    trusted = found.khat <= 0.7
    assert trusted.double().mean() > 0.7
    assert (found.std_error[trusted] < most).all()
    assert ((found.value - exact)[trusted].abs() < 4.5 * found.std_error[trusted]).all()


def test_the_default_proposal_covers_a_funnel():
    problem = edges.scales(8, 10)
    found = log_marginal(problem.model, problem.guide, problem.x, num_particles=400)
    check_covered(found, problem.log_p, most=0.06)  # 0.15 on average without slices


def test_a_funnel_in_single_precision_agrees_with_double():
    problem = edges.scales(8, 10)

    def model(x):
        tau = pyro.sample("tau", dist.HalfCauchy(torch.ones(())))
        theta = pyro.sample("theta", dist.Normal(0.0, tau.unsqueeze(-1).expand(*tau.shape, 8)).to_event(1))
        pyro.sample("x", dist.Normal(theta, 1.0).to_event(1), obs=x)

    proposal = MixtureProposal((NestedLaplaceProposal(), PriorProposal()), (0.8, 0.2))
    x = problem.x.float()
    found = log_marginal(edges.program(model), problem.guide, x, num_particles=400, proposal=proposal)
    check_covered(found, problem.log_p, most=0.06)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda n: edges.scales(30, n),
        lambda n: neals_funnel(9, n),
        lambda n: schools([1.5, 1.0, 1.6, 1.1, 0.9, 1.1, 1.0, 1.8], n),
    ],
)
def test_error_bars_cover_funnels(make):
    problem = make(400)
    found = log_marginal(problem.model, problem.guide, problem.x, num_particles=1000, chunk_size=2**17)
    trusted = found.khat <= 0.7
    assert trusted.double().mean() > 0.85
    covered = (found.value - problem.log_p).abs() <= 1.96 * found.std_error
    assert covered[trusted].double().mean() >= 0.91  # 3.7 standard errors below 0.95
