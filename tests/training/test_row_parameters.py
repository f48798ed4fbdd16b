"""Programs with one row of parameters for each datum, on more data than the chunks of checks and validation hold."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from pyrovae import ImportanceWeightedELBO, fit
from pyrovae.training import validation as validation_module

N = 5000


def model(x):
    scale = pyro.param("scale", torch.tensor(1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x)


def own_guide(x):
    loc = pyro.param("loc", lambda: torch.zeros(len(x)))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0))


@pytest.mark.parametrize("elbo", [Trace_ELBO(), ImportanceWeightedELBO(5)], ids=["ELBO", "IWAE"])
@pytest.mark.parametrize("make", [lambda: AutoNormal(model), lambda: own_guide], ids=["auto guide", "pyro.param"])
def test_rows_of_parameters_train_and_validate_on_all_data(make, elbo, monkeypatch):
    pyro.set_rng_seed(0)
    x, guide = torch.randn(N), make()
    still = partial(torch.optim.SGD, lr=0.0)
    options = {"elbo": elbo, "epochs": 1, "optimizer": still, "execution": "eager"}
    history = fit(model, guide, x, batch_size=N, validation=x, **options)
    monkeypatch.setattr(validation_module, "_CHUNK_SIZE", 10**6)  # no chunks
    again = fit(model, guide, x, batch_size=N, validation=x, **options)
    assert history["validation_objective"] == again["validation_objective"]
    assert history["validation_objective"] == pytest.approx(history["train_objective"], abs=0.1)
