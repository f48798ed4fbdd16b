"""Data whose weights cannot be had: they get NaN and a reason, the others their value."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

from pyrovae import (
    MLP,
    VAE,
    FullCovarianceNormalEncoder,
    LowRankNormalEncoder,
    NormalEncoder,
    NormalLikelihood,
    StandardNormalPrior,
    StudentTEncoder,
    ais,
    evidence_lower_bound,
    fit,
    linear_schedule,
    log_marginal,
)
from pyrovae.encoders import FlowEncoder, MixtureEncoder
from pyrovae.evidence import DefensiveProposal, GuideProposal, ladder
from pyrovae.nn import scale_of
from pyrovae.training import NonFiniteLossError

VARIANCE = 1.25  # of x


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)


def guide(x):
    """The exact posterior, with a NaN location for data above 2."""
    with pyro.plate("data", len(x)):
        loc = torch.where(x > 2, torch.nan, x / VARIANCE)
        pyro.sample("z", dist.Normal(loc, math.sqrt(0.2)).to_event(1))


def exact(x):
    return (-(x.double() ** 2) / (2 * VARIANCE) - math.log(2 * math.pi * VARIANCE) / 2).squeeze(-1)


X = torch.tensor([[0.3], [2.5], [-1.0]])


@pytest.mark.parametrize("proposal", [None, DefensiveProposal(0.5)], ids=["default", "defensive"])
def test_a_guide_that_is_nan_loses_its_share_for_that_datum_alone(proposal):
    torch.manual_seed(0)
    with pytest.warns(
        UserWarning, match="guide for 1 of 3 data, the first of them datum 1, so that the guide loses"
    ) as w:
        value, error, *_ = log_marginal(model, guide, X, num_particles=20_000, proposal=proposal)
    assert len(w) == 1
    assert bool(((value - exact(X)).abs() < 5 * error + 1e-6).all())
    assert bool((error < 0.2).all())


def test_data_without_weights_get_nan_and_the_others_their_value():
    with pytest.warns(UserWarning, match=r"1 of 3 data get NaN, the others their value \(rows 1\): the log weights of"):
        found = log_marginal(model, guide, X, num_particles=100, proposal=GuideProposal())
    for field in found:
        assert field.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(found.value[[0, 2]], exact(X)[[0, 2]], rtol=0, atol=1e-5)
    with pytest.warns(UserWarning, match="1 of 3 data get NaN"):
        assert evidence_lower_bound(model, guide, X, num_particles=10).value.isnan().tolist() == [False, True, False]
    with pytest.warns(UserWarning, match="1 of 3 data get NaN"):
        rungs = ladder(model, guide, X, num_particles=100, proposal=GuideProposal())
    assert all(rung.lower_bound.isnan().tolist() == [False, True, False] for rung in rungs)


def test_chains_without_weights_get_nan_and_the_others_their_value_also_after_a_resume():
    states, run = [], {"num_particles": 8, "betas": linear_schedule(3), "num_tuning": 8, "chunk_size": 16}
    with pytest.warns(UserWarning, match=r"1 of 3 data get NaN, the others their value \(rows 1\)"):
        found = ais(model, X, guide=guide, commit=states.append, **run)
    assert [field.isnan().tolist() for field in found] == [[False, True, False]] * 4
    assert bool(((found.value - exact(X)).abs() < 5 * found.std_error + 1e-4)[[0, 2]].all())
    with pytest.warns(UserWarning, match=r"1 of 3 data get NaN, the others their value \(rows 1\)"):
        again = ais(model, X, guide=guide, resume=states[0], **run)
    assert torch.equal(again.value[[0, 2]], found.value[[0, 2]])


def test_an_estimate_without_any_value_is_refused():
    with pytest.raises(ValueError, match="log weights of datum 0 are NaN"):
        log_marginal(model, guide, X[1:2], num_particles=100, proposal=GuideProposal())
    with pytest.raises(ValueError, match="log weights of datum 0 are NaN"):
        ais(model, X[1:2], guide=guide, num_particles=8, betas=linear_schedule(5), num_tuning=20)


ENCODERS = {
    "normal": lambda size: NormalEncoder(MLP(size, NormalEncoder.num_outputs(2))),
    "full covariance": lambda size: FullCovarianceNormalEncoder(MLP(size, FullCovarianceNormalEncoder.num_outputs(2))),
    "low rank": lambda size: LowRankNormalEncoder(MLP(size, LowRankNormalEncoder.num_outputs(2))),
    "student": lambda size: StudentTEncoder(MLP(size, StudentTEncoder.num_outputs(2))),
    "mixture": lambda size: MixtureEncoder(MLP(size, MixtureEncoder.num_outputs(2))),
    "flow": lambda size: FlowEncoder(MLP(size, FlowEncoder.num_outputs(2))),
}


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.thin(3)
def test_a_row_far_from_the_others_leaves_them_their_value(name):
    torch.manual_seed(1)
    x = torch.cat([torch.randn(5, 6), torch.full((1, 6), 1e4)])
    encoder = ENCODERS[name](6)
    vae = VAE(StandardNormalPrior(2), NormalLikelihood(MLP(2, 6), 1.0), encoder)
    with torch.no_grad():
        list(encoder.network.parameters())[-2].mul_(10.0)
    alone = log_marginal(vae.model, vae.guide, x[:5], num_particles=500).value
    found = log_marginal(vae.model, vae.guide, x, num_particles=500).value
    torch.testing.assert_close(found[:5], alone, rtol=0, atol=0.1)


def test_bounded_scales_are_those_of_exp_in_the_normal_range_and_finite_beyond():
    a = torch.linspace(-10, 10, 2001)
    assert torch.equal(scale_of(a), a.exp())
    beyond, room = torch.tensor([10.5, 12.0, 20.0], dtype=torch.float64, requires_grad=True), math.log(1e6) - 10
    expected = 10 + room * ((beyond - 10) / room).tanh()
    torch.testing.assert_close(scale_of(torch.cat([beyond, -beyond])).log(), torch.cat([expected, -expected]))
    (slope,) = torch.autograd.grad(scale_of(beyond).log().sum(), beyond)
    torch.testing.assert_close(slope, 1 - ((beyond.detach() - 10) / room).tanh().square())
    far = torch.tensor([-1e30, -100.0, -10.5, 10.5, 100.0, 1e30], requires_grad=True)
    scale = scale_of(far)
    assert bool((scale >= 0.99e-6).all())
    assert bool((scale <= 1.01e6).all())
    (slope,) = torch.autograd.grad(scale.log().sum(), far)
    assert bool(slope.isfinite().all())
    assert bool((slope[2:4] > 0.9).all())
    near = torch.tensor([-10.0, 0.0, 10.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(scale_of(near).log().sum(), near)
    torch.testing.assert_close(slope, torch.ones(3, dtype=torch.float64))


def test_raw_counts_do_not_stop_the_first_step_and_a_failure_says_to_standardise():
    torch.manual_seed(0)
    x = torch.poisson(torch.full((200, 6), 3000.0))
    encoder = NormalEncoder(MLP(6, NormalEncoder.num_outputs(2)))
    vae = VAE(StandardNormalPrior(2), NormalLikelihood(MLP(2, 6)), encoder)
    fit(vae.model, vae.guide, x, elbo=Trace_ELBO(), epochs=1, batch_size=100, progress=False)
    with pytest.raises(
        NonFiniteLossError, match=r"reach 3\d,.* in size, so standardise .*Standardize.from_data\(x\), network"
    ):
        fit(vae.model, vae.guide, 1e19 * x, elbo=Trace_ELBO(), epochs=1, batch_size=100, progress=False)
