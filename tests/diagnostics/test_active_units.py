"""Activity of latent dimensions: unbiased against the variance of the posterior means."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrovae.diagnostics import unit_activity


def guide(x):
    """Two sites whose means are 2 x_0, 0 and, in the second, x_1 / 10; wide, so that few draws are far off."""
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.stack([2 * x[:, 0], 0 * x[:, 0]], -1), 3.0).to_event(1))
        pyro.sample("top", dist.Normal(0.1 * x[:, 1:], 1.0).to_event(1))


def test_unit_activity_is_the_variance_of_the_means_for_any_number_of_draws():
    x = torch.randn(400, 2)
    exact = {"z": torch.stack([4 * x[:, 0].var(), torch.zeros(())]).double(), "top": (x[:, 1:].var(0) / 100).double()}
    for draws in (2, 30):
        found = [unit_activity(guide, x, num_particles=draws, seed=seed) for seed in range(60)]
        for name, expected in exact.items():
            values = torch.stack([one[name] for one in found])
            error = values.std(0) / len(values) ** 0.5
            assert bool((abs(values.mean(0) - expected) < 4.5 * error).all()), (draws, name)
            assert bool((error < 0.15).all())


def test_unit_activity_repeats_for_a_seed_and_runs_in_chunks(monkeypatch):
    x = torch.randn(50, 2)
    before = torch.random.get_rng_state()
    one = unit_activity(guide, x, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.testing.assert_close(unit_activity(guide, x, seed=3), one, rtol=0, atol=0)
    monkeypatch.setattr("pyrovae.diagnostics.active_units._DRAWS_AT_ONCE", 64 * 20)
    chunked = unit_activity(guide, x, seed=3)
    torch.testing.assert_close(chunked["z"][0], one["z"][0], rtol=0.3, atol=0)
    assert not torch.equal(chunked["z"], one["z"])


def test_unit_activity_needs_two_data_and_two_draws():
    for data, draws in ((1, 5), (5, 1)):
        with pytest.raises(ValueError, match="at least two data and two draws"):
            unit_activity(guide, torch.randn(data, 2), num_particles=draws)
