"""Conditional densities and draws against the exact conditional normal of a linear-Gaussian model."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from pyrovae import VAE, GuideProposal, NormalEncoder, NormalLikelihood, StandardNormalPrior, log_marginal
from pyrovae.evidence import conditional, impute, rank_among, score

D, Z, SD, N = 5, 2, 0.6, 30


@pytest.fixture(scope="module")
def problem():
    """Random masks and given entries; nothing given in row 0, everything in row 1, nothing observed in row 2."""
    pyro.set_rng_seed(0)
    decoder = nn.Linear(Z, D).double()
    vae = VAE(StandardNormalPrior(Z), NormalLikelihood(decoder, scale=SD), NormalEncoder(nn.Linear(D, 2 * Z))).double()
    x = vae.model(size=N).detach()
    mask = torch.rand(x.shape) < 0.8
    mask[1], mask[2] = True, False
    given = mask & (torch.rand(x.shape) < 0.5)
    given[0], given[1] = False, True
    w = decoder.weight.detach()
    covariance = w @ w.T + SD**2 * torch.eye(D, dtype=torch.float64)
    return vae, torch.where(mask, x, torch.nan), mask, given, decoder.bias.detach(), covariance


def log_p(x, kept, loc, covariance):
    kept = kept.nonzero().flatten()
    return MultivariateNormal(loc[kept], covariance[kept][:, kept]).log_prob(x[kept]) if len(kept) else x.new_zeros(())


def given_moments(x, given, loc, covariance):
    """Mean and covariance of the other entries."""
    b, a = given.nonzero().flatten(), (~given).nonzero().flatten()
    gain = torch.linalg.solve(covariance[b][:, b], covariance[b][:, a]).T
    return loc[a] + gain @ (x[b] - loc[b]), covariance[a][:, a] - gain @ covariance[b][:, a]


@pytest.mark.parametrize("proposal", [None, GuideProposal()])
def test_values_and_their_errors_are_those_of_the_exact_conditional(problem, proposal):
    vae, x, mask, given, loc, covariance = problem
    pyro.set_rng_seed(1)
    found = conditional(
        vae.model, vae.guide, x, mask=mask, given=given, num_particles=4000, num_draws=0, proposal=proposal
    )
    exact = torch.stack(
        [log_p(x[n], mask[n], loc, covariance) - log_p(x[n], given[n], loc, covariance) for n in range(N)]
    )
    assert found.value[1:3].tolist() == found.std_error[1:3].tolist() == [0.0, 0.0]
    good = (found.khat < 0.5) & (found.std_error > 0)
    assert int(good.sum()) >= (25 if proposal is None else 8)
    errors = ((found.value - exact) / found.std_error)[good]
    assert errors.abs().max() < 4.5
    assert 0.6 < errors.std() < 1.5
    assert found.draws.shape == (0, N, D)


def test_draws_are_those_of_the_exact_conditional(problem):
    vae, x, mask, given, loc, covariance = problem
    pyro.set_rng_seed(2)
    found = conditional(vae.model, vae.guide, x, mask=mask, given=given, num_particles=2000, num_draws=2000)
    assert bool((found.draws[:, given] == x[given]).all())
    for n in range(N):
        if bool((~given[n]).any()):
            mean, spread = given_moments(x[n].nan_to_num(), given[n], loc, covariance)
            drawn = found.draws[:, n, ~given[n]]
            sd = spread.diagonal().sqrt()
            assert bool(((drawn.mean(0) - mean).abs() < 0.15 * sd).all())
            torch.testing.assert_close(
                drawn.T.cov() / torch.outer(sd, sd), spread / torch.outer(sd, sd), rtol=0, atol=0.2
            )


def test_blocks_of_data_and_complete_rows_without_a_mask(problem):
    vae, x, _, given, loc, covariance = problem
    x = x.nan_to_num()
    pyro.set_rng_seed(3)
    found = conditional(vae.model, vae.guide, x, given=given, num_particles=1000, num_draws=3, chunk_size=4000)
    every = torch.ones(D, dtype=torch.bool)
    exact = torch.stack(
        [log_p(x[n], every, loc, covariance) - log_p(x[n], given[n], loc, covariance) for n in range(N)]
    )
    assert bool(((found.value - exact).abs() <= 5 * found.std_error + 1e-9).all())
    assert found.draws.shape == (3, N, D)
    assert [found.components[index] for index in found.served[[0, 2]].tolist()] == ["prior", "prior"]


def test_masks_that_contradict_each_other_are_refused(problem):
    vae, x, mask, given, _, _ = problem
    with pytest.raises(ValueError, match=r"the mask says that entry . of datum 0 is missing; give given & mask"):
        conditional(vae.model, vae.guide, x, mask=mask, given=given | True)
    with pytest.raises(ValueError, match=r"given must be boolean, got torch\.float64"):
        conditional(vae.model, vae.guide, x, mask=mask, given=given.double())
    with pytest.raises(ValueError, match=r"given must have the shape \(30, 5\) of x"):
        conditional(vae.model, vae.guide, x, mask=mask, given=given[0])


def test_an_entry_observed_alone_has_the_score_of_its_density(problem):
    vae, x, _, _, loc, covariance = problem
    alone = torch.eye(D, dtype=torch.bool)
    pyro.set_rng_seed(4)
    found = score(vae.model, vae.guide, x[:D].nan_to_num(), mask=alone, num_particles=500)
    assert bool((found.conditional[alone] == found.log_marginal.value).all())
    assert bool((found.std_error[alone] == found.log_marginal.std_error).all())
    exact = dist.Normal(loc, covariance.diagonal().sqrt()).log_prob(x[:D].nan_to_num().diagonal())
    assert bool(((found.conditional[alone] - exact).abs() < 5 * found.std_error[alone]).all())


def model_with_scale(x, mask, scale):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        p = dist.Normal(z, scale.unsqueeze(-1)).mask(mask)
        pyro.sample("x", p.to_event(1), obs=torch.where(mask, x, 0.0))


def guide_with_scale(x, mask, scale):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))


def test_data_without_weights_get_nan_and_a_warning():
    x, scale = torch.ones(4, 3), torch.tensor([1.0, torch.nan, 1.0, 1.0])
    mask = torch.tensor([True, True, False]).expand(4, 3)
    arguments = (model_with_scale, guide_with_scale, x)
    options = {"mask": mask, "scale": scale, "num_particles": 100}
    for estimate in (impute, score, conditional):
        given = {"given": mask & torch.tensor([True, False, False])} if estimate is conditional else {}
        with pytest.warns(UserWarning, match=r"1 of 4 data get NaN, the others their value \(rows 1\)"):
            found = estimate(*arguments, **options, **given)
        value = found.value if estimate is conditional else found.log_marginal.value
        assert value.isnan().tolist() == [False, True, False, False]
        if estimate is not score:
            assert bool(found.draws[:, 1, 2].isnan().all())
            assert bool(found.draws[:, [0, 2, 3]].isfinite().all())


def test_ranks_among_training_rows():
    training = torch.tensor([-2.0, -4.0, -3.0, -1.0, -3.0])
    found = rank_among(torch.tensor([-9.0, -3.0, -2.5, 0.0]), training)
    assert found.rank.tolist() == [1, 2, 4, 6]
    torch.testing.assert_close(found.share, torch.tensor([0.0, 0.2, 0.6, 1.0], dtype=torch.float64))
    with pytest.raises(ValueError, match="got NaN for all 2; look for NaN"):
        rank_among(training, torch.tensor([torch.nan, torch.nan]))
    with pytest.raises(ValueError, match=r"got \(5,\) and \(0,\)"):
        rank_among(training, training[:0])


def test_a_row_without_log_p_has_no_rank_and_changes_no_other():
    nan = torch.nan
    found = rank_among(torch.tensor([-9.0, nan, -2.5]), torch.tensor([-2.0, nan, -4.0, -3.0, -1.0]))
    assert found.rank.isnan().tolist() == found.share.isnan().tolist() == [False, True, False]
    assert found.rank[[0, 2]].tolist() == [1, 3]
    assert found.share[[0, 2]].tolist() == [0.0, 0.5]


def test_an_odd_row_has_a_low_rank(problem):
    vae, _, _, _, _, _ = problem
    pyro.set_rng_seed(5)
    training, new = vae.model(size=40).detach(), vae.model(size=2).detach()
    new[0] += 8 * torch.tensor([1.0, -1, 1, -1, 1])
    log_p = [log_marginal(vae.model, vae.guide, x, num_particles=200).value for x in (new, training)]
    assert rank_among(*log_p).rank[0] == 1
