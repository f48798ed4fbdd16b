"""Goodness of fit of draws to densities, with error rates for several hundred tests."""

import torch
from scipy import stats

# Chi-squared tests with 30 cells. 27 likelihoods of 6 entries and further tests make 200 p-values. Under the null
# hypothesis each is below 1e-6 with probability 1e-6, so another seed fails with probability 2e-4. With 20,000 draws,
# a scale that is wrong by 8 per cent is missed with probability below 1e-4. (Pyro's own goodness of fit returns 1 for a
# chi-squared of several hundred.)
NUM_SAMPLES, LEAST_P_VALUE, NUM_CELLS = 20_000, 1e-6, 30


def p_value_of_counts(probs, counts):
    """Return the p-value of counts under probabilities. Values with fewer than ten expected counts are pooled."""
    enough = probs * counts.sum() > 10
    probs, counts = (torch.cat([v[enough], v[~enough].sum()[None]]) for v in (probs, counts))
    if probs[-1] * counts.sum() < 10:
        assert counts[-1] < 60
        probs, counts = probs[:-1], counts[:-1]
    expected = probs / probs.sum() * counts.sum()
    return stats.chisquare(counts.numpy(), expected.numpy()).pvalue


def p_value_of_uniform(u):
    """Return the p-value of draws under the uniform distribution on [0, 1]."""
    counts = torch.histc(u.double(), NUM_CELLS, 0, 1)
    assert counts.sum() == len(u)
    return p_value_of_counts(torch.full((NUM_CELLS,), 1 / NUM_CELLS, dtype=torch.float64), counts)


def within(estimate, exact, errors=4.5):
    """Return whether estimates lie within 4.5 standard errors.

    For ten data, a correct estimate fails in 7 of 100,000 runs, and the seeds are fixed.
    """
    assert torch.isfinite(estimate.std_error).all()
    assert estimate.std_error.max() < 0.2
    return bool(((estimate.value - exact).abs() <= errors * estimate.std_error + 1e-9).all())
