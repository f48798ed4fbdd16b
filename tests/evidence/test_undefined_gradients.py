"""Methods that follow gradients name the data whose gradients are NaN; their numbers agree with quadrature."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrovae import ais, linear_schedule
from pyrovae.evidence import bracket, refine

X = torch.tensor([[0.5, 1.0], [-1.0, 0.0], [1.5, 1.0]], dtype=torch.float64)  # x, and whether z has a hidden NaN


def model(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        hidden = torch.where(x[:, 1] > 0, z - 5, z.abs() + 1).sqrt()  # NaN for data 0 and 2 unless z > 5
        mean = torch.where((x[:, 1] > 0) & (z < 5), torch.tanh(z), torch.where(z < 5, z, hidden))
        pyro.sample("x", dist.Normal(mean, 0.3), obs=x[:, 0])


def guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(0.0 * x[:, 0], 1.0))


def by_quadrature():
    z = torch.linspace(-4.9, 4.9, 100_001, dtype=torch.float64)
    found = []
    for x, hides in X:
        mean = torch.tanh(z) if hides else z
        density = torch.distributions.Normal(0.0, 1.0).log_prob(z)
        density = density + torch.distributions.Normal(mean, 0.3).log_prob(x)
        found.append(density.logsumexp(0) + (z[1] - z[0]).log())
    return torch.stack(found)


@pytest.mark.parametrize("execution", ["eager", "recorded"])
@pytest.mark.thin(1)
def test_ais_names_the_data_whose_gradients_are_nan(execution):
    pyro.set_rng_seed(0)
    with pytest.warns(UserWarning, match=r"gradient .* is NaN .* for data 0 \(100%\), 2 \(100%\), .*do not move"):
        found = ais(model, X, num_particles=1000, betas=linear_schedule(20), num_tuning=40, execution=execution)
    assert ((found.value - by_quadrature()).abs() < 5 * found.std_error).all()
    assert found.std_error[0] > found.std_error[1]


def test_bracket_names_the_data_whose_gradients_are_nan():
    pyro.set_rng_seed(0)
    settings = {"num_particles": 20, "betas": linear_schedule(3), "num_tuning": 10}
    with pytest.warns(UserWarning, match=r"for data 0 \(100%\), 2 \(100%\), "):
        bracket(model, None, {"z": torch.zeros(3, dtype=torch.float64)}, X, **settings)


@pytest.mark.slow
def test_refine_names_the_data_that_it_cannot_optimise():
    pyro.set_rng_seed(0)
    with (
        pytest.warns(UserWarning, match=r"for data 0 \(100%\), 2 \(100%\), "),
        pytest.warns(UserWarning, match="climb to the mode failed for 2 of 3 data"),
        pytest.warns(UserWarning, match="not converged for 2 of 3 data, .*so their gaps are NaN"),
    ):
        found = refine(model, guide, X, log_p=by_quadrature())
    assert found.approximation_gap[1] < 0.01  # the posterior is normal
    assert found.approximation_gap[[0, 2]].isnan().all()


def test_defined_gradients_cause_no_warning():
    x = X[1:2].expand(2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ais(model, x, num_particles=20, betas=linear_schedule(4), num_tuning=10)
        refine(model, guide, x, log_p=by_quadrature()[[1, 1]], steps=20)
