"""Latents whose domain is not what their support says: angles, bounds by datum or by latent, images, point masses.

References are integrals by SciPy.
"""

import math
import warnings
from functools import cache
from typing import ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats
from scipy.special import expit
from torch.distributions import transforms

from pyrovae import (
    GuideProposal,
    LaplaceProposal,
    PriorProposal,
    WidenedProposal,
    ais,
    evidence_lower_bound,
    exact_log_marginal,
    linear_schedule,
    log_marginal,
    refine,
)
from pyrovae.evidence.evaluation import base_measure

X = torch.tensor([[0.7], [0.2], [1.6]], dtype=torch.float64)
SD = 0.5


def normal(x, mean):
    return stats.norm.pdf(x, mean, SD)


def von_mises(x, loc, concentration):
    return stats.vonmises.pdf(x, concentration, loc=loc)


def integral(function, low, high, **kwargs):
    return math.log(integrate.quad(function, low, high, limit=500, **kwargs)[0])


def double_integral(function, low, high, lower, upper):
    return math.log(integrate.dblquad(function, low, high, lower, upper, epsabs=1e-9, epsrel=1e-9)[0])


class Case:
    """A prior of latents, a guide with the same sites, the mean of x, and log p(x_n) by quadrature."""

    def __init__(self, prior, guide, mean, reference, x=X, dim=-1):
        self.prior, self.given, self.mean, self.x, self.dim = prior, guide, mean, x, dim
        self.reference = torch.tensor([reference(float(a)) for a in x[:, 0]], dtype=torch.float64)

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", self.likelihood(self.mean(self.prior(x))), obs=x[:, 0])

    def likelihood(self, mean):
        return dist.Normal(mean, SD)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            self.given(x)


class AngleCase(Case):
    def likelihood(self, mean):
        return dist.VonMises(mean, 30.0)


def one(make):
    return lambda x: pyro.sample("z", make(x))


def uniform_by_datum(x):
    return dist.Uniform(x[:, 0] - 1, x[:, 0] + 2)


def below(rate):
    def sample(x):
        top = pyro.sample("top", dist.Gamma(x.new_tensor(2.0), x.new_tensor(rate)))
        return pyro.sample("z", dist.Uniform(torch.zeros_like(top), top))

    return sample


def below_in_entries(rate):
    """As `below`, in a program that names a dim by its position."""

    def sample(x):
        top = pyro.sample("top", dist.Gamma(x.new_tensor([2.0]), x.new_tensor([rate])).to_event(1))
        return pyro.sample("z", dist.Uniform(torch.zeros_like(top), top).to_event(1)).sum(1)

    return sample


def scaled_sigmoid(sd):
    parts = [transforms.SigmoidTransform()]
    return one(
        lambda x: dist.TransformedDistribution(
            dist.Normal(torch.zeros_like(x[:, 0]), sd), [*parts, transforms.AffineTransform(x[:, 0] - 1, 3.0)]
        )
    )


def reflected(sd):
    return one(
        lambda x: dist.TransformedDistribution(
            dist.LogNormal(torch.zeros_like(x[:, 0]), sd), [transforms.AffineTransform(1.0, -1.0)]
        )
    )


def exponential_of_beta(a):
    return one(
        lambda x: dist.TransformedDistribution(
            dist.Beta(torch.full_like(x, a), 1.0).to_event(1), [transforms.ExpTransform()]
        )
    )


def torus(concentration):
    def make(x):
        zero = torch.zeros(len(x), dtype=x.dtype)
        return dist.SineBivariateVonMises(zero, zero, zero + concentration, zero + concentration, zero)

    return one(make)


def below_gamma(a):
    """Log p(x) of z ~ U(0, top), top ~ Gamma(2, 1), where z is integrated out in closed form."""

    def density(top):
        return stats.gamma.pdf(top, 2) / top * (stats.norm.cdf(a / SD) - stats.norm.cdf((a - top) / SD))

    return integral(density, 0, 40)


def two_angles(a):
    """Log of the integral over the torus by the trapezoid rule, which converges exponentially there."""
    axis = np.linspace(-math.pi, math.pi, 400, endpoint=False)
    u, v = np.meshgrid(axis, axis)
    return math.log(np.mean(von_mises(u, 0, 2) * von_mises(v, 0, 2) * von_mises(a, u + v, 30)) * (2 * math.pi) ** 2)


ANGLES = torch.tensor([[3.0], [-3.1], [0.3]], dtype=torch.float64)

CASES = {
    "angle": lambda: AngleCase(
        one(lambda x: dist.VonMises(x.new_tensor(2.5), 2.0)),
        one(lambda x: dist.VonMises(0.9 * x[:, 0], 10.0)),
        lambda z: z,
        lambda a: integral(lambda z: von_mises(z, 2.5, 2) * von_mises(a, z, 30), a - math.pi, a + math.pi, points=[a]),
        ANGLES,
    ),
    "mixture of angles": lambda: AngleCase(
        one(
            lambda x: dist.MixtureSameFamily(
                dist.Categorical(x.new_ones(2)), dist.VonMises(x.new_tensor([2.5, 0.0]), x.new_tensor([2.0, 2.0]))
            )
        ),
        one(lambda x: dist.VonMises(0.9 * x[:, 0], 10.0)),
        lambda z: z,
        lambda a: integral(
            lambda z: (von_mises(z, 2.5, 2) + von_mises(z, 0, 2)) / 2 * von_mises(a, z, 30),
            a - math.pi,
            a + math.pi,
            points=[a],
        ),
        ANGLES,
    ),
    "two angles": lambda: AngleCase(
        torus(2.0),
        torus(1.5),
        lambda z: z.sum(-1),
        two_angles,
        ANGLES,
    ),
    "bounds by datum": lambda: Case(
        one(uniform_by_datum),
        one(uniform_by_datum),
        lambda z: z**2,
        lambda a: integral(lambda z: normal(a, z * z) / 3, a - 1, a + 2),
    ),
    "bounds by latent": lambda: Case(
        below(1.0),
        below(0.7),
        lambda z: z,
        below_gamma,
    ),
    "bounds by latent, rows repeated": lambda: Case(
        below_in_entries(1.0),
        below_in_entries(0.7),
        lambda z: z,
        below_gamma,
    ),
    "bounds by entry": lambda: Case(
        one(lambda x: dist.Uniform(x.new_tensor([-1.0, 0.0]), x.new_tensor([1.0, 3.0])).to_event(1)),
        one(lambda x: dist.Uniform(x.new_tensor([-1.0, 0.0]), x.new_tensor([1.0, 3.0])).to_event(1)),
        lambda z: z.sum(-1),
        lambda a: double_integral(lambda u, v: normal(a, u + v) / 6, -1, 1, 0, 3),
    ),
    "sigmoid, scaled and shifted by datum": lambda: Case(
        scaled_sigmoid(1.0),
        scaled_sigmoid(0.7),
        lambda z: z**2,
        lambda a: integral(lambda u: stats.norm.pdf(u) * normal(a, (a - 1 + 3 * expit(u)) ** 2), -12, 12),
    ),
    "reflected log-normal": lambda: Case(
        reflected(1.0),
        reflected(1.2),
        lambda z: z,
        lambda a: integral(lambda u: stats.norm.pdf(u) * normal(a, 1 - math.exp(u)), -12, 12),
    ),
    "exponential of a beta": lambda: Case(
        exponential_of_beta(2.0),
        exponential_of_beta(1.0),
        lambda z: z[..., 0],
        lambda a: integral(lambda u: 2 * u * normal(a, math.exp(u)), 0, 1),
    ),
}


@cache
def made(name):
    return CASES[name]()


@pytest.fixture(params=CASES)
def case(request):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the programs use dimensions by their position")
        yield made(request.param)


def assert_near(found, reference, largest_error=0.2):
    scores = (found.value - reference) / found.std_error
    assert bool((scores.abs() < 4.5).all()), scores
    assert bool((found.std_error < largest_error).all())


@pytest.mark.thin(8)
def test_quadrature_agrees_on_domains_that_differ_from_supports(case):
    found = exact_log_marginal(case.model, case.x)
    torch.testing.assert_close(found.value, case.reference, rtol=0, atol=1e-4)


@pytest.mark.parametrize("proposal", [None, WidenedProposal(scale=1.5, df=5.0)])
@pytest.mark.thin(8)
def test_proposals_agree_with_quadrature_on_domains_that_differ_from_supports(case, proposal):
    pyro.set_rng_seed(3)
    found = log_marginal(case.model, case.guide, case.x, num_particles=1000, proposal=proposal)
    assert_near(found, case.reference)


@pytest.mark.thin(1)
def test_ais_agrees_with_quadrature_on_domains_that_differ_from_supports(case):
    pyro.set_rng_seed(4)
    settings = {"num_particles": 200, "betas": linear_schedule(40), "num_leapfrog": 3, "num_tuning": 10}
    assert_near(ais(case.model, case.x, **settings), case.reference, largest_error=0.5)


@pytest.mark.slow
def test_refined_posteriors_stay_below_the_evidence():
    pyro.set_rng_seed(5)
    for name in ("angle", "bounds by latent"):
        case = made(name)
        found = refine(case.model, case.guide, case.x, log_p=case.reference, steps=50, num_particles=300)
        assert bool((found.elbo < case.reference + 4 * found.elbo_error).all())


def test_a_normal_guide_of_an_angle_is_refused():
    case = CASES["angle"]()
    case.given = one(lambda x: dist.Normal(x[:, 0], 0.3))
    for estimate in (
        lambda: log_marginal(case.model, case.guide, case.x, num_particles=5),
        lambda: log_marginal(case.model, case.guide, case.x, num_particles=5, proposal=GuideProposal()),
        lambda: evidence_lower_bound(case.model, case.guide, case.x, num_particles=5),
        lambda: ais(case.model, case.x, guide=case.guide, num_particles=5, betas=linear_schedule(5)),
    ):
        with pytest.raises(ValueError, match=r"is an angle from -pi to pi.*Normal has no such period; use a circular"):
            estimate()


def test_a_uniform_guide_of_an_angle_must_lie_in_the_period():
    case = CASES["angle"]()
    case.given = one(lambda x: dist.Uniform(x.new_tensor(-math.pi), math.pi))
    pyro.set_rng_seed(6)
    found = log_marginal(case.model, case.guide, case.x, num_particles=4000, proposal=GuideProposal())
    assert_near(found, case.reference)
    case.given = one(lambda x: dist.Uniform(x.new_tensor(0.0), 2 * math.pi))
    with pytest.raises(ValueError, match="has no such period"):
        log_marginal(case.model, case.guide, case.x, num_particles=5)


class TestPointMasses:
    case = staticmethod(CASES["bounds by datum"])

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Delta(0.5 * x[:, 0]))

    @pytest.mark.parametrize("proposal", [None, GuideProposal(), PriorProposal()])
    def test_a_point_mass_in_the_guide_is_refused(self, proposal):
        case = self.case()
        with pytest.raises(ValueError, match=r"'z' of the guide needs a density, but is a point mass.*a Normal"):
            log_marginal(case.model, self.guide, case.x, num_particles=5, proposal=proposal)
        with pytest.raises(ValueError, match="'z' of the guide needs a density"):
            evidence_lower_bound(case.model, self.guide, case.x, num_particles=5)

    def test_a_point_mass_in_the_model_is_refused(self):
        case = self.case()
        case.prior = one(lambda x: dist.Delta(torch.zeros_like(x[:, 0])))
        for estimate in (
            lambda: exact_log_marginal(case.model, case.x),
            lambda: ais(case.model, case.x, num_particles=5, betas=linear_schedule(5)),
            lambda: log_marginal(case.model, case.guide, case.x, num_particles=5),
        ):
            with pytest.raises(
                ValueError, match=r"'z' of the model needs a density, but is a point mass.*deterministic"
            ):
                estimate()

    def test_a_point_mass_inside_a_mixture_is_refused(self):
        case = self.case()
        case.given = one(
            lambda x: dist.MaskedMixture(x[:, 0] > 0, dist.Normal(x[:, 0], 1.0), dist.Delta(torch.zeros_like(x[:, 0])))
        )
        with pytest.raises(ValueError, match="is a point mass"):
            log_marginal(case.model, case.guide, case.x, num_particles=5)


class NoSupport(dist.TorchDistribution):
    """A distribution that declares no support, as wrappers of flows do."""

    arg_constraints: ClassVar = {}

    def __init__(self, base):
        self.base = base
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return NoSupport(self.base.expand(batch_shape))

    def rsample(self, sample_shape=()):
        return self.base.rsample(sample_shape)

    def log_prob(self, value):
        return self.base.log_prob(value)


class TestDistributionsWithoutSupport:
    def case(self):
        return Case(
            one(lambda x: NoSupport(dist.Normal(x.new_zeros(1), 1.0).to_event(1))),
            one(lambda x: NoSupport(dist.Normal(0.8 * x, 0.6).to_event(1))),
            lambda z: z[..., 0],
            lambda a: float(stats.norm.logpdf(a, 0, math.hypot(1, SD))),
        )

    def test_log_marginal_draws_from_guide_and_prior_and_says_so(self):
        case = self.case()
        pyro.set_rng_seed(8)
        with pytest.warns(UserWarning, match=r"latent 'z' \(NoSupport\) has no support.*from guide and prior alone"):
            found = log_marginal(case.model, case.guide, case.x, num_particles=5000)
        assert_near(found, case.reference)
        found = log_marginal(case.model, case.guide, case.x, num_particles=5000, proposal=GuideProposal())
        assert_near(found, case.reference)

    def test_estimators_that_need_coordinates_refuse(self):
        case = self.case()
        for estimate in (
            lambda: exact_log_marginal(case.model, case.x),
            lambda: ais(case.model, case.x, guide=case.guide, num_particles=5, betas=linear_schedule(5)),
            lambda: refine(case.model, case.guide, case.x, log_p=case.reference, steps=2),
            lambda: log_marginal(case.model, case.guide, case.x, num_particles=5, proposal=LaplaceProposal()),
            lambda: log_marginal(case.model, case.guide, case.x, num_particles=5, proposal=WidenedProposal()),
        ):
            with pytest.raises(ValueError, match=r"latent 'z' \(NoSupport\) has no support.*use .*"):
                estimate()

    def test_observed_values_need_no_support(self):
        case = self.case()
        case.likelihood = lambda mean: NoSupport(dist.Normal(mean, SD))
        case.prior = one(lambda x: dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        found = exact_log_marginal(case.model, case.x)
        torch.testing.assert_close(found.value, case.reference, rtol=0, atol=1e-6)
        assert base_measure(case.model, case.x) == "lebesgue"


def test_latents_on_a_sphere_use_guide_and_prior():
    case = Case(
        one(lambda x: dist.ProjectedNormal(x.new_tensor([1.0, 0.0]))),
        one(lambda x: dist.ProjectedNormal(torch.stack([torch.ones_like(x[:, 0]), 0 * x[:, 0]], -1))),
        lambda z: z[..., 0],
        lambda a: integral(lambda t: projected_normal(t) * normal(a, math.cos(t)), -math.pi, math.pi),
    )
    pyro.set_rng_seed(9)
    assert_near(log_marginal(case.model, case.guide, case.x, num_particles=3000), case.reference)
    with pytest.raises(ValueError, match="support without unconstrained coordinates, Sphere"):
        exact_log_marginal(case.model, case.x)


def projected_normal(angle):
    """Density of the angle of a normal vector with mean (1, 0) and unit covariance."""
    c = math.cos(angle)
    return math.exp(-0.5) / (2 * math.pi) * (1 + c * stats.norm.cdf(c) / stats.norm.pdf(c))
