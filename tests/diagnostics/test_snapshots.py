"""Snapshots against closed forms of linear programs, their sizes, and the programs that have none."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from latent_programs import linear_programs

from pyrovae.diagnostics import snapshots, take_snapshot

ENCODER = torch.tensor([[0.8, 0.0, 0.1], [0.0, -0.5, 0.0]])
DECODER = torch.tensor([[1.0, 0.0], [2.0, -1.0], [0.0, 3.0]])
NOISE = torch.tensor([0.3, 0.1])


def test_codes_and_decoded_means_are_those_of_linear_programs():
    x = torch.randn(40, 3)
    found = take_snapshot(*linear_programs(ENCODER, NOISE, decoder=DECODER), x)
    assert found.names == ("z[0]", "z[1]")
    torch.testing.assert_close(found.mean, x @ ENCODER.T)
    assert found.prior.shape == (1000, 2)
    assert float((found.prior.std(0) - 1).abs().max()) < 0.12  # five standard errors
    torch.testing.assert_close(found.samples, found.prior[:6] @ DECODER.T)
    torch.testing.assert_close(found.reconstructions, found.draw[:6] @ DECODER.T)
    assert {value.dtype for value in found[1:]} == {torch.float32}
    noise = (found.draw - found.mean) / NOISE
    assert 0.6 < float(noise.std()) < 1.4
    wider = take_snapshot(*linear_programs(2 * ENCODER, 3 * NOISE, decoder=DECODER), x)
    torch.testing.assert_close((wider.draw - wider.mean) / (3 * NOISE), noise, rtol=1e-4, atol=1e-4)  # the same noise
    assert torch.equal(wider.prior, found.prior)


def test_means_without_closed_form_are_averages_and_the_global_random_state_stays():
    class Drawn(dist.Normal):
        @property
        def mean(self):
            raise NotImplementedError

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", Drawn(x, 0.4))

    x, before = torch.randn(300), torch.get_rng_state()
    found = take_snapshot(model, guide, x)
    assert torch.equal(torch.get_rng_state(), before)
    errors = (found.mean[:, 0] - x) / (0.4 / 4)  # of means of 16 draws
    assert 0.8 < float(errors.std()) < 1.2
    assert abs(float(errors.mean())) < 0.3


def test_the_prior_has_the_covariates_of_the_data_and_a_mask_leaves_means_alone():
    def model(x, covariates, mask):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(covariates[:, 0], 0.1))
            with pyro.poutine.mask(mask=mask):
                pyro.sample("x", dist.Normal(3 * z, 1.0), obs=x.nan_to_num())

    def guide(x, covariates, mask):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.where(mask, x.nan_to_num(), 0.5), 0.2))

    c = torch.tensor([[-10.0], [0.0], [10.0], [20.0]])
    x = torch.tensor([1.0, 2.0, torch.nan, 4.0])
    found = take_snapshot(model, guide, x, covariates=c, mask=~x.isnan())
    torch.testing.assert_close(found.mean[:, 0], torch.tensor([1.0, 2.0, 0.5, 4.0]))
    assert float((found.prior.reshape(-1, 4).mean(0) - c[:, 0]).abs().max()) < 0.05
    torch.testing.assert_close(found.samples, 3 * found.prior[: len(found.samples)])


def test_large_codes_and_data_keep_fewer_rows(monkeypatch):
    monkeypatch.setattr(snapshots, "_MOST_NUMBERS", 12)
    found = take_snapshot(*linear_programs(ENCODER, NOISE, decoder=DECODER), torch.randn(40, 3))
    assert [len(value) for value in found[1:]] == [6, 6, 6, 4, 4]
    wide = torch.zeros(2, 13)
    found = take_snapshot(*linear_programs(wide, NOISE, decoder=wide.T), torch.randn(40, 13))
    assert [len(value) for value in found[1:]] == [6, 6, 6, 0, 0]
    with pytest.raises(ValueError, match="at most 6 numbers"):
        take_snapshot(*linear_programs(torch.zeros(7, 3), torch.ones(7), decoder=torch.zeros(3, 7)), torch.randn(9, 3))


def test_discrete_latents_are_drawn_and_not_kept_and_sums_are_not_decoded():
    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.5))
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + 100 * y, 1.0), obs=x)

    def guide(x, classes=True):
        with pyro.plate("data", len(x)):
            if classes:
                pyro.sample("y", dist.Bernoulli(torch.sigmoid(x - 50)))
            pyro.sample("z", dist.Normal(0.1 * x, 0.2))

    x = torch.cat([torch.zeros(20), torch.full((20,), 100.0)])[torch.randperm(40)]
    found = take_snapshot(model, guide, x)
    assert found.names == ("z",)
    assert sorted({round(float(value), 3) for value in found.samples - found.prior[:6]} - {0.0}) in ([], [100.0])
    torch.testing.assert_close(found.reconstructions, found.draw[:6] + x[:6, None], rtol=0, atol=1e-3)
    summed = take_snapshot(model, lambda x: guide(x, classes=False), x)
    assert summed.reconstructions.shape == (0, 0)
    assert len(summed.samples) == 6

    def discrete(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("y", dist.Bernoulli(0.5)), 1.0), obs=x)

    def its_guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(torch.sigmoid(x)))

    with pytest.raises(ValueError, match="is discrete"):
        take_snapshot(discrete, its_guide, x)


def test_codes_that_are_not_finite_are_refused():
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(torch.full((len(x), 2), torch.inf)).to_event(1))

    model, _ = linear_programs(ENCODER, NOISE, decoder=DECODER)
    with pytest.raises(ValueError, match="is not finite"):
        take_snapshot(model, guide, torch.randn(9, 3))
