"""Refits on bootstrap rows: each is the fit of its own sample, and nothing passes from one to the next."""

from functools import partial
from itertools import islice

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from small_programs import make_vae
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyrovae import FactorVAEELBO, ImportanceWeightedELBO, LinearWarmup, fit, refit
from pyrovae.training import bootstrap_rows

X = torch.arange(12.0, dtype=torch.float64).square().sqrt() + torch.tensor([0.0, 0.3, -0.2, 0.7] * 3)
WEIGHTS = torch.tensor([1.0, 0, 2, 1, 3, 1, 0.5, 1, 1, 2, 0, 1])
GROUP = torch.tensor([5, 5, 5, 2, 2, 9, 9, 9, 9, 5, 2, 9])
DESCENT = {"elbo": Trace_ELBO(), "epochs": 30, "batch_size": 100, "optimizer": partial(torch.optim.SGD, lr=0.05)}


class Mean(nn.Module):
    """Normal data with an unknown mean, without latents: the maximum likelihood is the mean of the rows."""

    def __init__(self):
        super().__init__()
        self.location = nn.Module()
        self.location.mu = nn.Parameter(torch.randn((), dtype=torch.float64))
        self.start = self.location.mu.item()

    def model(self, x):
        pyro.module("location", self.location)
        with pyro.plate("rows", len(x), dim=-1):
            pyro.sample("x", dist.Normal(self.location.mu, 1.0), obs=x)

    def guide(self, x):
        pass


def rows_of(number, seed=0, group=None):
    order = int(np.random.SeedSequence([seed, number]).generate_state(2)[0])
    return bootstrap_rows(len(X), group=group, seed=order)


def means(**options):
    pyro.clear_param_store()
    return [pair.location.mu.item() for pair in refit(Mean, X, **{"refits": 4, **DESCENT, **options})]


@pytest.mark.parametrize("group", [None, GROUP], ids=["rows", "groups"])
def test_each_refit_is_the_fit_of_its_own_rows(group):
    found = means(group=group)
    assert found == pytest.approx([X[rows_of(r, group=group)].mean().item() for r in range(4)], abs=1e-8)
    assert len(set(found)) == 4


def test_case_weights_are_drawn_with_their_rows():
    expected = []
    for rows in map(rows_of, range(4)):
        expected.append(((WEIGHTS[rows] * X[rows]).sum() / WEIGHTS[rows].sum()).item())
    assert means(weights=WEIGHTS) == pytest.approx(expected, abs=1e-8)


def test_a_refit_depends_on_its_number_and_the_seed_alone():
    pyro.set_rng_seed(1)
    state = torch.get_rng_state()
    found = list(refit(Mean, X, refits=3, **DESCENT))
    assert torch.equal(torch.get_rng_state(), state)
    starts = [pair.start for pair in found]
    assert len(set(starts)) == 3
    pyro.set_rng_seed(2)
    again = list(islice(refit(Mean, X, refits=100, **DESCENT), 3))
    assert [pair.start for pair in again] == starts
    assert [pair.location.mu.item() for pair in again] == [pair.location.mu.item() for pair in found]
    assert [pair.start for pair in refit(Mean, X, refits=3, seed=1, **DESCENT)] != starts


def test_a_refit_of_a_vae_equals_fit_on_the_rows_with_the_same_seeds():
    x = torch.bernoulli(torch.full((30, 6), 0.4), generator=torch.Generator().manual_seed(1))
    options = {"elbo": ImportanceWeightedELBO(3), "epochs": 2, "batch_size": 8, "kl_weight": LinearWarmup(2)}
    *_, pair = refit(lambda: make_vae(int(torch.randint(99, ()))), {"x": x}, refits=2, seed=7, **options)
    order, noise = np.random.SeedSequence([7, 1]).generate_state(2).tolist()
    torch.manual_seed(noise)
    own = make_vae(int(torch.randint(99, ())))
    fit(own.model, own.guide, x[bootstrap_rows(30, seed=order)], seed=order, **options)
    for value, expected in zip(pair.parameters(), own.parameters(), strict=True):
        assert torch.equal(value, expected)


def test_bootstrap_rows_spread_a_mean_as_independent_data_do():
    """The variance of the mean of N rows is that of the N values, divided by N; 4,000 samples know it to 2.2 %."""
    found = torch.stack([X[bootstrap_rows(12, seed=s)].mean() for s in range(4_000)])
    assert found.var().item() == pytest.approx(X.var(unbiased=False).item() / 12, rel=0.1)
    assert found.mean().item() == pytest.approx(X.mean().item(), abs=0.08)


def test_bootstrap_rows_hold_whole_groups():
    """As many groups as there are, each with all of its rows, equally often on average."""
    drawn = torch.zeros(3)
    for seed in range(600):
        counts = bootstrap_rows(12, group=GROUP, seed=seed).bincount(minlength=12)
        groups = torch.stack([counts[torch.eq(GROUP, name)].unique() for name in (2, 5, 9)]).squeeze(
            -1
        )  # one count a group
        assert groups.sum() == 3
        drawn += groups
    assert (drawn / 600).tolist() == pytest.approx([1, 1, 1], abs=0.15)


class Free(Mean):
    def model(self, x):
        mu = pyro.param("mu", x.new_ones(()), constraint=dist.constraints.positive)
        with pyro.plate("rows", len(x), dim=-1):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def shared():
    shared.location = getattr(shared, "location", None) or Mean().location
    pair = Mean()
    pair.location = shared.location
    return pair


REFUSED = {
    "refits must be at least 1, got 0": {"refits": 0},
    "commit belongs to one run": {"commit": print},
    r"group must have shape \(12,\)": {"group": GROUP[:3]},
    "group holds one group alone": {"group": torch.ones(12)},
    r"weights must have shape \(12,\), one for each datum, got \(3,\)": {"weights": WEIGHTS[:3]},
    "got a DataLoader; give the data as tensors": {"data": DataLoader(TensorDataset(X))},
    "FactorVAEELBO has parameters of its own": {"elbo": FactorVAEELBO(2)},
    "got dict": {"make": dict},
    "parameter 'mu' by pyro.param, which stays in Pyro's store": {"make": Free},
    "gives parts of an earlier model again": {"make": shared},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_would_join_the_refits_is_refused(message):
    pyro.clear_param_store()
    options = {"make": Mean, "data": X, "refits": 2, **DESCENT, **REFUSED[message]}
    with pytest.raises(ValueError, match=message):
        list(refit(options.pop("make"), options.pop("data"), **options))
