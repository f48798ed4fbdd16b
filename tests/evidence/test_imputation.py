"""Imputations against the exact conditional normal of a linear-Gaussian model, for all patterns of five columns."""

from itertools import product

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from pyrovae import VAE, GuideProposal, NormalEncoder, NormalLikelihood, StandardNormalPrior
from pyrovae.columns import Column, Columns
from pyrovae.evidence import impute
from pyrovae.likelihoods import MixedLikelihood

D, Z, SD = 5, 2, 0.6


@pytest.fixture(scope="module")
def problem():
    """A linear decoder, an untrained encoder, and one datum for each pattern of holes."""
    pyro.set_rng_seed(0)
    decoder = nn.Linear(Z, D).double()
    vae = VAE(StandardNormalPrior(Z), NormalLikelihood(decoder, scale=SD), NormalEncoder(nn.Linear(D, 2 * Z))).double()
    mask = torch.tensor(list(product([True, False], repeat=D)))
    x = vae.model(size=len(mask)).detach()
    return vae, torch.where(mask, x, torch.nan), mask, decoder.weight.detach(), decoder.bias.detach()


def exact(x, mask, weight, bias, sd=SD):
    """log p(x_obs), and mean and covariance of all entries given the observed ones."""
    covariance = weight @ weight.T + sd**2 * torch.eye(len(x), dtype=torch.float64)
    a, b = mask.nonzero().flatten(), (~mask).nonzero().flatten()
    mean, spread = x.clone(), torch.zeros(len(x), len(x), dtype=torch.float64)
    if not len(a):
        return torch.zeros(()), bias, covariance
    gain = torch.linalg.solve(covariance[a][:, a], covariance[a][:, b]).T
    mean[b] = bias[b] + gain @ (x[a] - bias[a])
    spread[b[:, None], b] = covariance[b][:, b] - gain @ covariance[a][:, b]
    log_p = torch.distributions.MultivariateNormal(bias[a], covariance[a][:, a]).log_prob(x[a])
    return log_p, mean, spread


def test_means_draws_and_log_p_are_exact_for_every_pattern_of_holes(problem):
    vae, x, mask, weight, bias = problem
    pyro.set_rng_seed(1)
    found = impute(vae.model, vae.guide, x, mask=mask, num_particles=4000, num_draws=4000)
    errors = []
    assert bool((found.log_marginal.ess > 800).all())
    assert found.centre == ("mean",) * D
    for n in range(len(x)):
        log_p, mean, spread = exact(x[n], mask[n], weight, bias)
        assert abs(found.log_marginal.value[n] - log_p) < 5 * found.log_marginal.std_error[n] + 1e-6
        torch.testing.assert_close(found.value[n], mean, rtol=0, atol=0.1)
        errors += ((found.value[n] - mean) / found.std_error[n])[~mask[n]].tolist()
        torch.testing.assert_close(found.draws[:, n].mean(0), mean, rtol=0, atol=0.12)
        torch.testing.assert_close(found.draws[:, n].T.cov(), spread, rtol=0, atol=0.2)
        assert bool((found.draws[:, n, mask[n]] == x[n, mask[n]]).all())
    errors = torch.tensor(errors)
    assert errors.abs().max() < 4.5
    assert 0.7 < errors.std() < 1.3


def test_the_guide_as_proposal_agrees_if_its_weights_are_even(problem):
    vae, x, mask, weight, bias = problem
    pyro.set_rng_seed(2)
    found = impute(vae.model, vae.guide, x, mask=mask, num_particles=20_000, num_draws=0, proposal=GuideProposal())
    good = found.log_marginal.khat < 0.5
    assert int(good.sum()) >= 8
    exact_means = torch.stack([exact(x[n], mask[n], weight, bias)[1] for n in range(len(x))])
    torch.testing.assert_close(found.value[good], exact_means[good], rtol=0, atol=0.15)
    assert found.draws.shape == (0, *x.shape)


def test_blocks_of_data_do_not_change_the_result_beyond_noise(problem):
    vae, x, mask, weight, bias = problem
    pyro.set_rng_seed(3)
    found = impute(vae.model, vae.guide, x, mask=mask, num_particles=2000, num_draws=3, chunk_size=10_000)
    assert found.draws.shape == (3, *x.shape)
    exact_means = torch.stack([exact(x[n], mask[n], weight, bias)[1] for n in range(len(x))])
    torch.testing.assert_close(found.value, exact_means, rtol=0, atol=0.15)


def test_imputations_lose_little_against_the_exact_conditional():
    """The squared error is within 2 % of that of the exact mean; variances and covariances of draws within 5 %."""
    pyro.set_rng_seed(4)
    columns, rows = 8, 300
    decoder = nn.Linear(2, columns).double()
    vae = VAE(
        StandardNormalPrior(2), NormalLikelihood(decoder, scale=0.5), NormalEncoder(nn.Linear(columns, 4))
    ).double()
    true, mask = vae.model(size=rows).detach(), torch.rand(rows, columns) < 0.5
    weight, bias = decoder.weight.detach(), decoder.bias.detach()
    found = impute(vae.model, vae.guide, true, mask=mask, num_particles=1000, num_draws=400)
    answers = [exact(true[n], mask[n], weight, bias, sd=0.5)[1:] for n in range(rows)]
    means, spreads = (torch.stack(part) for part in zip(*answers, strict=True))
    losses = [(value - true)[~mask].square().mean() for value in (found.value, means)]
    assert losses[0] < 1.02 * losses[1]
    away = found.draws - found.draws.mean(0)
    drawn = torch.einsum("mni,mnj->nij", away, away) / 399
    assert abs(drawn.diagonal(dim1=1, dim2=2).sum() / spreads.diagonal(dim1=1, dim2=2).sum() - 1) < 0.05
    off = spreads - spreads.diagonal(dim1=1, dim2=2).diag_embed()
    assert abs((drawn * off).sum() / (off * off).sum() - 1) < 0.05


def test_many_draws_of_one_datum_are_decoded_in_chunks(problem):
    vae, x, mask, weight, bias = problem
    sizes = []

    def model(x, mask):
        with poutine.trace() as tracer:
            vae.model(x, mask=mask)
        sizes.append(tracer.trace.nodes["z"]["value"].shape[:-1].numel())

    pyro.set_rng_seed(5)
    found = impute(model, vae.guide, x[5:7], mask=mask[5:7], num_particles=2000, chunk_size=500, num_draws=700)
    assert max(sizes) <= 700  # the fit of a mode takes a little more than a chunk at once
    for n in (5, 6):
        mean = exact(x[n], mask[n], weight, bias)[1]
        assert ((found.value[n - 5] - mean).abs() <= 5 * found.std_error[n - 5]).all()


def test_what_cannot_be_imputed_is_refused(problem):
    vae, x, mask, _, _ = problem
    with pytest.raises(ValueError, match=r"mask must have the shape \(32, 5\) of x"):
        impute(vae.model, vae.guide, x, mask=mask[:, 0])
    with pytest.raises(ValueError, match=r"the model has no site 'y', but 'z', 'x'"):
        impute(vae.model, vae.guide, x, mask=mask, site="y", num_particles=5)
    with pytest.raises(ValueError, match=r"mask must be a tensor .*, got None; give mask="):
        impute(vae.model, vae.guide, x.nan_to_num())
    with pytest.raises(ValueError, match=r"proposal must be a Proposal, got 'guide'"):
        impute(vae.model, vae.guide, x, mask=mask, proposal="guide")


def plain_guide(x, mask):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))


def test_a_model_that_ignores_the_mask_is_refused(problem):
    _, x, mask, _, _ = problem

    def model(x, mask):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., :1].expand(*z.shape[:-1], D), 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match="site 'x' counts entries where the mask is false"):
        impute(model, plain_guide, x.nan_to_num(), mask=mask)


def test_entries_that_depend_on_each_other_given_z_are_refused(problem):
    _, x, mask, _, _ = problem

    def model(x, mask):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            p = dist.MultivariateNormal(z[..., :1].expand(*z.shape[:-1], D), torch.eye(D, dtype=x.dtype))
            pyro.sample("x", p.mask(mask.any(-1)), obs=x)

    with pytest.raises(ValueError, match="MultivariateNormal, which is no product over the entries"):
        impute(model, plain_guide, x.nan_to_num(), mask=mask)


def test_columns_in_a_plate_of_their_own_are_imputed(problem):
    _, x, mask, weight, bias = problem

    def model(x, mask):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1, 2), 1.0).to_event(1))
            with pyro.plate("columns", D, dim=-1), poutine.mask(mask=mask):
                pyro.sample("x", dist.Normal((z @ weight.T).squeeze(-2) + bias, SD), obs=torch.where(mask, x, 0.0))

    def guide(x, mask):
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(x.new_zeros(1, 2), 1.0).to_event(1))

    pyro.set_rng_seed(6)
    found = impute(model, guide, x, mask=mask, num_draws=2)
    assert found.draws.shape == (2, *x.shape)
    exact_means = torch.stack([exact(x[n], mask[n], weight, bias)[1] for n in range(len(x))])
    assert bool(((found.value - exact_means).abs() <= 5 * found.std_error).all())


def test_a_table_is_imputed_by_the_kinds_of_its_columns():
    pyro.set_rng_seed(7)
    numbers = {"centre": 4.0, "spread": 2.0, "low": 0.5, "high": 9.0, "resolution": 0.1, "missing": 0.0}
    columns = Columns(
        (
            Column("height", "real", **numbers),
            Column("sex", "binary", levels=("F", "M"), missing=0.0),
            Column("income", "positive", log_centre=1.0, log_spread=0.5, **numbers, arguments={"scale": "dimension"}),
            Column("region", "category", levels=("N", "S", "W"), missing=0.0),
            Column("visits", "count", **{**numbers, "resolution": 1.0}),
            Column("grade", "ordered", levels=("low", "mid", "high", "top"), missing=0.0),
        )
    )
    likelihood = MixedLikelihood(nn.Linear(Z, MixedLikelihood.num_outputs(6, columns=columns)), columns)
    vae = VAE(StandardNormalPrior(Z), likelihood, NormalEncoder(nn.Linear(6, 2 * Z)))
    x = vae.model(size=20).detach()
    mask = torch.rand(x.shape) < 0.5
    found = impute(vae.model, vae.guide, torch.where(mask, x, torch.nan), mask=mask, num_draws=5)
    assert found.centre == ("mean", "mode", "mean", "mode", "mean", "median")
    for value in (found.value[:, [1, 3, 5]], found.draws[..., [1, 3, 5]]):
        assert bool((value == value.round()).all())
    assert bool(likelihood(torch.zeros(1, Z)).base_dist.support.check(found.draws).all())
    assert bool(found.value.isfinite().all())
