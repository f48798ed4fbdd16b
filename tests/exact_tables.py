"""Exact log densities, in arithmetic of 40 digits, of the likelihoods for tables, with cases far from the middle.

Each entry is a likelihood given its network, the exact log p(x) given the outputs, and the cases (x, outputs...).
"""

import itertools

import mpmath as mp

from pyrovae import (
    GammaLikelihood,
    HurdleGammaLikelihood,
    HurdleLogNormalLikelihood,
    OrderedLogisticLikelihood,
    ZeroOneInflatedBetaLikelihood,
)

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


def hurdle(log_p, x, a, gate):
    return log_sigmoid(gate) if x == 0 else log_sigmoid(-gate) + log_p(x, a)


def log_normal(x, a):
    x = mp.mpf(x)
    return -((mp.log(x) - a) ** 2) * 8 - mp.log(mp.mpf(1) / 16 * 2 * mp.pi) / 2 - mp.log(x)


def zero_one_beta(x, a, zero, one, s):
    log_norm = mp.log1p(mp.exp(zero) + mp.exp(one))
    if x in (0, 1):
        return (zero if x == 0 else one) - log_norm
    p, q = s * mp.exp(log_sigmoid(a)), s * mp.exp(log_sigmoid(-a))
    return (p - 1) * mp.log(x) + (q - 1) * mp.log1p(-x) - log_beta(p, q) - log_norm


GATES = (-1e4, -30.0, 0.0, 80.0)
TABLE_CASES = {
    "hurdle log-normal": (
        lambda n: HurdleLogNormalLikelihood(n, 0.25),
        lambda x, a, gate: hurdle(log_normal, x, a, gate),
        list(itertools.product((0.0, 1e-30, 1.0, 3e20), FAR, GATES)),
    ),
    "hurdle gamma": (
        lambda n: HurdleGammaLikelihood(n, 2.5),
        lambda x, a, gate: hurdle(lambda x, a: gamma(x, a, 2.5), x, a, gate),
        list(itertools.product((0.0, 1e-30, 1.0, 3e20), FAR, GATES)),
    ),
    "zero-one beta": (
        lambda n: ZeroOneInflatedBetaLikelihood(n, 8.0),
        lambda x, a, zero, one: zero_one_beta(x, a, zero, one, mp.mpf(8)),
        list(itertools.product((0.0, 1e-30, 0.4, 1.0), (-1e4, -20.0, 0.3, 80.0), GATES, (-1e4, 2.0, 80.0))),
    ),
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
