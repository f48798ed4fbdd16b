"""Exact log densities, in arithmetic of 40 digits, of the likelihoods for tables, with cases far from the middle.

Each entry is a likelihood given its network, the exact log p(x) given the outputs, and the cases (x, outputs...).
"""

import itertools

import mpmath as mp

from pyrovae import GammaLikelihood, OrderedLogisticLikelihood

FAR = (-1e4, -300.0, -104.0, -20.0, 0.0, 20.0, 80.0)


def log_sigmoid(a):
    return -mp.log1p(mp.exp(-a))


def log_beta(a, b):
    return mp.loggamma(a) + mp.loggamma(b) - mp.loggamma(a + b)


def gamma(x, a, s):
    s, x = mp.mpf(s), mp.mpf(x)
    return s * mp.log(s) - mp.loggamma(s) + s * (mp.log(x) - a) - mp.log(x) - s * x * mp.exp(-a)


def ordered_logistic(k, a, levels):
    with mp.workdps(400):  # for the difference of two numbers near 1
        cuts = [mp.log(mp.mpf(j) / (levels - j)) for j in range(1, levels)]
        below = mp.mpf(1) if k == levels - 1 else 1 / (1 + mp.exp(a - cuts[k]))
        difference = below - (0 if k == 0 else 1 / (1 + mp.exp(a - cuts[k - 1])))
        if difference > mp.mpf(10) ** -300:
            return mp.log(difference)
    low, high = (mp.log(mp.mpf(j) / (levels - j)) if 0 < j < levels else None for j in (k, k + 1))
    terms = [log_sigmoid(high - a)] if high is not None else []
    terms += [log_sigmoid(a - low)] if low is not None else []
    return sum(terms) + (mp.log1p(-mp.exp(low - high)) if len(terms) == 2 else 0)


TABLE_CASES = {
    **{
        f"ordered logistic, L = {levels}": (
            lambda n, levels=levels: OrderedLogisticLikelihood(n, levels),
            lambda k, a, levels=levels: ordered_logistic(k, a, levels),
            [(k, a) for k in {0, 1, levels - 2, levels - 1} for a in (*FAR, -0.7, 0.4, 1e4)],
        )
        for levels in (2, 3, 50)
    },
    **{
        f"gamma, s = {s:g}": (
            lambda n, s=s: GammaLikelihood(n, s),
            lambda x, a, s=s: gamma(x, a, s),
            [*itertools.product((1e-30, 0.3, 7.0, 3e20), FAR), (1.0, 0.01), (5.0, 1.6), (1e-3, -88.0), (1.0, -87.0)],
        )
        for s in (1e-3, 0.5, 1.0, 1e3, 1e6)
    },
}
