"""Rubin's rules against mice's published example, special cases, and repeated sampling."""

import math

import pytest
import torch

from pyrovae.stats import pool


def test_pool_gives_the_numbers_of_mice():
    found = pool(torch.tensor([-1.5457, -1.428]).double(), torch.tensor([0.9723, 1.041]).double() ** 2, df_complete=23)
    expected = {
        "estimate": -1.48685, "within": 1.014524, "between": 0.0069266, "riv": 0.010241, "lambda_": 0.010137,
        "df": 20.970, "fmi": 0.092729,
    }  # fmt: skip
    for name, value in expected.items():
        assert getattr(found, name).item() == pytest.approx(value, rel=1e-4), name
    assert found.std_error.item() ** 2 == pytest.approx(1.024914, rel=1e-6)


def test_equal_estimates_have_the_degrees_of_freedom_of_complete_data():
    q, u = torch.full((4, 2), 3.0), torch.full((4, 2), 0.25)
    assert bool(pool(q, u).df.isinf().all())
    found = pool(q, u, df_complete=20)
    torch.testing.assert_close(found.df, torch.full((2,), 21 / 23 * 20).double())
    torch.testing.assert_close(found.std_error, torch.full((2,), 0.5).double())


def test_one_draw_of_each_refit_is_the_rule_for_independent_imputations():
    q, u = torch.randn(5, 3), torch.rand(5, 3)
    for nested, plain in zip(pool(q.unsqueeze(1), u.unsqueeze(1), nested=True), pool(q, u), strict=True):
        torch.testing.assert_close(nested, plain)


@pytest.mark.parametrize(("refits", "draws"), [(2, 10), (5, 4), (20, 2)])
def test_intervals_of_nested_imputations_cover_the_truth(refits, draws):
    """Normal means with known variances: complete data 1, refits 0.6, draws 0.8."""
    generator = torch.Generator().manual_seed(0)
    runs, outer, inner = 20_000, 0.6, 0.8
    # The estimate of complete data errs by variance 1 + outer + inner; imputations scatter around the observed one.
    observed = (1 + outer + inner) ** 0.5 * torch.randn(runs, generator=generator)
    centres = observed + outer**0.5 * torch.randn(refits, runs, generator=generator)
    q = centres.unsqueeze(1) + inner**0.5 * torch.randn(refits, draws, runs, generator=generator)
    low, high = pool(q, torch.ones_like(q), nested=True).interval()
    covered = ((low < 0) & (high > 0)).double().mean().item()
    assert 0.94 < covered < 0.97
    naive = pool(q.flatten(0, 1), torch.ones_like(q).flatten(0, 1)).interval()
    assert ((naive[0] < 0) & (naive[1] > 0)).double().mean().item() < covered


@pytest.mark.parametrize(
    ("q", "u", "options", "words"),
    [
        ([1.0], [1.0], {}, "at least two imputations"),
        ([1.0, 2.0], [1.0], {}, "the same shape"),
        ([1.0, 2.0], [1.0, 2.0], {"nested": True}, "the same shape"),
        ([1.0, float("nan")], [1.0, 2.0], {}, "must be finite"),
        ([1.0, 2.0], [1.0, -2.0], {}, "not negative"),
        ([1.0, 2.0], [1.0, 2.0], {"df_complete": 0}, "df_complete must be above 0"),
    ],
)
def test_what_cannot_be_pooled_is_refused(q, u, options, words):
    with pytest.raises(ValueError, match=words):
        pool(torch.tensor(q), torch.tensor(u), **options)


def test_analyses_without_any_variance_have_an_exact_estimate():
    found = pool(torch.tensor([1.0, 1.0]), torch.zeros(2))
    assert (found.estimate, found.std_error, found.riv, found.lambda_, found.fmi) == (1, 0, 0, 0, 0)
    assert [end.item() for end in found.interval()] == [1, 1]


def test_estimates_without_a_variance_of_their_own_have_all_of_it_from_the_missing_cells():
    found = pool(torch.tensor([1.0, 2.0]), torch.zeros(2))
    assert found.riv == math.inf
    assert (found.lambda_, found.fmi) == (1, 1)


@pytest.mark.parametrize("level", [0, 1, 95, -0.5])
def test_a_level_that_is_no_probability_is_refused(level):
    with pytest.raises(ValueError, match=r"level must be between 0 and 1, got .* give 0\.95"):
        pool(torch.tensor([1.0, 2.0]), torch.ones(2)).interval(level)
