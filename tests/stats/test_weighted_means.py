"""Weighted means over data and their errors, against the formulas by hand, repeated rows, and a simulation."""

import math

import pytest
import torch

from pyrovae.stats import (
    check_case_weights,
    effective_sample_size_of_weights,
    mean_and_std_error,
    monte_carlo_std_error,
)

V = torch.tensor([1.0, 4.0, -2.0, 3.5], dtype=torch.float64)
W = torch.tensor([2.0, 1.0, 0.5, 0.0])


def test_the_weighted_mean_and_its_errors_are_those_by_hand():
    """Those of svymean(~v, svydesign(ids=~1, weights=~w)) of R's survey for the data of positive weight."""
    mean, error = mean_and_std_error(V, W)
    m = (2 * 1 + 1 * 4 - 0.5 * 2) / 3.5
    assert mean == pytest.approx(m, rel=1e-15)
    by_hand = math.sqrt(3 / 2 * ((2 * (1 - m)) ** 2 + (4 - m) ** 2 + (0.5 * (-2 - m)) ** 2)) / 3.5
    assert error == pytest.approx(by_hand, rel=1e-15)
    assert monte_carlo_std_error(V.abs(), W) == pytest.approx(math.sqrt(4 + 16 + 1) / 3.5, rel=1e-15)
    assert effective_sample_size_of_weights(W) == pytest.approx(3.5**2 / 5.25, rel=1e-15)


def test_equal_weights_give_the_numbers_without_weights():
    equal = torch.full((4,), 0.3)
    assert mean_and_std_error(V, equal) == pytest.approx(mean_and_std_error(V), rel=1e-14)
    assert monte_carlo_std_error(V.abs(), equal) == pytest.approx(monte_carlo_std_error(V.abs()), rel=1e-14)
    assert effective_sample_size_of_weights(equal) == pytest.approx(4, rel=1e-14)


def test_a_weight_of_zero_is_a_removed_datum_even_if_its_value_is_infinite():
    values = torch.tensor([1.0, 4.0, -torch.inf])
    weights = torch.tensor([2.0, 1.0, 0.0])
    assert mean_and_std_error(values, weights) == mean_and_std_error(values[:2], weights[:2])
    mean, error = mean_and_std_error(values, torch.tensor([2.0, 0.0, 0.0]))
    assert mean == 1
    assert math.isnan(error)
    mean, error = mean_and_std_error(values, torch.ones(3))
    assert mean == -math.inf
    assert math.isnan(error)


def test_the_error_is_the_spread_of_the_weighted_mean_over_samples():
    """2,000 samples of 200 data, drawn with unequal probabilities, which the weights undo.

    The spread of 2,000 means is known to 1.6 % (one standard error), so that the seed is one of more than 99.9 % that
    pass at 6 %. The error without weights is more than 15 % off.
    """
    generator = torch.Generator().manual_seed(4)
    population = torch.randn(5_000, generator=generator, dtype=torch.float64).exp()
    chance = 0.2 + population.clamp_max(5)
    rows = torch.multinomial(chance.expand(2_000, -1), 200, replacement=True, generator=generator)
    found = [mean_and_std_error(population[r], 1 / chance[r]) for r in rows]
    means, errors = torch.tensor(found, dtype=torch.float64).T
    spread = means.std().item()
    assert abs(means.mean().item() - population.mean().item()) < 0.15 * spread
    assert errors.square().mean().sqrt().item() == pytest.approx(spread, rel=0.06)
    unweighted = torch.tensor([mean_and_std_error(population[r])[1] for r in rows[:200]]).mean().item()
    assert abs(unweighted / spread - 1) > 0.15


@pytest.mark.parametrize("weights", [torch.ones(3), torch.tensor([1.0, -1, 1, 1]), torch.zeros(4), W / 0])
def test_other_weights_are_refused(weights):
    with pytest.raises(ValueError, match="weights must"):
        check_case_weights(weights, 4)
    with pytest.raises(ValueError, match="weights must"):
        mean_and_std_error(V, weights)
