"""Exact log p(x): quadrature, enumeration and closed forms against each other."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from goodness import within
from oracles import LinearGaussian
from scipy import integrate, stats
from torch import nn

from pyrovae import (
    MLP,
    VAE,
    BernoulliLikelihood,
    CategoricalEncoder,
    CategoricalPrior,
    DirichletPrior,
    NormalEncoder,
    PoissonLikelihood,
    StudentTPrior,
    exact_log_marginal,
    linear_gaussian_log_marginal,
    log_joint,
    log_marginal,
)

F64 = torch.float64


@pytest.mark.parametrize("latent_dim", [1, 2, 3])
def test_quadrature_and_closed_form_agree(latent_dim):
    oracle = LinearGaussian(4, latent_dim)
    x = oracle.data(5)
    closed = linear_gaussian_log_marginal(x, oracle.weight, oracle.bias, oracle.scale)
    torch.testing.assert_close(closed, oracle.log_marginal(x))
    made = exact_log_marginal(oracle.vae().model, x)
    torch.testing.assert_close(made.value, closed, rtol=0, atol=1e-5)
    assert (made.error < 1e-3).all()
    assert ((made.value - closed).abs() <= made.error + 1e-9).all()
    chunked = exact_log_marginal(oracle.vae().model, x, chunk_size=1000 if latent_dim < 3 else 40_000)
    torch.testing.assert_close(made.value, chunked.value, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("latent_dim", "scale"), [(1, 1e-4), (2, 0.01), (3, 0.01), (3, 3.0)])
def test_quadrature_finds_the_moments_of_a_narrow_posterior(latent_dim, scale):
    oracle = LinearGaussian(6, latent_dim, scale=scale)
    x = oracle.data(4)
    made = exact_log_marginal(oracle.vae().model, x)
    assert (made.error < 1e-3).all()
    torch.testing.assert_close(made.value, oracle.log_marginal(x), rtol=0, atol=1e-5)
    covariance = torch.linalg.inv(torch.eye(latent_dim, dtype=F64) + oracle.weight.T @ oracle.weight / scale**2)
    torch.testing.assert_close(made.covariance, covariance.expand(4, -1, -1), rtol=1e-3, atol=1e-3 * scale**2)
    loc = (x - oracle.bias) @ oracle.weight @ covariance / scale**2
    torch.testing.assert_close(made.loc, loc, rtol=0, atol=1e-3 * scale)


def test_no_wrong_value_is_given_if_points_are_too_few():
    def model(x):  # as many modes as x = cos 8z has solutions, each a hundredth of the prior
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1))
            pyro.sample("x", dist.Normal((8 * z).cos(), 0.05).to_event(1), obs=x)

    x = torch.tensor([[0.5, -0.3], [0.0, 0.9], [-0.7, 0.2]], dtype=F64)
    grid = torch.linspace(-10, 10, 200_001, dtype=F64)[:, None]
    terms = dist.Normal(0.0, 1.0).log_prob(grid) + dist.Normal((8 * grid).cos(), 0.05).log_prob(x.flatten())
    exact = (terms.logsumexp(0) + math.log(1e-4)).reshape(x.shape).sum(-1)  # steps of 1e-4
    for points in (20, 40):
        rough = exact_log_marginal(model, x, num_points=points)
        refused = torch.tensor([bool(reason) for reason in rough.reason])
        assert torch.equal(rough.value.isnan(), refused)
        assert ((rough.value - exact).abs() <= rough.error)[~refused].all()
        if points == 20:
            assert refused.any()
            assert "the error is larger than 0.1 nats; increase num_points" in rough.reason


def test_data_of_density_zero_get_minus_infinity_and_change_no_others():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1, dtype=F64), 1.0).to_event(1))
            scale = torch.where(x.abs() > 1e9, 1e-300, 1.0)
            pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=x)

    made = exact_log_marginal(model, torch.tensor([[0.5], [1e10]], dtype=F64))
    assert abs(made.value[0].item() - dist.Normal(0.0, 2**0.5).log_prob(torch.tensor(0.5)).item()) < 1e-6
    assert made.value[1] == -torch.inf
    assert made.error[1] == torch.inf
    assert made.reason == ("", "every point has density 0")


def test_the_closed_form_takes_a_scale_per_dimension():
    x, weight, bias = torch.randn(3, 4, dtype=F64), torch.randn(4, 2, dtype=F64), torch.randn(4, dtype=F64)
    scale = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=F64)
    whole = dist.LowRankMultivariateNormal(bias, weight, scale**2).log_prob(x)
    torch.testing.assert_close(linear_gaussian_log_marginal(x, weight, bias, scale), whole)
    with pytest.raises(ValueError, match=r"expected x \(N, D\)"):
        linear_gaussian_log_marginal(x[:, :3], weight, bias, scale)
    with pytest.raises(ValueError, match="positive"):
        linear_gaussian_log_marginal(x, weight, bias, -1.0)


def test_heavy_tails_and_estimates_agree_with_quadrature():
    vae = VAE(StudentTPrior(1), PoissonLikelihood(MLP(1, 3, hidden=[4])), NormalEncoder(MLP(3, 2))).double()
    x = torch.poisson(torch.full((10, 3), 2.0, dtype=F64))
    made = exact_log_marginal(vae.model, x)
    assert (made.error < 1e-6).all()
    assert within(log_marginal(vae.model, vae.guide, x, num_particles=4000), made.value)


def test_exact_log_marginal_includes_the_jacobian_of_a_simplex():
    # x|z ~ Bernoulli(z_0), z ~ Dirichlet(a, b): p(x = 1) = a / (a + b).
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Dirichlet(torch.tensor([2.0, 3.0], dtype=F64)))
            pyro.sample("x", dist.Bernoulli(z[..., :1]).to_event(1), obs=x)

    made = exact_log_marginal(model, torch.tensor([[1.0], [0.0]], dtype=F64))
    torch.testing.assert_close(made.value.exp(), torch.tensor([0.4, 0.6], dtype=F64), rtol=1e-6, atol=0)


def test_enumeration_sums_over_several_sites_and_one_hot_vectors():
    p = torch.tensor([0.2, 0.3, 0.5], dtype=F64)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Categorical(p))
            s = pyro.sample("s", dist.Bernoulli(torch.tensor([0.1, 0.9, 0.4], dtype=F64)[y]))
            pyro.sample("x", dist.Normal((y + 2 * s).unsqueeze(-1), 1.0).to_event(1), obs=x)

    x = torch.tensor([[0.3], [2.0]], dtype=F64)
    switch = torch.tensor([0.1, 0.9, 0.4], dtype=F64)
    exact = sum(
        p[y] * (switch[y] if s else 1 - switch[y]) * dist.Normal(y + 2.0 * s, 1.0).log_prob(x[:, 0]).exp()
        for y in range(3)
        for s in range(2)
    )
    for chunk_size in (8192, 3):
        made = exact_log_marginal(model, x, chunk_size=chunk_size)
        torch.testing.assert_close(made.value, exact.log())
        assert (made.error == 0).all()

    vae = VAE(CategoricalPrior(3), BernoulliLikelihood(MLP(3, 4)), CategoricalEncoder(MLP(4, 3))).double()
    x = torch.bernoulli(torch.full((6, 4), 0.5, dtype=F64))
    latents = torch.eye(3, dtype=F64).unsqueeze(1).expand(3, 6, 3)
    with torch.no_grad():
        torch.testing.assert_close(
            exact_log_marginal(vae.model, x).value, log_joint(vae.model, {"z": latents}, x).logsumexp(0)
        )


def test_exact_log_marginal_refuses_models_that_are_too_large_or_infinite():
    def vae_of(size):
        return VAE(DirichletPrior(size), PoissonLikelihood(nn.Linear(size, 3)), NormalEncoder(MLP(3, 2 * (size - 1))))

    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match="one to three latent coordinates, got 4"):
        exact_log_marginal(vae_of(5).model, x)
    with pytest.raises(ValueError, match="num_points must be at least 4, got 3"):
        exact_log_marginal(vae_of(2).model, x, num_points=3)

    def counts(x):
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Poisson(0.5))
            z = pyro.sample("z", dist.Normal(y, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match=r"latent 'y' \(Poisson\) is discrete, so that it can neither be"):
        exact_log_marginal(counts, x[:, :1])

    def many(x):
        with pyro.plate("data", len(x), dim=-1):
            z = [pyro.sample(f"z{i}", dist.Categorical(torch.ones(10))) for i in range(7)]
            pyro.sample("x", dist.Normal(sum(z).unsqueeze(-1) / math.pi, 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match="10,000,000 combinations of the sites to sum out"):
        exact_log_marginal(many, x[:, :1])


def test_discrete_latents_beside_continuous_ones_agree_with_nested_quadrature():
    rates = torch.tensor([0.5, 3.0], dtype=F64)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Gamma(torch.tensor(2.0, dtype=F64), 1.0))
            y = pyro.sample("y", dist.Bernoulli(z / (1 + z)))
            s = pyro.sample("s", dist.Categorical(torch.tensor([0.3, 0.7], dtype=F64)))
            with pyro.plate("entries", x.shape[1], dim=-2):
                pyro.sample("x", dist.Poisson(z * rates[s] + y), obs=x.T)

    x = torch.tensor([[0.0, 2.0], [5.0, 1.0], [3.0, 3.0]], dtype=F64)

    def density(z, row):
        total = 0.0
        for y in range(2):
            for s in range(2):
                share = (z if y else 1) / (1 + z) * (0.7 if s else 0.3)
                total += share * stats.poisson.pmf(row, z * rates[s].item() + y).prod()
        return total * stats.gamma.pdf(z, 2)

    expected = [math.log(integrate.quad(density, 0, 60, args=(row,), limit=200)[0]) for row in x.numpy()]
    made = exact_log_marginal(model, x)
    torch.testing.assert_close(made.value, torch.tensor(expected, dtype=F64), rtol=0, atol=1e-6)


def test_many_combinations_are_summed_site_by_site():
    # Twenty switches, each with its own observation, have 2^20 combinations, but are independent.
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            for i in range(20):
                s = pyro.sample(f"s{i}", dist.Bernoulli(torch.tensor(0.3, dtype=F64)))
                pyro.sample(f"x{i}", dist.Normal(s * i, 1.0), obs=x[:, i])

    x = torch.linspace(-2, 5, 60, dtype=F64).reshape(3, 20)
    terms = [math.log(0.7) + dist.Normal(0.0, 1.0).log_prob(x)]
    terms.append(math.log(0.3) + dist.Normal(torch.arange(20.0, dtype=F64), 1.0).log_prob(x))
    expected = torch.stack(terms).logsumexp(0).sum(1)
    for chunk_size in (8192, 4):
        made = exact_log_marginal(model, x, chunk_size=chunk_size)
        torch.testing.assert_close(made.value, expected)
