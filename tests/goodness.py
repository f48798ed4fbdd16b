"""Goodness of fit of draws to densities, with error rates fit for some hundreds of tests."""

import torch
from scipy import stats

# Chi-squared tests with 30 cells. 27 likelihoods of 6 entries and some more: 200 p-values, each below 1e-6 once in a
# million right ones, so that another seed fails with probability 2e-4. A scale 8 per cent off, with 20,000 draws, is
# missed with probability below 1e-4. (Pyro's own goodness of fit returns 1 for a chi-squared of some hundreds.)
NUM_SAMPLES, LEAST_P_VALUE, NUM_CELLS = 20_000, 1e-6, 30


def p_value_of_counts(probs, counts):
    """P-value of counts under probabilities; the values with fewer than ten expected counts make one cell, or none."""
    enough = probs * counts.sum() > 10
    probs, counts = (torch.cat([v[enough], v[~enough].sum()[None]]) for v in (probs, counts))
    if probs[-1] * counts.sum() < 10:
        assert counts[-1] < 60
        probs, counts = probs[:-1], counts[:-1]
    expected = probs / probs.sum() * counts.sum()
    return stats.chisquare(counts.numpy(), expected.numpy()).pvalue


def p_value_of_uniform(u):
    """P-value of draws that should be uniform on [0, 1]."""
    counts = torch.histc(u.double(), NUM_CELLS, 0, 1)
    assert counts.sum() == len(u)
    return p_value_of_counts(torch.full((NUM_CELLS,), 1 / NUM_CELLS, dtype=torch.float64), counts)


def within(estimate, exact, errors=4.5):
    """For ten data a right estimate is beyond 4.5 standard errors in 7 runs of 100,000, and the seeds are fixed."""
    assert torch.isfinite(estimate.std_error).all()
    assert estimate.std_error.max() < 0.2
    return bool(((estimate.value - exact).abs() <= errors * estimate.std_error + 1e-9).all())
