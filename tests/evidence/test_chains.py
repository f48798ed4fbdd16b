"""Errors of few annealed chains, and the number of temperatures that they need."""

import math
import runpy

import pytest
import scipy.stats
import torch
from oracles import LinearGaussian
from pyro import poutine
from script_helpers import path_of

from pyrovae import ais, bracket, linear_schedule
from pyrovae.evidence import agreeing_schedule
from pyrovae.evidence.ais import summarize_chains
from pyrovae.stats import log_mean_std_error


@pytest.mark.parametrize(("num_chains", "spread"), [(4, 0.1), (4, 0.5), (16, 0.1), (16, 0.5), (16, 1.0)])
def test_errors_of_few_normal_log_weights_cover_log_p(num_chains, spread):
    # log w ~ N(-s^2/2, s^2) has E w = 1. 4,000 data: coverage is known within 0.011 (three standard errors). The delta
    # method with 1.96 covers 0.79 to 0.93 here.
    log_w = spread * torch.randn(num_chains, 4000, dtype=torch.float64) - spread**2 / 2
    found = summarize_chains(log_w)
    known = found.std_error.isfinite()
    assert known.double().mean() > 0.9
    covered = (found.value.abs() <= 1.96 * found.std_error)[known].double().mean()
    assert 0.92 < covered < 0.985
    delta = (found.value.abs() <= 1.96 * log_mean_std_error(log_w)).double().mean()
    assert delta < covered
    student = scipy.stats.t.ppf(0.975, num_chains - 1) / scipy.stats.norm.ppf(0.975)
    if spread == 0.1:  # then both errors are s / sqrt(K)
        ratio = found.std_error / (student * log_w.std(0) / num_chains**0.5)
        assert ratio.median() == pytest.approx(1.0, abs=0.02)


def test_the_error_of_chains_is_unknown_where_it_is_large():
    log_w = 10 * torch.randn(16, 200, dtype=torch.float64) - 50
    assert log_mean_std_error(log_w).max() <= 1  # the delta method never says more
    assert summarize_chains(log_w).std_error.isinf().all()
    some_zero = torch.cat([torch.zeros(15, 3), torch.full((1, 3), -math.inf)])
    assert summarize_chains(some_zero).std_error.isfinite().all()
    assert summarize_chains(torch.zeros(1, 3)).std_error.isinf().all()
    assert summarize_chains(torch.zeros(16, 3)).khat.tolist() == [math.inf] * 3  # unknown


@pytest.mark.parametrize("start", ["prior", "guide"])
@pytest.mark.thin(1)
def test_sixteen_chains_cover_log_p_of_a_linear_gaussian_model(start):
    # 400 data: a coverage of 0.95 is known within 0.033 (three standard errors).
    oracle = LinearGaussian()
    vae, x = oracle.vae(sd_factor=0.8, shift=0.5), oracle.data(400)
    guide = None if start == "prior" else vae.guide
    found = ais(
        vae.model, x, guide=guide, num_particles=16, betas=linear_schedule(60), num_leapfrog=2, chunk_size=2**17
    )
    covered = ((found.value - oracle.log_marginal(x)).abs() <= 1.96 * found.std_error).double().mean()
    assert 0.917 < covered < 0.983


def test_a_start_that_covers_one_of_two_modes_is_log_2_too_low():
    # As the docstring of `ais` says: neither the error nor the effective sample size shows it.
    study = runpy.run_path(str(path_of("chains")))
    x = torch.linspace(0.5, 2.5, 40, dtype=torch.float64)
    log_p = study["log_p_of_two_modes"](x)
    settings = {"num_particles": 16, "betas": linear_schedule(100), "num_leapfrog": 3}
    one = ais(study["two_modes"], x, guide=study["one_of_two"], **settings)
    assert (one.value - log_p).mean().item() == pytest.approx(-math.log(2), abs=0.03)
    both = ais(study["two_modes"], x, **settings)
    assert ((both.value - log_p).abs() < 5 * both.std_error).all()


def test_temperatures_double_until_forward_and_reverse_chains_agree():
    oracle = LinearGaussian()
    vae = oracle.vae()
    nodes = poutine.trace(vae.model).get_trace(size=60).nodes
    latents, x = {"z": nodes["z"]["value"].detach()}, nodes["x"]["value"].detach()
    settings = {"num_particles": 4, "num_leapfrog": 2, "num_tuning": 50, "chunk_size": 2**17}
    betas = agreeing_schedule(vae.model, None, latents, x, gap=0.6, num_temperatures=5, **settings)
    steps = len(betas) - 1
    assert steps in (20, 40, 80, 160)
    torch.testing.assert_close(betas, linear_schedule(steps))
    assert bracket(vae.model, None, latents, x, betas=betas, **settings).gap.mean() < 0.8
    assert bracket(vae.model, None, latents, x, betas=linear_schedule(5), **settings).gap.mean() > 0.8
    with pytest.raises(ValueError, match=r"forward and reverse chains must agree within 0.001 nats, but 5 temp"):
        agreeing_schedule(vae.model, None, latents, x, gap=0.001, num_temperatures=5, most=5, **settings)
    with pytest.raises(ValueError, match="gap must be above 0 nats, got 0"):
        agreeing_schedule(vae.model, None, latents, x, gap=0)
