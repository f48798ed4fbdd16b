"""Programs of the kinds of Pyro's examples: Gaussian processes, and auxiliary losses in guides."""

import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceMeanField_ELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoNormal

from pyrovae import GuideProposal, LinearWarmup, fit, log_evidence, log_marginal

N = 8
SGD = partial(torch.optim.SGD, lr=0.0)


@pytest.fixture
def x():
    return torch.linspace(0.0, 1.0, N)


def covariance(x):
    return (-((x[:, None] - x) ** 2) * 8).exp() + 0.01 * torch.eye(len(x))


def train(model, guide, data, **options):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = fit(
            model, guide, data, elbo=Trace_ELBO(), epochs=200, optimizer=SGD, execution="eager", seed=1, **options
        )
    said = [str(warning.message) for warning in caught if "train_elbo" in str(warning.message)]
    values = history["train_elbo"]
    return (None if None in values else sum(values) / len(values)), said


def regression(x, y):
    """A Gaussian process with its function integrated out."""
    scale = pyro.param("scale", torch.tensor(1.5))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), scale**2 * covariance(x)), obs=y)


def latent_regression(x, y):
    """The same process with a latent function, observed in a plate."""
    scale = pyro.param("scale", torch.tensor(1.5))
    f = pyro.sample("f", dist.MultivariateNormal(torch.zeros(len(x)), scale**2 * covariance(x)))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(f, 0.5), obs=y)


def no_guide(*data):
    pass


def function_guide(x, y):
    pyro.sample("f", dist.Normal(y, 0.1).to_event(1))


def test_train_elbo_of_a_gaussian_process_is_left_out_in_batches_and_joint_in_a_full_batch(x):
    y = torch.sin(6 * x)
    exact = dist.MultivariateNormal(torch.zeros(N), 2.25 * covariance(x)).log_prob(y).item() / N
    found, said = train(regression, no_guide, [x, y], batch_size=N)
    assert not said
    assert found == pytest.approx(exact, rel=1e-4)
    found, said = train(regression, no_guide, [x, y], batch_size=N // 2)
    assert found is None
    assert len(said) == 1
    assert "no plate over the rows of a batch" in said[0]
    assert f"batch_size={N}" in said[0]


def test_train_elbo_is_left_out_in_batches_if_a_latent_function_lies_outside_the_plate_of_the_data(x):
    y = torch.sin(6 * x)
    found, said = train(latent_regression, function_guide, [x, y], batch_size=N)
    assert not said
    prior = dist.MultivariateNormal(torch.zeros(N), 2.25 * covariance(x))
    f = y + 0.1 * torch.randn(20_000, N)
    log_w = prior.log_prob(f) + (dist.Normal(f, 0.5).log_prob(y) - dist.Normal(y, 0.1).log_prob(f)).sum(-1)
    assert found == pytest.approx(log_w.mean().item() / N, abs=5 * log_w.std().item() / N / 200**0.5)
    found, said = train(latent_regression, function_guide, [x, y], batch_size=N // 2)
    assert found is None
    assert "one joint density at site 'f'" in said[0]


def test_train_elbo_stays_if_latents_without_a_plate_have_independent_rows():
    def model(x):
        loc = pyro.param("loc", torch.tensor(0.3))
        z = pyro.sample("z", dist.Normal(loc, torch.ones(len(x))).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal((x + 0.3) / 2, 0.5**0.5).to_event(1))

    x = torch.randn(N)
    found, said = train(model, guide, x, batch_size=N // 2)
    assert not said
    assert found == pytest.approx(dist.Normal(0.3, 2**0.5).log_prob(x).mean().item(), abs=1e-4)  # q is the posterior


def labelled_model(x, y):
    loc = pyro.param("loc", torch.tensor(0.3))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("y", dist.Bernoulli(logits=torch.tensor(0.7)), obs=y)
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def labelled_guide(x, y, auxiliary):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((x + 0.3) / 2, 0.5**0.5))
        logits = 0.2 * x
        if auxiliary == "observed":
            pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)
        else:
            pyro.factor("classifier", -dist.Bernoulli(logits=logits).log_prob(y), has_rsample=False)


@pytest.mark.parametrize(("auxiliary", "site"), [("observed", "y"), ("factor", "classifier")])
@pytest.mark.thin(1)
def test_train_elbo_is_left_out_if_the_guide_holds_an_auxiliary_loss(auxiliary, site):
    x, y = torch.randn(N), torch.bernoulli(torch.full((N,), 0.5))
    guide = partial(labelled_guide, auxiliary=auxiliary)
    found, said = train(labelled_model, guide, [x, y], batch_size=N // 2)
    assert found is None
    assert f"poutine.block(guide, hide=['{site}'])" in said[0]
    exact = dist.Normal(0.3, 2**0.5).log_prob(x) + dist.Bernoulli(logits=torch.tensor(0.7)).log_prob(y)
    found, said = train(labelled_model, poutine.block(guide, hide=[site]), [x, y], batch_size=N // 2)
    assert not said
    assert found == pytest.approx(exact.mean().item(), abs=1e-4)  # q is the posterior


def test_the_evidence_of_a_gaussian_process_without_latents_is_its_density(x):
    y = torch.sin(6 * x)
    pyro.clear_param_store()
    found = log_evidence(regression, no_guide, x, y, num_particles=2)
    exact = dist.MultivariateNormal(torch.zeros(N), 2.25 * covariance(x)).log_prob(y)
    assert found.value.item() == pytest.approx(exact.item(), rel=1e-5)
    assert found.std_error.item() < 1e-5  # of rounding


def test_a_latent_without_to_event_is_refused_in_one_line_that_names_it():
    def model(x):
        theta = pyro.sample("theta", dist.HalfCauchy(torch.ones(2)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(torch.zeros(2), theta).to_event(1), obs=x)

    pyro.clear_param_store()
    x = torch.randn(6, 2)
    with pytest.raises(ValueError, match=r"theta.*\.to_event") as found:
        fit(model, AutoNormal(model), x, elbo=Trace_ELBO(), epochs=1, batch_size=6)
    assert "\n" not in str(found.value)
    with pytest.raises(ValueError, match=r"theta.*\.to_event") as found:
        log_evidence(model, AutoNormal(model), x, num_particles=10)
    assert "\n" not in str(found.value)


def global_model(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def global_guide(x):
    loc = pyro.param("loc", torch.tensor(2.0))
    pyro.sample("mean", dist.Normal(loc, 0.1))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((x + loc) / 2, 0.5))


@pytest.mark.parametrize("kl_weight", [None, LinearWarmup(3)])
@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize(
    ("jit", "plain"),
    [(JitTrace_ELBO, Trace_ELBO), (JitTraceMeanField_ELBO, TraceMeanField_ELBO), (JitTraceEnum_ELBO, TraceEnum_ELBO)],
)
def test_compiled_objectives_of_pyro_give_the_losses_of_plain_ones(jit, plain, by_name, kl_weight):
    # A compiled loss would keep the KL weight, the size and the keyword arguments of the first batch, 7 of 10 data.
    torch.manual_seed(0)
    x = torch.randn(10)
    found = []
    for elbo in (jit, plain):
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        options = {"max_plate_nesting": 1, "strict_enumeration_warning": False}
        objective = elbo(**options)
        data = {"x": x} if by_name else x
        history = fit(
            global_model, global_guide, data, elbo=objective, epochs=3, batch_size=7, optimizer=SGD, kl_weight=kl_weight
        )
        found.append(history["train_objective"])
        assert type(objective) is elbo
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_a_class_derived_from_a_compiled_objective_is_refused():
    class Mine(JitTrace_ELBO):
        pass

    with pytest.raises(ValueError, match=r'Mine compiles the first step .* derive it from Trace_ELBO.*"compiled"'):
        fit(global_model, global_guide, torch.randn(10), elbo=Mine(), epochs=1)


def row_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def rows_of_the_batch(x):
    loc = pyro.param("loc", lambda: torch.zeros(len(x)))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 0.7))


def rows_of_all(x):
    loc = pyro.param("loc", lambda: torch.zeros(N))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 0.7))


def names_by_row(x):
    for n in pyro.plate("data", len(x)):
        pyro.sample(f"z_{n}", dist.Normal(pyro.param(f"loc_{n}", torch.tensor(0.0)), 0.7))


def model_by_row(x):
    for n in pyro.plate("data", len(x)):
        pyro.sample(f"x_{n}", dist.Normal(pyro.sample(f"z_{n}", dist.Normal(0.0, 1.0)), 1.0), obs=x[n])


@pytest.mark.parametrize(
    ("model", "guide", "said"),
    [
        (row_model, rows_of_the_batch, "parameter 'loc' has rows for single data"),
        (row_model, rows_of_all, "parameter 'loc' has 8 rows, one for each datum, but the programs ran on 4"),
        (model_by_row, names_by_row, "parameter 'loc_2' has rows for single data"),
    ],
)
@pytest.mark.thin(2)
def test_parameters_of_single_data_keep_their_rows_in_a_full_batch_and_are_refused_in_batches(model, guide, said):
    x = torch.arange(float(N))
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    options = {"elbo": Trace_ELBO(), "optimizer": partial(torch.optim.Adam, lr=0.1), "execution": "eager"}
    with pytest.raises(ValueError, match=f"{said}.*give batch_size=8"):
        fit(model, guide, x, epochs=1, batch_size=N // 2, **options)
    pyro.clear_param_store()
    fit(model, guide, x, epochs=150, batch_size=N, **options)
    store = pyro.get_param_store()
    loc = torch.stack([store[name].detach() for name in sorted(store)]).flatten()
    torch.testing.assert_close(loc, x / 2, atol=0.5, rtol=0.0)  # the posterior means; mixed up, all go to 1.75


def test_an_objective_bound_to_programs_is_refused_with_what_to_write():
    with pytest.raises(ValueError, match=r"ELBOModule .* give the objective alone, such as Trace_ELBO\(\)"):
        fit(row_model, rows_of_all, torch.zeros(N), elbo=Trace_ELBO()(row_model, rows_of_all), epochs=1)


def after_first(x, *, in_place):
    """Observations of one animal after its first capture, as in Pyro's capture-recapture example."""
    rate = pyro.param("rate", torch.tensor(0.3))
    seen = torch.zeros(len(x), dtype=torch.bool)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))
        for t in range(x.shape[1]):
            with poutine.mask(mask=seen):
                pyro.sample(f"x_{t}", dist.Bernoulli(rate), obs=x[:, t])
            if in_place:
                seen |= x[:, t].bool()
            else:
                seen = seen | x[:, t].bool()


def prior_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def test_a_mask_that_changes_in_place_after_its_site_is_refused():
    x = torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    exact = torch.tensor([0.7, 0.3 * 0.7, 1.0]).log()
    pyro.clear_param_store()
    unchanged = partial(after_first, in_place=False)
    found = log_marginal(unchanged, prior_guide, x, num_particles=10, proposal=GuideProposal())
    torch.testing.assert_close(found.value.float(), exact, atol=1e-5, rtol=0.0)
    changed = partial(after_first, in_place=True)
    said = r"mask of site 'x_0' is changed in place after the site.*mask = mask \| seen"
    for function in (log_marginal, log_evidence):
        with pytest.raises(ValueError, match=said):
            function(changed, prior_guide, x, num_particles=10)
    with pytest.raises(ValueError, match=said):
        fit(changed, prior_guide, x, elbo=Trace_ELBO(), epochs=1)
