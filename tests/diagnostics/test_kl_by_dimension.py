"""KL divergence by dimension, its entropies, and what it is if dimensions depend on each other."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from latent_programs import linear_programs

from pyrovae.diagnostics import entropies, kl_by_dimension
from pyrovae.distributions import HierarchicalDistribution

A, S = torch.tensor([0.9, -0.3, 0.0]), torch.tensor([0.4, 1.2, 1.0])


def one_site(prior, posterior):
    """Return programs of one latent with these distributions, the second a function of x."""

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", prior)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(x))

    return model, guide


def of_normals(mean, sd):
    """KL(N(mean, sd^2), N(0, 1))."""
    return (mean**2 + sd**2 - 1) / 2 - sd.log()


class TestNormals:
    def test_closed_form_and_sum(self):
        x = torch.randn(50, 3)
        found = kl_by_dimension(*linear_programs(A.diag(), S), x, num_particles=4)
        exact = of_normals(x * A, S)
        torch.testing.assert_close(found.kl, exact.double(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.mean, exact.mean(0).double(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.std_error, exact.std(0).double() / 50**0.5, rtol=1e-4, atol=1e-6)
        assert set(found.quantity) == {"divergence"}
        assert set(found.method) == {"closed form"}
        draws = kl_by_dimension(*linear_programs(A.diag(), S), x, num_particles=4000)
        sd = (draws.total - exact.sum(1)).std()
        assert abs((draws.total - exact.sum(1)).mean()) < 4 * sd / 50**0.5
        assert sd < 0.1

    def test_mean_over_data(self):
        found = kl_by_dimension(*linear_programs(A.diag(), S), torch.randn(4000, 3), num_particles=1)
        exact = of_normals(A, S)  # E x^2 = 1
        assert bool((abs(found.mean - exact) <= 4 * found.std_error + 1e-6).all())

    def test_entropies_in_nats_and_bits(self):
        x = torch.randn(40, 3)
        found = entropies(*linear_programs(A.diag(), S), x, num_particles=2)
        log_2_pi = math.log(2 * math.pi)
        entropy = S.log() + (1 + log_2_pi) / 2
        cross = (log_2_pi + (x * A).square().mean(0) + S**2) / 2
        torch.testing.assert_close(found.entropy, entropy.double(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.cross_entropy, cross.double(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.kl, (cross - entropy).double(), rtol=1e-4, atol=1e-5)
        bits = found.in_bits()
        assert (found.unit, bits.unit, bits.in_bits()) == ("nats", "bits", bits)
        torch.testing.assert_close(bits.cross_entropy, found.cross_entropy / 0.6931471805599453)
        torch.testing.assert_close(bits.kl_error, found.kl_error / 0.6931471805599453)

    def test_entropy_of_a_uniform_code_in_bits(self):
        programs = one_site(
            dist.Uniform(torch.zeros(2), 8.0).to_event(1), lambda x: dist.Uniform(0 * x, 0 * x + 2.0).to_event(1)
        )
        found = entropies(*programs, torch.zeros(3, 2), num_particles=2).in_bits()
        expected = torch.tensor([1.0, 3.0, 2.0]).double()  # log2 of 2, of 8, and of 8 / 2
        for j in range(2):
            numbers = torch.stack([found.entropy[j], found.cross_entropy[j], found.kl[j]])
            torch.testing.assert_close(numbers, expected, rtol=1e-6, atol=0)


class TestDependentDimensions:
    def test_a_full_covariance_gives_marginals(self):
        tril = torch.tensor([[0.8, 0.0], [0.5, 0.6]])
        programs = one_site(
            dist.Normal(torch.zeros(2), 1.0).to_event(1), lambda x: dist.MultivariateNormal(x, scale_tril=tril)
        )
        x = torch.randn(20, 2)
        found = kl_by_dimension(*programs, x, num_particles=2)
        assert set(found.quantity) == {"marginal divergence"}
        exact = of_normals(x, torch.tensor([0.8, 0.61**0.5]))
        torch.testing.assert_close(found.kl, exact.double(), rtol=1e-5, atol=1e-6)

    def test_the_marginals_of_a_mixture_prior_agree_with_a_grid(self):
        loc, scale, share = torch.tensor([[-2.0, 0.0], [1.0, 3.0]]), torch.tensor([[0.5, 1.0], [1.0, 2.0]]), 0.3
        prior = dist.MixtureSameFamily(
            dist.Categorical(torch.tensor([share, 1 - share])), dist.Normal(loc, scale).to_event(1)
        )
        sd = torch.tensor([0.7, 0.3])
        programs = one_site(prior, lambda x: dist.Normal(x, sd).to_event(1))
        x = torch.tensor([[0.5, -1.0]]).expand(500, 2)
        found = kl_by_dimension(*programs, x, num_particles=100)
        assert set(found.method) == {"Monte Carlo"}
        grid = torch.linspace(-12, 12, 20_001)[:, None].double()

        def normal(mean, sd):
            return (-0.5 * ((grid - mean) / sd) ** 2).exp() / (sd * (2 * math.pi) ** 0.5)

        q = normal(x[0], sd)
        p = share * normal(loc[0], scale[0]) + (1 - share) * normal(loc[1], scale[1])
        exact = (q * (q.clamp_min(1e-300) / p).log()).sum(0) * (24 / 20_000)
        assert bool((abs(found.mean - exact) < 4 * found.std_error).all())
        assert bool((found.std_error < 0.01).all())

    def test_densities_of_a_flow_are_unknown(self):
        normal = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        flow = dist.TransformedDistribution(normal, [dist.transforms.Householder(2)])
        found = kl_by_dimension(*one_site(normal, lambda x: flow), torch.zeros(4, 2))
        assert found.quantity == ("unknown", "unknown")
        assert bool(found.kl.isnan().all())

    def test_transforms_of_single_dimensions_are_known(self):
        def log_normal(x):
            return dist.LogNormal(0.5 * x, 0.6).to_event(1)

        x = torch.randn(10, 2)
        found = kl_by_dimension(*one_site(dist.LogNormal(torch.zeros(2), 1.0).to_event(1), log_normal), x)
        torch.testing.assert_close(found.kl, of_normals(0.5 * x, torch.tensor(0.6)).double(), rtol=1e-5, atol=1e-6)


class TestSeveralSites:
    """z2 ~ N(0, 1), z1|z2 ~ N(z2, 1), and guides that draw in both orders."""

    @staticmethod
    def programs(order):
        def model(x):
            with pyro.plate("data", len(x)):
                z2 = pyro.sample("z2", dist.Normal(0.0, 1.0))
                pyro.sample("z1", dist.Normal(z2, 1.0))

        def top_down(x):
            with pyro.plate("data", len(x)):
                z2 = pyro.sample("z2", dist.Normal(x, 0.5))
                pyro.sample("z1", dist.Normal(x + 2 * z2, 0.8))

        def bottom_up(x):
            with pyro.plate("data", len(x)):
                z1 = pyro.sample("z1", dist.Normal(x, 0.8))
                pyro.sample("z2", dist.Normal(z1 / 2, 0.5))

        return model, {"top-down": top_down, "bottom-up": bottom_up}[order]

    def test_terms_of_the_chain_rule_in_the_order_of_the_model(self):
        x = torch.randn(30)
        found = kl_by_dimension(*self.programs("top-down"), x, num_particles=3000)
        assert found.labels == ("z2", "z1")
        assert found.quantity == ("divergence", "term of the chain rule")
        assert found.method == ("closed form", "closed form")
        torch.testing.assert_close(found.kl[:, 0], of_normals(x, torch.tensor(0.5)).double(), rtol=1e-5, atol=1e-6)
        # Given z2, the distance of the means is x + z2 with z2 ~ N(x, 0.25).
        exact = (0.25 + 4 * x**2 + 0.64 - 1) / 2 - math.log(0.8)
        torch.testing.assert_close(found.kl[:, 1], exact.double(), rtol=0.1, atol=0.05)
        torch.testing.assert_close(found.total, found.kl.sum(1), rtol=0.1, atol=0.1)

    def test_terms_in_the_other_order_add_up_to_the_total(self):
        x = torch.randn(30)
        found = kl_by_dimension(*self.programs("bottom-up"), x, num_particles=5)
        assert set(found.quantity) == {"term of the chain rule"}
        assert set(found.method) == {"Monte Carlo"}  # the closed form would be of another quantity
        torch.testing.assert_close(found.kl.sum(1), found.total, rtol=1e-4, atol=1e-4)

    def test_two_blocks_in_one_site_give_terms_of_the_chain_rule(self):
        def blocks(loc, sd, second):
            first = dist.Normal(loc, sd).to_event(1)
            return HierarchicalDistribution(first, lambda a: dist.Normal(second * a, 1.0).to_event(1), 2)

        programs = one_site(blocks(torch.zeros(1), 1.0, 1.0), lambda x: blocks(x.unsqueeze(-1), 0.5, 2.0))
        x = torch.randn(200)
        found = kl_by_dimension(*programs, x, num_particles=200)
        assert set(found.quantity) == {"term of the chain rule"}
        exact = torch.stack([of_normals(x, torch.tensor(0.5)), (x**2 + 0.25) / 2], -1).double()
        error = (found.kl - exact).std(0) / 200**0.5
        assert bool((abs((found.kl - exact).mean(0)) < 4 * error).all())
        assert bool((error < 0.02).all())


def test_a_guide_at_the_prior_has_exactly_no_divergence():
    found = kl_by_dimension(*linear_programs(torch.zeros(2, 3), torch.ones(2)), torch.randn(5, 3))
    assert bool((found.kl == 0).all())


def test_num_particles_must_be_positive():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        kl_by_dimension(*linear_programs(torch.eye(2), torch.ones(2)), torch.randn(5, 2), num_particles=0)
