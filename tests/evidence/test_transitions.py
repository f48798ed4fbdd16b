"""The transitions of annealed chains, and the steps and trajectories that they adapt."""

import math

import pytest
import torch
from oracles import LinearGaussian, normal_near

from pyrovae import linear_schedule, sigmoidal_schedule
from pyrovae.evidence import LatentSpace
from pyrovae.evidence.annealing import AdaptiveChains, Path, transition, transitions_of, tune, tuned_transition
from pyrovae.evidence.blocks import evaluation_mode

ORACLE = LinearGaussian()
START = [[0.5, -0.3]], [[[1.0, 0.0], [0.4, 0.6]]]  # mean and scale_tril of a normal start


@pytest.mark.parametrize("asked", [0.5, 0.65, 0.9])
@pytest.mark.thin(1)
def test_adapted_steps_reach_the_target_acceptance(asked):
    x, vae = ORACLE.data(100), ORACLE.vae()
    betas = linear_schedule(6)
    with evaluation_mode(vae.model, None):
        path = Path(LatentSpace(vae.model, None, x))
        tuning = tune(path, betas, num_leapfrog=2, acceptance=asked, num_tuning=200)
        position, seen = path.at(path.draw(50)), []
        for place, beta in enumerate(betas[1:-1].tolist()):
            for _ in range(4):
                position, accepted = transition(path, position, beta, tuning.step[place], tuning.scale[place], 2)
            seen.append(accepted.mean().item())
    assert abs(sum(seen) / len(seen) - asked) < 0.04
    assert max(abs(rate - asked) for rate in seen) < 0.08


@pytest.mark.parametrize("start", ["prior", "normal"])
def test_default_tuning_holds_the_target_acceptance_along_the_path(start):
    x, vae = ORACLE.data(100), ORACLE.vae()
    betas = sigmoidal_schedule(100)
    normal = normal_near(ORACLE, x) if start == "normal" else None
    with evaluation_mode(vae.model, None):
        path = Path(LatentSpace(vae.model, None, x), normal)
        num_tuning = transitions_of(None, normal)
        tuning = tune(path, betas, num_leapfrog=10, acceptance=0.65, num_tuning=num_tuning)
        position, seen = path.at(path.draw(16)), []
        for beta in betas[1:-1].tolist():
            position, accepted = tuned_transition(path, position, beta, tuning)
            seen.append(accepted.mean().item())
    assert (num_tuning, len(tuning.places)) == {"prior": (200, 50), "normal": (100, 50)}[start]
    assert tuning.num_leapfrog.eq(10).all() or start == "normal"
    assert abs(sum(seen) / len(seen) - 0.65) < 0.05
    assert max(abs(rate - 0.65) for rate in seen) < 0.2


@pytest.mark.parametrize("most", [3, 10])
def test_trajectories_from_a_normal_start_are_half_a_period_long(most):
    # Between pi/2 and 3 pi/2 standard deviations: a whole period would return to the start. Steps are up to 1.
    oracle = LinearGaussian(latent_dim=20, data_dim=40)
    x, vae = oracle.data(50), oracle.vae()
    with evaluation_mode(vae.model, None):
        path = Path(LatentSpace(vae.model, None, x), normal_near(oracle, x))
        tuning = tune(path, linear_schedule(20), num_leapfrog=most, acceptance=0.65, num_tuning=100)
        length = tuning.num_leapfrog * tuning.step.median(1).values
        assert (length < 3 * math.pi / 2).all()
        assert (tuning.num_leapfrog <= most).all()
        assert (length > math.pi / 2).all()


def test_chains_that_never_move_take_the_largest_number_of_steps():
    x, vae = ORACLE.data(3), ORACLE.vae()
    with evaluation_mode(vae.model, None):
        chains = AdaptiveChains(Path(LatentSpace(vae.model, None, x), normal_near(ORACLE, x)), 8, 7, 0.65)
        chains.log_step.fill_(-1e4)
        assert chains.num_leapfrog == 7
        chains.log_step.fill_(1e4)
        assert chains.num_leapfrog == 1


def test_trajectories_are_long_enough_at_three_of_four_data():
    x, vae = ORACLE.data(8), ORACLE.vae()
    with evaluation_mode(vae.model, None):
        chains = AdaptiveChains(Path(LatentSpace(vae.model, None, x), normal_near(ORACLE, x)), 8, 10, 0.65)
        chains.log_step.copy_(torch.tensor([0.1] + 2 * [0.5] + 5 * [1.0]).log())
        assert chains.num_leapfrog == 7  # 3.5 standard deviations in steps of 0.5


@pytest.mark.parametrize("normal", [False, True])
def test_transitions_leave_their_density_invariant(normal):
    # From exact draws of the posterior, at a step so long that about half are refused: means and covariances
    # stay. The 2 + 3 moments of 40,000 chains are each within 4.5 standard errors: false alarm 3e-5 each time.
    oracle = LinearGaussian(latent_dim=2)
    x, vae = oracle.data(1), oracle.vae()
    loc, covariance = oracle.posterior(x)
    exact = torch.distributions.MultivariateNormal(loc, covariance)
    with evaluation_mode(vae.model, None):
        mean, scale_tril = (torch.tensor(start, dtype=x.dtype) for start in START)
        path = Path(LatentSpace(vae.model, None, x), (mean, scale_tril) if normal else None)
        position, rates = path.at(path.coordinates(exact.sample((40_000,)))), []
        step, scale = (torch.tensor(one, dtype=x.dtype) for one in ([0.6], [[1.0, 1.0] if normal else [1.0, 0.6]]))
        for _ in range(5):
            position, rate = transition(path, position, 1.0, step, scale, 3)
            rates.append(rate.mean().item())
        for found, expected in zip(position, path.at(position.v), strict=True):
            torch.testing.assert_close(found, expected)
        u = mean + position.v @ scale_tril[0].T if normal else position.v
    assert 0.2 < min(rates) < 0.8
    centred = (u - loc).squeeze(1)
    for entry, true in ((centred[:, 0], 0), (centred[:, 1], 0)):
        assert abs(entry.mean() - true) < 4.5 * entry.std() / 40_000**0.5
    for i, j in ((0, 0), (0, 1), (1, 1)):
        products = centred[:, i] * centred[:, j]
        assert abs(products.mean() - covariance[i, j]) < 4.5 * products.std() / 40_000**0.5
