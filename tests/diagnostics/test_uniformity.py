"""Tests of uniformity: exact p-values by enumeration, false alarms, shapes, and combinations of p-values."""

import math
from itertools import product

import pytest
import torch
from scipy import stats

from pyrovae.diagnostics import cauchy_combination, check_uniform, ecdf_band, holm, randomised_pit

NUM_SIMULATIONS = 5000


def smallest_pointwise(ranks, laws):
    """The statistic by SciPy's binomial distributions, one point at a time."""
    found = []
    for i, law in enumerate(laws, 1):
        count = sum(rank < i for rank in ranks)
        found.append(2 * min(law.cdf(count), law.sf(count - 1), 0.5))
    return min(found)


def exact_p_values(num_data, num_ranks):
    """The p-value of each possible set of ranks, by listing all of them."""
    laws = [stats.binom(num_data, i / num_ranks) for i in range(1, num_ranks)]
    every = {ranks: smallest_pointwise(ranks, laws) for ranks in product(range(num_ranks), repeat=num_data)}
    values = list(every.values())
    return {r: sum(v <= value + 1e-12 for v in values) / len(values) for r, value in every.items()}


@pytest.mark.parametrize(("num_data", "num_ranks"), [(4, 3), (2, 5)])
def test_the_p_value_is_the_exact_one_up_to_simulation(num_data, num_ranks):
    exact = exact_p_values(num_data, num_ranks)
    for ranks, p in list(exact.items())[:: max(1, len(exact) // 25)]:
        found = check_uniform(torch.tensor(ranks), num_ranks)
        assert abs(found.p_value - p) < 4.5 * math.sqrt(p * (1 - p) / NUM_SIMULATIONS) + 1 / NUM_SIMULATIONS
        below = [sum(rank < i for rank in ranks) / num_data - i / num_ranks for i in range(1, num_ranks)]
        torch.testing.assert_close(found.difference, torch.tensor(below, dtype=torch.float64))


@pytest.mark.parametrize("num_ranks", [20, None])
def test_the_test_rejects_where_the_ecdf_leaves_the_band(num_ranks):
    generator, outcomes = torch.Generator().manual_seed(5), set()
    for _ in range(80):
        u = torch.rand(200, generator=generator, dtype=torch.float64) ** 1.15
        found = check_uniform((u * num_ranks).long() if num_ranks else u, num_ranks)
        band = ecdf_band(200, num_ranks)
        assert torch.equal(band.lower, found.lower)
        assert torch.equal(band.upper, found.upper)
        left = bool(((found.difference < found.lower - 1e-12) | (found.difference > found.upper + 1e-12)).any())
        assert left == found.rejects == (found.p_value <= 0.05)
        outcomes.add(left)
    assert outcomes == {True, False}


def false_alarms(num_data, num_draws, repetitions, seed):
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.randint(num_draws + 1, (repetitions, num_data), generator=generator)
    return sum(check_uniform(r, num_draws + 1).rejects for r in ranks) / repetitions


def test_false_alarms_of_ranks_are_at_the_nominal_level():
    # With the true rate 0.05, 0.03 to 0.07 holds for 800 repetitions but for 1 in 100 seeds.
    assert 0.03 < false_alarms(100, 9, 800, 0) < 0.07


@pytest.mark.slow
@pytest.mark.parametrize(("num_data", "num_draws"), [(200, 19), (1000, 99), (1000, 999)])
def test_false_alarms_are_at_the_nominal_level_for_many_draws(num_data, num_draws):
    assert 0.03 < false_alarms(num_data, num_draws, 2000, 1) < 0.07


def test_more_ranks_than_points_keep_their_probabilities():
    found = ecdf_band(50, 1500)
    assert len(found.points) == 999
    assert torch.allclose(found.points * 1500, (found.points * 1500).round())
    law = stats.binom(50, found.points.numpy())
    counts = ((found.upper + found.points) * 50).round().numpy()
    assert (2 * law.sf(counts - 1) >= found.gamma * (1 - 1e-9)).all()
    assert (2 * law.sf(counts)[counts < 50] < found.gamma).all()


def test_shapes_name_the_fault_of_the_distribution_that_values_are_ranked_against():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(600, generator=generator)
    draws = torch.randn(19, 600, generator=generator)
    for scale, loc, shape in (
        (1.0, 0.0, "none"), (0.7, 0.0, "too narrow"), (1.5, 0.0, "too wide"), (1.0, 0.4, "shifted up"),
        (1.0, -0.4, "shifted down"),
    ):  # fmt: skip
        found = check_uniform((scale * draws + loc < truth).sum(0), 20)
        assert found.shape == shape
        assert found.rejects == (shape != "none")
        u = torch.distributions.Normal(loc, scale).cdf(truth).double()
        assert check_uniform(u).shape == shape
    assert check_uniform((torch.arange(600) % 5) / 5 + 0.1).shape == "other"  # atoms


def test_moments_are_z_scores():
    generator = torch.Generator().manual_seed(3)
    for num_ranks in (4, None):
        scores = []
        for _ in range(200):
            u = torch.rand(50, generator=generator, dtype=torch.float64)
            found = check_uniform((u * num_ranks).long() if num_ranks else u, num_ranks)
            scores.append([found.shift, found.spread])
        scores = torch.tensor(scores)
        assert (abs(scores.mean(0)) < 4.5 / 200**0.5).all()
        assert (abs(scores.std(0) - 1) < 4.5 / 20).all()


def test_a_tiny_p_value_is_not_cut_at_the_number_of_simulations():
    found = check_uniform(torch.zeros(500, dtype=torch.long), 4)
    assert found.p_value == pytest.approx(3 * 2 * 0.25**500, rel=1e-6)


def test_randomised_pit_of_counts_is_uniform_and_repeats():
    law = stats.poisson(1.3)
    x = law.rvs(2000, random_state=0)
    lower, upper = torch.from_numpy(law.cdf(x - 1)), torch.from_numpy(law.cdf(x))
    u = randomised_pit(lower, upper, seed=2)
    assert bool(((u >= lower) & (u <= upper)).all())
    assert check_uniform(u).p_value > 0.01
    assert check_uniform(upper).p_value < 1e-50
    assert check_uniform((lower + upper) / 2).p_value < 1e-20
    state = torch.random.get_rng_state()
    assert torch.equal(u, randomised_pit(lower, upper, seed=2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert not torch.equal(u, randomised_pit(lower, upper, seed=3))


def test_holm_multiplies_the_smallest_by_their_number():
    found = holm(torch.tensor([0.01, 0.04, 0.03, 0.005], dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([0.03, 0.06, 0.06, 0.02], dtype=torch.float64))
    assert holm(torch.tensor([0.9, 0.6])).tolist() == [1.0, 1.0]


def test_the_cauchy_combination_of_independent_p_values_is_uniform():
    p = torch.rand(2000, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    combined = torch.tensor([cauchy_combination(row) for row in p], dtype=torch.float64)
    assert stats.kstest(combined.numpy(), "uniform").pvalue > 1e-3
    assert cauchy_combination(torch.tensor([0.3], dtype=torch.float64)) == pytest.approx(0.3)
    copies = torch.full((7,), 1e-40, dtype=torch.float64)
    assert cauchy_combination(copies) == pytest.approx(1e-40)
    assert cauchy_combination(torch.tensor([1e-8, 1.0])) == pytest.approx(2e-8, rel=1e-3)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: check_uniform(torch.tensor([0, 5]), 5), "ranks among 4 draws lie between 0 and 4"),
        (lambda: check_uniform(torch.tensor([0.5, math.nan])), "PIT values lie between 0 and 1"),
        (lambda: check_uniform(torch.tensor([])), "at least one"),
        (lambda: ecdf_band(10, 1), "num_ranks must be at least 2"),
        (lambda: ecdf_band(0, 3), "num_data must be at least 1"),
        (lambda: ecdf_band(10, 3, level=1.0), "level must lie between 0 and 1"),
        (lambda: holm(torch.tensor([0.5, 1.5])), "p-values need shape"),
        (lambda: randomised_pit(torch.tensor([0.5]), torch.tensor([0.4])), "lower <= upper"),
        (lambda: randomised_pit(torch.tensor([0.5]), torch.tensor([0.6, 0.7])), "same shape"),
    ],
)
def test_mistakes_are_told(run, message):
    with pytest.raises(ValueError, match=message):
        run()
