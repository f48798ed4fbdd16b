"""Rows without an observed entry: log p = 0 exactly, and the posterior is the prior."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from pyrovae import (
    VAE,
    GuideProposal,
    NormalEncoder,
    NormalLikelihood,
    StandardNormalPrior,
    bracket,
    ladder,
    log_marginal,
)
from pyrovae.columns import Column, Columns
from pyrovae.evidence import conditional, evaluate, impute, score
from pyrovae.likelihoods import MixedLikelihood

D, Z, SD = 5, 2, 0.6
ROWS = [1, 4]  # without an observed entry
NUMBERS = {"centre": 4.0, "spread": 2.0, "low": 0.5, "high": 9.0, "resolution": 0.1, "missing": 0.0}
COLUMNS = Columns(
    (
        Column("height", "real", **NUMBERS),
        Column("sex", "binary", levels=("F", "M"), missing=0.0),
        Column("income", "positive", log_centre=1.0, log_spread=0.5, **NUMBERS),
        Column("region", "category", levels=("N", "S", "W"), missing=0.0),
        Column("grade", "ordered", levels=("low", "mid", "high", "top"), missing=0.0),
    )
)


def normal():
    return NormalLikelihood(nn.Linear(Z, D), scale=SD)


def mixed():
    return MixedLikelihood(nn.Linear(Z, MixedLikelihood.num_outputs(D, columns=COLUMNS)), COLUMNS)


def problem(likelihood):
    pyro.set_rng_seed(0)
    vae = VAE(StandardNormalPrior(Z), likelihood(), NormalEncoder(nn.Linear(D, 2 * Z)))
    x = vae.model(size=6).detach()
    mask = torch.rand(x.shape) < 0.6
    mask[:, 0] = True
    mask[ROWS] = False
    return vae, torch.where(mask, x, torch.nan), mask


def check(found):
    """All weights are 1: value 0, no error, K effective draws, no tail."""
    for field, exact in zip(found, (0.0, 0.0, 300.0, -torch.inf), strict=True):
        assert field[ROWS].tolist() == [exact] * 2
    others = [n for n in range(len(found.value)) if n not in ROWS]
    assert bool((found.value[others] != 0).all())
    assert bool((found.std_error[others] > 0).all())


@pytest.mark.parametrize("likelihood", [normal, mixed])
@pytest.mark.thin(1)
def test_log_p_is_zero_for_every_estimator(likelihood):
    vae, x, mask = problem(likelihood)
    programs, options = (vae.model, vae.guide, x), {"mask": mask, "num_particles": 300}
    check(log_marginal(*programs, **options))
    assert all(bool((rung.lower_bound[ROWS] == 0).all()) for rung in ladder(*programs, **options))
    found = evaluate(*programs, **options)
    check(found.marginal.log_marginal)
    assert [found.marginal.components[index] for index in found.marginal.served[ROWS].tolist()] == ["prior"] * 2
    check(score(*programs, **options).log_marginal)
    filled = impute(*programs, **options, num_draws=0)
    check(filled.log_marginal)
    assert [filled.components[index] for index in filled.served[ROWS].tolist()] == ["prior"] * 2
    nothing = conditional(*programs, **options, given=mask & False, num_draws=0)
    assert not any(map(bool, nothing.given.value))
    check(nothing.joint)
    assert nothing.value[ROWS].tolist() == nothing.std_error[ROWS].tolist() == [0.0, 0.0]
    torch.testing.assert_close(nothing.value, nothing.joint.value)


def test_a_table_of_such_rows_alone_needs_no_fit(recwarn):
    vae, x, mask = problem(normal)
    found = log_marginal(vae.model, vae.guide, x, mask=mask & False, num_particles=37)
    assert found.value.tolist() == [0.0] * 6
    assert found.khat.tolist() == [-torch.inf] * 6


def test_imputations_are_those_of_the_prior():
    vae, x, mask = problem(normal)
    weight = vae.model.likelihood.network.weight.detach()
    found = impute(vae.model, vae.guide, x, mask=mask, num_particles=4000, num_draws=4000)
    mean, spread = vae.model.likelihood.network.bias.detach(), weight @ weight.T + SD**2 * torch.eye(D)
    error = (found.value[ROWS] - mean) / found.std_error[ROWS]
    assert error.abs().max() < 4
    for row in ROWS:
        torch.testing.assert_close(found.draws[:, row].T.cov(), spread, rtol=0, atol=0.1)
    sd = (weight.square().sum(1) / 4000).sqrt()  # of a mean of 4,000 draws of E[x | z]
    torch.testing.assert_close(found.std_error[ROWS].float(), sd.expand(2, -1), rtol=0.1, atol=0)


def test_other_rows_and_other_proposals_stay_as_they_are():
    vae, x, mask = problem(normal)
    by_guide = log_marginal(vae.model, vae.guide, x, mask=mask, num_particles=300, proposal=GuideProposal())
    assert bool((by_guide.std_error[ROWS] > 0).all())
    assert bool((by_guide.value[ROWS].abs() < 5 * by_guide.std_error[ROWS] + 0.2).all())


def site_mask(x, keep):
    with poutine.mask(mask=keep):
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1), obs=x)


def column_sites(x, keep):
    for d in range(2):
        pyro.sample(f"x{d}", dist.Normal(0.0, 1.0).mask(keep), obs=x[:, d])


def with_factor(x, keep):
    site_mask(x, keep)
    pyro.factor("f", -x.square().sum(-1))


def by_latent(x, keep, z=None):
    site_mask(x, keep & (z[..., 0] > -1))


@pytest.mark.parametrize(
    ("likelihood", "exact"), [(site_mask, True), (column_sites, True), (with_factor, False), (by_latent, False)]
)
def test_rows_are_found_by_the_masks_of_any_program(likelihood, exact):
    def model(x, keep):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            likelihood(x, keep, **({"z": z} if likelihood is by_latent else {}))

    def guide(x, keep):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_full((1,), 0.3), 1.0).to_event(1))

    x, keep = torch.ones(4, 2), torch.tensor([True, False, True, False])
    if likelihood is by_latent:
        keep = keep | True
    found = log_marginal(model, guide, x, keep, num_particles=300)
    assert (found.value == 0).tolist() == [exact and not kept for kept in keep.tolist()]
    if likelihood is with_factor:
        assert bool((found.value[1::2] + 2).abs().max() < 0.05)


def test_latents_that_are_summed_out_do_not_hide_such_rows():
    def model(x, mask):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.tensor([0.2, 0.8])), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            p = dist.Normal(z + y.unsqueeze(-1), 1.0).expand([*torch.broadcast_shapes(y.shape, z.shape[:-1]), D])
            pyro.sample("x", p.mask(mask).to_event(1), obs=torch.where(mask, x, 0.0))

    def guide(x, mask):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(1), 1.2).to_event(1))

    _, x, mask = problem(normal)
    check(log_marginal(model, guide, x, mask=mask, num_particles=300))
    with pytest.raises(ValueError, match="depends on discrete latents that are summed out"):
        impute(model, guide, x, mask=mask)


def test_a_bracket_of_such_rows_is_closed():
    vae, x, mask = problem(normal)
    found = bracket(vae.model, vae.guide, {"z": torch.randn(6, Z)}, x, mask=mask & False, num_particles=50)
    for value in found[:5]:
        assert value.abs().max() < 1e-6
