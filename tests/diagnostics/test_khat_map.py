"""The map of k-hat: its closed form for normal guides, gaps, and the order of the worst data."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearGaussian

from pyrovae.diagnostics import khat_map
from pyrovae.stats import LogMarginal

SD = torch.tensor([0.9, 0.8, 0.6, 0.5, 0.4])


def model(x):
    """The posterior is N(0, 1) at every datum, since x does not depend on z."""
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([len(x)]), obs=x)


def guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(0.0, x.abs()))


def test_khat_of_a_narrow_normal_is_one_minus_its_variance():
    """The weights are exp(e^2 (1 - s^2) / 2), whose tail has the shape 1 - s^2; the estimate is low near 1."""
    found = khat_map(model, guide, SD, num_particles=20_000)
    exact = 1 - SD.double() ** 2
    assert bool(((found.khat - exact).abs()[:3] < 0.1).all())
    assert bool(((found.khat - exact) < 0.1).all())
    assert found.worst[:3].sort().values.tolist() == [2, 3, 4]
    assert found.num_unreliable in (1, 2)
    assert found.limit == 0.7
    gap = -SD.double().log() + (SD.double() ** 2 - 1) / 2  # KL of the two normals
    assert bool(((found.gap - gap).abs() < 4.5 * found.gap_error + 1e-4).all())
    torch.testing.assert_close(found.log_p, dist.Normal(0.0, 1.0).log_prob(SD).double(), rtol=0, atol=0.01)


def test_rows_are_the_worst_data_with_given_log_p():
    oracle = LinearGaussian()
    x = oracle.data(8)
    known = oracle.log_marginal(x)
    log_p = LogMarginal(known, torch.zeros(8), torch.ones(8), torch.zeros(8))
    vae = oracle.vae(sd_factor=0.6)
    found = khat_map(vae.model, vae.guide, x, num_particles=200, log_p=log_p)
    rows = found.rows(3)
    assert [row["index"] for row in rows] == found.worst[:3].tolist()
    assert rows[0]["khat"] == found.khat.max()
    assert [row["log_p"] for row in rows] == known[found.worst[:3]].tolist()
    torch.testing.assert_close(found.gap, known - found.elbo)
    assert found.limit == pytest.approx(1 - 1 / math.log10(200))
    exact = khat_map(oracle.vae().model, oracle.vae().guide, x, num_particles=50, log_p=log_p)
    assert bool((exact.khat == -torch.inf).all())
    assert bool((exact.gap.abs() < 1e-5).all())
    with pytest.raises(ValueError, match=r"log_p has shape \(8,\); expected one value for each of 5 data"):
        khat_map(vae.model, vae.guide, x[:5], num_particles=5, log_p=log_p)
