"""Guides with one row of parameters per datum, and programs that hold their data, are told what to write."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from pyrovae import (
    ImportanceWeightedELBO,
    ais,
    evidence_lower_bound,
    exact_log_marginal,
    fit,
    ladder,
    log_evidence,
    log_marginal,
)
from pyrovae.densities import weighted_draws


@pytest.fixture(autouse=True)
def _clean():
    pyro.clear_param_store()
    pyro.set_rng_seed(5)


def model(x, *rows):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def log_p(x):
    return -0.25 * x.double() ** 2 - 0.5 * math.log(4 * math.pi)


def by_param(x):
    loc = pyro.param("row_loc", torch.zeros(10))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0))


def by_slice(x):
    loc = pyro.param("row_loc", torch.zeros(10, 2))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc[:, 0] + 0 * x, 1.0))


class ByModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.row_loc = nn.Parameter(torch.zeros(10))

    def __call__(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.row_loc + 0 * x, 1.0))


GUIDES = {"param": lambda: by_param, "slice": lambda: by_slice, "module": ByModule}


@pytest.mark.parametrize("make", GUIDES.values(), ids=GUIDES.keys())
def test_a_guide_with_one_row_per_datum_names_its_parameter_when_batches_are_smaller(make):
    pyro.param("another", torch.zeros(10))  # of another program
    for elbo in (Trace_ELBO(), ImportanceWeightedELBO(num_particles=2)):
        with pytest.raises(ValueError, match=r"parameter 'row_loc' has 10 rows.*on 4 of.*batch_size=10") as caught:
            fit(model, make(), torch.randn(10), elbo=elbo, epochs=1, batch_size=4)
        assert "\n" not in str(caught.value)
    fit(model, make(), torch.randn(10), elbo=Trace_ELBO(), epochs=1, batch_size=10)


@pytest.mark.parametrize("make", GUIDES.values(), ids=GUIDES.keys())
@pytest.mark.parametrize("estimate", [log_marginal, evidence_lower_bound, log_evidence, ladder])
def test_a_guide_with_one_row_per_datum_names_its_parameter_on_other_data(make, estimate):
    with pytest.raises(ValueError, match=r"'row_loc' has 10 rows, .* 7 other data; give the 10 data") as caught:
        estimate(model, make(), torch.randn(7), num_particles=10)
    assert "\n" not in str(caught.value)


def test_a_guide_with_one_row_per_datum_is_told_to_leave_out_other_validation_data():
    with pytest.raises(ValueError, match="7 validation data; leave out validation"):
        fit(model, by_param, torch.randn(10), elbo=Trace_ELBO(), epochs=1, validation=torch.randn(7))


def test_rows_indexed_by_row_numbers_train_in_batches_and_are_evaluated():
    def guide(x, rows):
        loc = pyro.param("row_loc", torch.zeros(10))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc[rows], 0.8))

    data = torch.randn(10), torch.arange(10)
    fit(model, guide, data, elbo=Trace_ELBO(), epochs=3, batch_size=4)
    found = log_marginal(model, guide, *data, num_particles=300)
    assert ((found.value - log_p(data[0])).abs() < 4.5 * found.std_error + 1e-4).all()


X = torch.tensor([0.5, -1.2, 2.0])


def closed_model():
    model(X)


def closed_guide():
    with pyro.plate("data", len(X)):
        pyro.sample("z", dist.Normal(X / 2, 0.75))


@pytest.mark.parametrize("args", [(), (None,)], ids=["no data", "None"])
def test_log_evidence_takes_programs_that_hold_their_data(args):
    found = log_evidence(closed_model, closed_guide, *args, num_particles=1000)
    assert abs(found.value.item() - log_p(X).sum().item()) < 4.5 * found.std_error.item() + 1e-4


def test_log_evidence_passes_none_to_programs_that_take_it():
    seen = []

    def optional(x=None):
        seen.append(x)
        closed_model()

    log_evidence(optional, lambda x: closed_guide(), None, num_particles=10)
    assert seen
    assert all(x is None for x in seen)


def test_estimators_per_datum_say_what_to_write_for_programs_that_hold_their_data():
    betas = torch.linspace(0, 1, 3)
    calls = [
        lambda: log_marginal(closed_model, closed_guide, num_particles=10),
        lambda: log_marginal(closed_model, closed_guide, None, num_particles=10),
        lambda: evidence_lower_bound(closed_model, closed_guide, num_particles=10),
        lambda: ladder(closed_model, closed_guide, num_particles=10),
        lambda: weighted_draws(closed_model, closed_guide),
        lambda: exact_log_marginal(closed_model),
        lambda: ais(closed_model, num_particles=10, betas=betas),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"needs data as arguments.*write model\(x\).*log_evidence\(") as caught:
            call()
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"fit needs data as arguments.*write model\(x\)"):
        fit(closed_model, closed_guide, (), elbo=Trace_ELBO(), epochs=1)


def test_sums_over_too_many_combinations_or_crossing_plates_say_what_to_do():
    def chain(x):
        """States of a chain without pyro.markov: 2^24 combinations, which the last observation joins."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            states = [pyro.sample(f"s_{t}", dist.Bernoulli(0.5)) for t in range(24)]
            pyro.sample("x", dist.Normal(z + sum(states), 1.0), obs=x)

    def crossing(x):
        data = pyro.plate("data", len(x))
        with data:
            pyro.sample("z", dist.Normal(0.0, 1.0))
        rows, columns = pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-3)
        with data:
            with rows:
                a = pyro.sample("a", dist.Bernoulli(0.5))
            with columns:
                b = pyro.sample("b", dist.Bernoulli(0.5))
            with rows, columns:
                pyro.sample("x", dist.Normal(a + 2 * b, 1.0), obs=x.expand(3, 2, len(x)))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.8))

    for program, words in (
        (chain, r"sites \['s_0'.*16,777,216 combinations.*million.*let the guide draw some sites, or use pyro.markov"),
        (crossing, r"plates that cross.*let the guide draw .*, or replace a plate by a loop"),
    ):
        for estimate in (log_marginal, log_evidence):
            with pytest.raises(ValueError, match=words) as caught:
                estimate(program, guide, torch.randn(6), num_particles=10)
            assert "\n" not in str(caught.value)
