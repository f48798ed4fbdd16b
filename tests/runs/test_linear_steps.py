"""The smallest linear VAE: its closed forms against quadrature, and what it is trained to."""

import math

import linear_steps as study
import numpy as np
import pytest
from script_helpers import run

P = {"w": 0.8, "b": 0.4, "s": 0.6, "a": 0.3, "c": -0.2, "t": 0.7}
X = np.array([-1.0, 0.5, 2.5])


def log_normal(x, loc, scale):
    return -0.5 * ((x - loc) / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)


def test_elbo_and_log_p_agree_with_quadrature():
    z = np.linspace(-12, 12, 20_001)
    step = z[1] - z[0]
    elbo, log_p = [], []
    for x in X:
        joint = log_normal(z, 0, 1) + log_normal(x, P["w"] * z + P["b"], P["s"])
        log_q = log_normal(z, P["a"] * x + P["c"], P["t"])
        elbo.append((np.exp(log_q) * (joint - log_q)).sum() * step)
        log_p.append(math.log(np.exp(joint).sum() * step))
    assert study.both(P, X) == pytest.approx((np.mean(elbo), np.mean(log_p)), abs=1e-9)


def test_the_bound_is_tight_under_the_posterior():
    v = study.variance(P)
    exact = P | {"a": P["w"] / v, "c": -P["w"] * P["b"] / v, "t": P["s"] / v**0.5}
    elbo, log_p = study.both(exact, X)
    assert elbo == pytest.approx(log_p, abs=1e-12)


def test_the_study_prints_the_chosen_steps(tmp_path):
    flags = ("--steps", "[0,200]", "--num_data", 100, "--lr", 0.1, "--out", "x.png")
    result = run("linear_steps", *flags, cwd=tmp_path)
    header, *rows = result.stdout.splitlines()[2:5]
    assert header.split()[:3] == ["step", "w", "s"]
    first, last = ([float(cell) for cell in row.split()] for row in rows)
    assert (first[0], last[0]) == (0, 200)
    elbo, log_p, best = last[-3:]
    assert elbo <= log_p <= best + 1e-4
    assert log_p > first[-2] + 5
    assert last[3] == pytest.approx(float(result.stdout.split()[5]), rel=0.1)  # sd of x, and of the data
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
