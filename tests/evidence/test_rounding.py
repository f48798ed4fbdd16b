"""The error of log p(x) covers rounding: single precision against double precision of the same model and draws."""

import copy
import math
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import scipy.special
import scipy.stats
import torch
from torch import nn
from torch.distributions import Normal

from pyrovae import (
    MLP,
    VAE,
    BernoulliLikelihood,
    NormalEncoder,
    NormalLikelihood,
    PoissonLikelihood,
    StandardNormalPrior,
    exact_log_marginal,
    linear_schedule,
)
from pyrovae.densities import draw_from_guide, vectorize_pair
from pyrovae.evidence import GuideProposal, LaplaceProposal, LatentSpace, ais, log_marginal
from pyrovae.stats import log_mean_std_error

CASES = [("normal", 0.01), ("normal", 0.4), ("normal", 1.0), ("bernoulli", None), ("poisson", None)]


@pytest.mark.parametrize("num_dims", [10, 1000, 20_000])
@pytest.mark.parametrize(("likelihood", "scale"), CASES)
@pytest.mark.thin(3)
def test_the_error_covers_rounding(likelihood, scale, num_dims):
    # Twenty draws in both precisions: the mean of their differences is the rounding that they share, and a part of the
    # rest. The error is a standard deviation at least, and of its order of magnitude. A scale of 0.4 has log densities
    # of both signs, which cancel.
    kinds = {"bernoulli": BernoulliLikelihood, "poisson": PoissonLikelihood}
    part = NormalLikelihood(MLP(4, num_dims), scale=scale) if scale else kinds[likelihood](MLP(4, num_dims))
    vae = VAE(StandardNormalPrior(4), part, NormalEncoder(MLP(num_dims, 8)))
    x = vae.model(size=50).detach()
    double, x64 = copy.deepcopy(vae).double(), x.double()
    pair, pair64 = (
        vectorize_pair(vae.model, vae.guide, (x,), {}),
        vectorize_pair(double.model, double.guide, (x64,), {}),
    )
    with torch.no_grad():
        traces = draw_from_guide(*pair, (x,), {}, 20)
        z = {"z": traces[1].latents["z"].value.double()}
        log_w, exact = (
            model.log_densities()[0] - guide.log_densities()[0]
            for model, guide in (traces, [program.trace(20, (x64,), {}, z) for program in pair64])
        )
        shared = (log_w.double() - exact).mean(0).square().mean().sqrt()
        space = LatentSpace(*pair, x)
    equal = log_w[:1].double().expand(20, -1)  # in double precision, as weights of adapted proposals are
    error = log_mean_std_error(equal, rounding=space.rounding)
    assert shared < error.square().mean().sqrt() < 40 * shared
    assert (log_mean_std_error(equal) < 1e-3 * error).all()


class Constant(nn.Module):
    """The decoder of a model whose posterior is its prior."""

    def __init__(self, num_dims):
        super().__init__()
        self.loc = nn.Parameter(0.3 * torch.randn(num_dims))

    def forward(self, z):
        return self.loc.expand(*z.shape[:-1], -1)


@pytest.mark.parametrize("estimator", ["guide", "default", "ais"])
@pytest.mark.thin(1)
def test_equal_weights_have_the_error_of_their_rounding(estimator):
    # The guide is the posterior, so all weights are equal but for rounding; log p(x) is about -5,500.
    vae = VAE(StandardNormalPrior(2), NormalLikelihood(Constant(4000), scale=1.0), NormalEncoder(MLP(4000, 4)))
    with torch.no_grad():
        for parameter in vae.guide.parameters():
            parameter.zero_()
        x = vae.model(size=40).detach()
    exact = Normal(vae.model.likelihood.network.loc.double(), 1.0).log_prob(x.double()).sum(-1).detach()
    if estimator == "ais":
        found = ais(vae.model, x, num_particles=4, betas=linear_schedule(4), num_leapfrog=1, num_tuning=4)
    else:
        proposal = GuideProposal() if estimator == "guide" else None
        found = log_marginal(vae.model, vae.guide, x, num_particles=100, proposal=proposal)
    floor = 0.99 * torch.finfo(torch.float32).eps * exact.abs()
    assert (found.std_error >= floor).all()
    assert ((found.value - exact).abs() <= (5 if estimator == "default" else 3) * found.std_error + 1e-9).all()
    assert estimator == "default" or (found.std_error < 1.5 * floor).all()


def cancelling(kind, dtype):
    """Make log p(x | eta) as a distribution and by SciPy, and data at eta; its terms are far larger than their sum."""
    if kind == "poisson":
        return dist.Poisson, lambda eta: eta.exp() * 1e5, lambda x, rate: scipy.stats.poisson.logpmf(x, rate)
    if kind == "binomial":
        make = lambda logits: dist.Binomial(100_000, logits=logits)  # noqa: E731
        return make, lambda eta: eta, partial(binomial_logpmf, 100_000)
    if kind == "gamma":
        shape = torch.tensor(1e4, dtype=dtype)
        return partial(dist.Gamma, shape), lambda eta: 1e4 * (-eta).exp(), gamma_logpdf
    return partial(dist.Normal, scale=0.3), lambda eta: 5.4e5 + eta, lambda x, loc: scipy.stats.norm.logpdf(x, loc, 0.3)


def binomial_logpmf(total, x, logits):
    return scipy.stats.binom.logpmf(x, total, scipy.special.expit(logits))


def gamma_logpdf(x, rate):
    return scipy.stats.gamma.logpdf(x, 1e4, scale=1 / rate)


@pytest.mark.parametrize("kind", ["poisson", "binomial", "gamma", "normal"])
def test_the_error_covers_terms_that_cancel_within_an_entry(kind):
    # One latent and ten entries in single precision; the reference is a sum over a fine grid, by SciPy in double.
    make, parameter, log_density = cancelling(kind, torch.float32)
    pyro.set_rng_seed(0)
    slope, shift = 0.3 * torch.randn(10), 0.5 * torch.randn(10)
    true = torch.randn(60, 1)
    x = make(parameter(shift + true * slope)).sample()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", make(parameter(shift + z[..., None] * slope)).to_event(1), obs=x)

    spread = 0.2 if kind == "normal" else 0.005

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(true[:, 0], spread))

    exact = []
    for datum, middle in zip(x.double(), true[:, 0].double(), strict=True):
        z = middle + torch.linspace(-60 * spread, 60 * spread, 24_001, dtype=torch.float64)
        value = parameter(shift.double() + z[:, None] * slope.double())
        log_p = torch.from_numpy(log_density(datum.numpy(), value.numpy())).sum(-1)
        log_p = log_p - z.square() / 2 - math.log(2 * math.pi) / 2
        exact.append(log_p.logsumexp(0) + math.log(120 * spread / 24_000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = log_marginal(model, guide, x, num_particles=1000)
        sums = exact_log_marginal(model, x)
    off = (found.value - torch.stack(exact)).abs()
    assert (off > 0.01).double().mean() > 0.3  # rounding counts
    assert (off < 1.96 * found.std_error).double().mean() >= 0.9
    assert (off < 4 * found.std_error).all()
    assert found.std_error.median() < 12 * off.median()
    known = sums.value.isfinite()  # where the error is below 0.1 nats
    assert known.any() == (kind == "gamma")
    assert ((sums.value - torch.stack(exact)).abs() <= 2 * sums.error)[known].all()


def test_much_rounding_is_told():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Poisson((z + 14).exp()), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.log() - 14, 1e-3))

    x = torch.poisson(torch.tensor([1e6, 2e6]))
    with pytest.warns(UserWarning, match=r"in single precision log p\(x, z\) is rounded by more than 0.1 nats"):
        log_marginal(model, guide, x, num_particles=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert LatentSpace(model, guide, x.double()).rounding.measured == 0.0


def test_rounding_is_measured_where_a_proposal_found_the_posterior():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_tensor(1000.0), 1.0))
            pyro.sample("x", dist.Normal(z, 0.01), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_tensor(1000.0), 1.0))

    x = 1000 + torch.randn(20)
    far, near = LatentSpace(model, guide, x), LatentSpace(model, guide, x)
    LaplaceProposal().adapt(near)
    assert (near.rounding.measured < 0.2 * far.rounding.measured).double().mean() > 0.7
