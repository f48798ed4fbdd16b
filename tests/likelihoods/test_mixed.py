"""Tests of likelihoods with point masses beside a density: total mass, moments, draws, base measure."""

import json
import math

import pytest
import torch
from catalogue import LIKELIHOODS, D, Z
from goodness import LEAST_P_VALUE, NUM_SAMPLES, p_value_of_counts, p_value_of_uniform
from scipy import stats

from pyrovae import MLP, Model, NormalLikelihood, StandardNormalPrior
from pyrovae.distributions import Hurdle, LogNormal, MeanGamma, ZeroOneInflatedBeta
from pyrovae.evidence.evaluation import base_measure
from pyrovae.runs.readers import _MEASURE

ATOMS = {name: (0.0,) if "hurdle" in name else (0.0, 1.0) for name in LIKELIHOODS if name[:6] in ("hurdle", "zero-o")}
ATOMS = {name: atoms for name, atoms in ATOMS.items() if "inflated" not in name}


def entries(name):
    with torch.no_grad():
        return LIKELIHOODS[name]().double()(torch.randn(Z, dtype=torch.float64)).base_dist


def between(name):
    """Points between the atoms, and their weights in an integral, with shape (S, 1)."""
    u = torch.linspace(-25, 25, 100_001, dtype=torch.float64)[:, None]
    step = u[1] - u[0]
    return (u.exp(), u.exp() * step) if "hurdle" in name else (u.sigmoid(), u.sigmoid() * (-u).sigmoid() * step)


@pytest.mark.parametrize("name", ATOMS)
def test_atoms_and_density_have_mass_one_together_and_their_moments(name):
    p = entries(name)
    x, weight = between(name)
    mass = p.log_prob(x.expand(-1, D)).exp() * weight
    atoms = torch.tensor(ATOMS[name], dtype=torch.float64)[:, None].expand(-1, D)
    x, mass = torch.cat([x.expand(-1, D), atoms]), torch.cat([mass, p.log_prob(atoms).exp()])
    torch.testing.assert_close(mass.sum(0), torch.ones(D, dtype=torch.float64), rtol=1e-7, atol=1e-7)
    mean = (mass * x).sum(0)
    torch.testing.assert_close(mean, p.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close((mass * (x - mean) ** 2).sum(0), p.variance, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ATOMS)
def test_draws_have_the_shares_of_the_atoms_and_the_density_between(name):
    p = entries(name)
    draws = p.sample((NUM_SAMPLES,))
    for d in range(D):
        column, at = draws[:, d], [draws[:, d] == atom for atom in ATOMS[name]]
        probs = torch.stack([p.log_prob(torch.full((D,), atom).double())[d].exp() for atom in ATOMS[name]])
        probs = torch.cat([probs, 1 - probs.sum()[None]])
        counts = torch.stack([*(each.sum() for each in at), NUM_SAMPLES - sum(each.sum() for each in at)]).double()
        assert p_value_of_counts(probs, counts) > LEAST_P_VALUE
        inner = column[~torch.stack(at).any(0)].numpy()
        base = p.base_dist
        if "log-normal" in name:
            exact = stats.lognorm(base.scale[d], scale=base.loc[d].exp())
        elif "gamma" in name:
            s = base.concentration[d]
            exact = stats.gamma(s, scale=base.mean[d] / s)
        else:
            s, mean = base.concentration[d], base.mean[d]
            exact = stats.beta(mean * s, (1 - mean) * s)
        assert p_value_of_uniform(torch.as_tensor(exact.cdf(inner))) > LEAST_P_VALUE


def test_the_distribution_function_of_a_hurdle_jumps_at_zero():
    gate = torch.tensor([-1.0, 2.0], dtype=torch.float64)
    x = torch.tensor([0.0, 0.5, 3.0], dtype=torch.float64)[:, None]
    for base in (LogNormal(torch.zeros(2).double(), torch.ones(2).double()), MeanGamma(torch.zeros(2).double(), 2.0)):
        p = Hurdle(base, gate)
        right = gate.sigmoid() + (1 - gate.sigmoid()) * torch.where(x > 0, base.cdf(x.clamp(min=1e-9)), 0.0)
        torch.testing.assert_close(p.cdf(x), right)
        below = Hurdle(base, gate, validate_args=False).cdf(torch.tensor(-1.0).double())
        assert below.tolist() == [0, 0]


@pytest.mark.parametrize(
    "p",
    [
        Hurdle(LogNormal(torch.zeros(2), torch.ones(2)), torch.zeros(2), validate_args=True),
        Hurdle(MeanGamma(torch.zeros(2), 1.0), torch.zeros(2), validate_args=True),
        ZeroOneInflatedBeta(torch.zeros(2), 3.0, torch.zeros(2), torch.zeros(2), validate_args=True),
    ],
    ids=["log-normal", "gamma", "beta"],
)
def test_mixed_distributions_expand_and_validate(p):
    wide = p.expand((3, 2))
    x = wide.sample((100,))
    assert x.shape == (100, 3, 2)
    torch.testing.assert_close(wide.log_prob(x), p.log_prob(x))
    torch.testing.assert_close(wide.mean, p.mean.expand(3, 2))
    for outside in (-0.5, math.nan):
        with pytest.raises(ValueError, match="within the support"):
            wide.log_prob(torch.full((2,), outside))


def test_base_measures_differ_between_densities_with_and_without_atoms():
    found = {}
    for name in ATOMS:
        model = Model(StandardNormalPrior(Z), LIKELIHOODS[name]())
        found[name] = base_measure(model, model(size=3).detach())
    plain = Model(StandardNormalPrior(Z), NormalLikelihood(MLP(Z, D)))
    assert base_measure(plain, torch.zeros(3, D)) == "lebesgue"
    assert {found[name] for name in ATOMS if "hurdle" in name} == {"lebesgue with mass at 0"}
    assert {found[name] for name in ATOMS if "beta" in name} == {"lebesgue with mass at 0, 1"}
    for measure in ("counting", "lebesgue", *found.values()):
        assert _MEASURE.fits(json.loads(json.dumps(measure)))
    for wrong in ("lebesgue with mass at ", "lebesgue with mass at x", "counting with mass at 0", 3, None):
        assert not _MEASURE.fits(wrong)
