"""The error of log p(x) covers rounding: single precision against double precision of the same model and draws."""

import copy

import pytest
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
    linear_schedule,
)
from pyrovae.densities import draw_from_guide, vectorize_pair
from pyrovae.evidence import GuideProposal, LatentSpace, ais, log_marginal
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
