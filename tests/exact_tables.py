"""Exact log densities, in arithmetic of 40 digits, of the likelihoods for tables, with cases far from the middle.

Each entry is a likelihood given its network, the exact log p(x) given the outputs, and the cases (x, outputs...).
"""

import itertools

import mpmath as mp

from pyrovae import GammaLikelihood

FAR = (-1e4, -300.0, -104.0, -20.0, 0.0, 20.0, 80.0)


def log_sigmoid(a):
    return -mp.log1p(mp.exp(-a))


def log_beta(a, b):
    return mp.loggamma(a) + mp.loggamma(b) - mp.loggamma(a + b)


def gamma(x, a, s):
    s, x = mp.mpf(s), mp.mpf(x)
    return s * mp.log(s) - mp.loggamma(s) + s * (mp.log(x) - a) - mp.log(x) - s * x * mp.exp(-a)


TABLE_CASES = {
    **{
        f"gamma, s = {s:g}": (
            lambda n, s=s: GammaLikelihood(n, s),
            lambda x, a, s=s: gamma(x, a, s),
            [*itertools.product((1e-30, 0.3, 7.0, 3e20), FAR), (1.0, 0.01), (5.0, 1.6), (1e-3, -88.0), (1.0, -87.0)],
        )
        for s in (1e-3, 0.5, 1.0, 1e3, 1e6)
    },
}
