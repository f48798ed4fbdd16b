"""`fit` tells the plate over the rows of a batch from other plates, and sites of all data from sums over the rows."""

import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch.utils.data import DataLoader, TensorDataset

from pyrovae import fit

SGD = partial(torch.optim.SGD, lr=0.0)


@pytest.fixture(autouse=True)
def _clean():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def objectives(pair, data, epochs=40, **options):
    """Return the mean objective per datum at the initial parameters, and its standard error."""
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"elbo": Trace_ELBO(), "optimizer": SGD, "execution": "eager"} | options
        history = fit(*pair, data, epochs=epochs, **options)
    values = torch.tensor(history["train_objective"])
    return values.mean().item(), values.std().item() / epochs**0.5


def means_of_columns(x):
    with pyro.plate("columns", x.shape[1], dim=-1):
        mean = pyro.sample("mean", dist.Normal(0.0, 0.1))
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def guide_of_columns(x):
    loc = pyro.param("loc", torch.zeros(x.shape[1]))
    scale = pyro.param("scale", torch.full((x.shape[1],), 0.1), constraint=dist.constraints.positive)
    with pyro.plate("columns", x.shape[1], dim=-1):
        pyro.sample("mean", dist.Normal(loc, scale))


def test_global_latents_reach_their_posterior_if_the_batch_has_as_many_rows_as_columns():
    x = torch.randn(160, 16) + 0.5
    options = {"elbo": TraceMeanField_ELBO(8, vectorize_particles=True, max_plate_nesting=2), "batch_size": 16}
    with pytest.warns(UserWarning, match="train_elbo is left out .* or plate 'columns'"):
        fit(means_of_columns, guide_of_columns, x, epochs=80, optimizer=partial(torch.optim.Adam, lr=0.01), **options)
    precision = 1 / 0.1**2 + len(x)
    found = {name: value.detach() for name, value in pyro.get_param_store().items()}
    assert found["loc"].mean().item() == pytest.approx((x.sum(0) / precision).mean().item(), abs=0.015)
    assert found["scale"].mean().item() == pytest.approx(precision**-0.5, rel=0.08)  # 0.062; once per batch: 0.092


def columns_alone(x):
    with pyro.plate("columns", x.shape[1], dim=-1):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(mean.unsqueeze(-1).expand(x.T.shape), 1.0).to_event(1), obs=x.T)


@pytest.mark.parametrize("batch_size", [3, 4])
def test_train_elbo_is_left_out_if_the_only_plate_is_over_columns(batch_size):
    with pytest.warns(UserWarning, match="train_elbo is left out"):
        history = fit(
            columns_alone, guide_of_columns, torch.randn(12, 4), elbo=Trace_ELBO(), epochs=1, batch_size=batch_size
        )
    assert history["train_elbo"] == [None]


def with_components(rows):
    """Three means in a plate without a size, around a plate over the rows with this size or without one."""

    def model(x):
        with pyro.plate("components", dim=-2):
            mean = pyro.sample("mean", dist.Normal(torch.zeros(3, 1), 1.0))
        with pyro.plate("data", rows and len(x), dim=-1):
            pyro.sample("x", dist.Normal(mean.sum(-2), 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.3))
        with pyro.plate("components", dim=-2):
            pyro.sample("mean", dist.Normal(loc * torch.ones(3, 1), 0.1))

    return model, guide


def single_mean():
    """One mean in a plate over the rows without a size."""

    def model(x):
        with pyro.plate("data", dim=-1):
            mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.3))
        with pyro.plate("data", dim=-1):
            pyro.sample("mean", dist.Normal(loc, 0.1))

    return model, guide


def global_mean(size=None):
    """One mean outside the plate over the rows, whose size may be fixed."""

    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", size or len(x), dim=-1):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x):
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 0.1))

    return model, guide


def test_a_plate_of_fixed_size_is_over_the_rows_if_its_observations_follow_them():
    x = torch.randn(60)
    expected, error = objectives(global_mean(), x, batch_size=60)
    found, other_error = objectives(global_mean(20), x, batch_size=20)
    assert abs(found - expected) < 5 * (error**2 + other_error**2) ** 0.5  # off by 0.06 if once per batch


@pytest.mark.parametrize("pair", [with_components(True), with_components(None), single_mean()])
def test_the_objective_is_that_of_all_data_if_global_latents_lie_in_a_plate_without_a_size(pair):
    x = torch.randn(60)
    expected, error = objectives(pair, x, batch_size=60)
    for batch_size in (20, 7):
        found, other_error = objectives(pair, x, batch_size=batch_size)
        assert abs(found - expected) < 5 * (error**2 + other_error**2) ** 0.5  # off by 0.06 to 0.7 if once per batch


def test_a_loader_of_single_rows_counts_a_global_latent_once():
    x = torch.randn(30)
    expected, error = objectives(global_mean(), x, batch_size=1, epochs=12)
    loader = DataLoader(TensorDataset(x), batch_size=1)
    found, other_error = objectives(global_mean(), loader, epochs=12)
    assert abs(found - expected) < 5 * (error**2 + other_error**2) ** 0.5  # off by 1.8 if once per batch


def test_a_discrete_latent_of_columns_is_not_summed_out_of_batches_of_as_many_rows():
    def model(x):
        with pyro.plate("columns", x.shape[1], dim=-1):
            k = pyro.sample("k", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            with pyro.plate("data", len(x), dim=-2):
                pyro.sample("x", dist.Normal(k + pyro.param("loc", torch.zeros(())), 1.0), obs=x)

    elbo = TraceEnum_ELBO(max_plate_nesting=2)
    with pytest.raises(ValueError, match="sums out 'k', which lies outside the plate over the data"):
        fit(model, lambda x: None, torch.randn(12, 4), elbo=elbo, epochs=1, batch_size=4)


def with_likelihood(of_latents):
    """One latent per datum, and a likelihood of all rows outside their plate."""

    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        of_latents(mean, z, x)

    def guide(x):
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 0.1))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.5 * x, 0.7))

    return model, guide


OF_THE_ROWS = {
    "factor of latents and data": lambda mean, z, x: pyro.factor("lik", dist.Normal(z, 1.0).log_prob(x).sum(-1)),
    "factor of latents": lambda mean, z, x: pyro.factor("lik", -z.square().sum()),
    "factor of data": lambda mean, z, x: pyro.factor("lik", dist.Normal(mean, 1.0).log_prob(x).mean()),
    "factor of a row": lambda mean, z, x: pyro.factor("lik", -(x[0] - mean).square()),
    "aggregate": lambda mean, z, x: pyro.sample("lik", dist.Normal(z.sum(), 1.0), obs=x.sum()),
}


@pytest.mark.parametrize("name", OF_THE_ROWS)
def test_observations_of_the_rows_outside_their_plate_are_refused_on_batches(name):
    pair, x = with_likelihood(OF_THE_ROWS[name]), torch.randn(20)
    message = r"site 'lik' of the model is an observation or factor outside plate 'data'.*or give batch_size=20"
    with pytest.raises(ValueError, match=message):
        fit(*pair, x, elbo=Trace_ELBO(), epochs=1, batch_size=5)
    fit(*pair, x, elbo=Trace_ELBO(), epochs=1, batch_size=20)


def test_a_factor_of_the_rows_in_the_guide_is_refused_on_batches():
    model, guide = with_likelihood(lambda *_: None)

    def with_factor(x):
        guide(x)
        pyro.factor("penalty", x.sum(), has_rsample=False)

    with pytest.raises(ValueError, match="site 'penalty' of the guide is an observation or factor outside plate"):
        fit(model, with_factor, torch.randn(20), elbo=Trace_ELBO(), epochs=1, batch_size=5)


OF_ALL_DATA = {
    "factor of a global latent": lambda mean, z, x: pyro.factor("lik", -10.0 * mean.square()),
    "observation of its own": lambda mean, z, x: pyro.sample("lik", dist.Normal(mean, 1.0), obs=torch.tensor(1.5)),
}


@pytest.mark.parametrize("name", OF_ALL_DATA)
def test_constant_observations_outside_the_plate_count_once_for_all_data(name):
    pair, x = with_likelihood(OF_ALL_DATA[name]), torch.randn(40)
    expected, error = objectives(pair, x, batch_size=40, epochs=100)
    found, other_error = objectives(pair, x, batch_size=10)
    assert abs(found - expected) < 5 * (error**2 + other_error**2) ** 0.5
