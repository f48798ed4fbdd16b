"""`fit` counts latents outside the data plate once for all data, and `train_elbo` is per datum or left out."""

import math
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch.distributions import constraints

from pyrovae import fit
from pyrovae.training.batches import epoch_order

N, BATCH = 1000, 100
MANY = {"num_particles": 64, "vectorize_particles": True, "max_plate_nesting": 1}
SGD = partial(torch.optim.SGD, lr=0.0)


@pytest.fixture
def x():
    pyro.set_rng_seed(0)
    return 0.7 + torch.randn(N)


def model(x, name="data"):
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate(name, len(x), dim=-1):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(0.1), constraint=constraints.positive)
    pyro.sample("mean", dist.Normal(loc, scale))


def elbo_of_all(x, loc, scale):
    """The ELBO of all data under q(mean) = N(loc, scale) in closed form."""
    log_lik = -0.5 * (math.log(2 * math.pi) * len(x) + (x - loc).square().sum() + len(x) * scale**2)
    kl = torch.distributions.kl_divergence(dist.Normal(loc, scale), dist.Normal(torch.tensor(0.0), torch.tensor(10.0)))
    return (log_lik - kl).item()


def parameters():
    store = pyro.get_param_store()
    return {name: store[name].detach().clone() for name in store}


@pytest.mark.parametrize(
    ("elbo", "execution"), [(Trace_ELBO(**MANY), "eager"), (TraceMeanField_ELBO(**MANY), "recorded")]
)
def test_a_global_mean_reaches_its_posterior_from_minibatches(x, elbo, execution):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    pyro.param("scale", torch.tensor(0.05), constraint=constraints.positive)
    for lr, epochs in ((0.02, 15), (0.004, 15)):
        arguments = {"epochs": epochs, "batch_size": BATCH, "optimizer": partial(torch.optim.Adam, lr=lr)}
        history = fit(model, guide, x, elbo=elbo, execution=execution, **arguments)
    found = parameters()
    precision = N + 1 / 100
    assert found["scale"].item() == pytest.approx(precision**-0.5, rel=0.1)  # 0.0316; with one KL per batch 0.1
    assert found["loc"].item() == pytest.approx(x.sum().item() / precision, abs=0.015)
    exact = dist.Normal(0.0, 1.0).log_prob(x - x.mean()).sum() + dist.Normal(0.0, math.sqrt(100 + 1 / N)).log_prob(
        x.mean()
    )
    log_evidence = (exact + 0.5 * math.log(2 * math.pi / N)).item()
    assert history["train_elbo"][-1] == pytest.approx(log_evidence / N, abs=0.01)


def test_recorded_training_with_a_global_latent_equals_eager_training(x):
    found = []
    for execution in ("eager", "recorded"):
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        arguments = {"elbo": Trace_ELBO(), "epochs": 3, "batch_size": 128, "execution": execution}
        history = fit(model, guide, x, optimizer=partial(torch.optim.Adam, lr=0.01), **arguments)
        found.append((torch.tensor(history["train_elbo"]), *parameters().values()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


def test_the_gradients_of_an_epoch_sum_to_that_of_the_whole_data_set(x):
    # The mean-field ELBO with a fixed draw is deterministic; the learning rate keeps the parameters.
    gradients = {}
    for batch_size in (N, 300):
        pyro.clear_param_store()
        total = {}

        class Sum(torch.optim.SGD):
            def step(self, closure=None):
                for index, parameter in enumerate(self.param_groups[0]["params"]):
                    total[index] = total.get(index, 0.0) + parameter.grad.clone()  # noqa: B023

        def fixed(x):
            loc = pyro.param("loc", torch.tensor(0.0))
            scale = pyro.param("scale", torch.tensor(0.1), constraint=constraints.positive)
            draw = dist.TransformedDistribution(dist.Normal(loc, scale), [])
            pyro.sample("mean", draw, infer={})

        class SameDraw(poutine.messenger.Messenger):
            def _pyro_sample(self, msg):
                if msg["name"] == "mean" and not msg["is_observed"] and not msg["done"]:
                    base = msg["fn"].base_dist
                    msg["value"], msg["done"] = base.loc + 0.3 * base.scale, True

        history = fit(
            model,
            SameDraw()(fixed),
            x,
            elbo=Trace_ELBO(),
            epochs=1,
            batch_size=batch_size,
            optimizer=partial(Sum, lr=0.0),
            execution="eager",
        )
        gradients[batch_size] = (torch.tensor(history["train_elbo"]), *total.values())
    torch.testing.assert_close(gradients[N], gradients[300], rtol=1e-4, atol=1e-3)


def test_train_elbo_with_a_global_latent_is_that_of_the_whole_data_set_over_n(x):
    pyro.clear_param_store()
    history = fit(model, guide, x, elbo=TraceMeanField_ELBO(), epochs=100, batch_size=300, optimizer=SGD)
    values = torch.tensor(history["train_elbo"])
    exact = elbo_of_all(x, torch.tensor(0.0), torch.tensor(0.1)) / N
    assert abs(values.mean().item() - exact) < 5 * values.std().item() / 100**0.5


def test_factors_outside_the_plate_count_once_for_all_data(x):
    def with_factor(x):
        pyro.factor("penalty", torch.tensor(-50.0))
        model(x)

    elbos = []
    for program in (model, with_factor):
        pyro.clear_param_store()
        pyro.set_rng_seed(2)
        history = fit(program, guide, x, elbo=Trace_ELBO(), epochs=1, batch_size=BATCH, optimizer=SGD)
        elbos.append(history["train_elbo"][0])
    assert elbos[1] - elbos[0] == pytest.approx(-50 / N, abs=1e-5)


def local_model(x):
    weight = pyro.param("weight", torch.tensor(1.0))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(weight * z, 1.0), obs=x)


def local_guide(x):
    slope = pyro.param("slope", torch.tensor(0.3))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(slope * x, 0.8))


def own_subsampling(program, rows):
    """Give a program all data, of which its plate draws some rows."""

    def wrapped(x):
        weight, slope = pyro.param("weight", torch.tensor(1.0)), pyro.param("slope", torch.tensor(0.3))
        with pyro.plate("data", N, subsample_size=rows, dim=-1) as index:
            if program == "guide":
                return pyro.sample("z", dist.Normal(slope * x[index], 0.8))
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(weight * z, 1.0), obs=x[index])

    return wrapped


def scaled_plate(program, of=None):
    """Run a program in a plate of N data that is subsampled to the batch."""

    def wrapped(index):
        weight, slope = pyro.param("weight", torch.tensor(1.0)), pyro.param("slope", torch.tensor(0.3))
        with pyro.plate("data", N, subsample=index, dim=-1):
            if program == "guide":
                return pyro.sample("z", dist.Normal(slope * of[index], 0.8))
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(weight * z, 1.0), obs=of[index])

    return wrapped


def elbo_per_datum(*pair, data, batch_size):
    pyro.clear_param_store()
    pyro.set_rng_seed(5)
    history = fit(*pair, data, elbo=Trace_ELBO(), epochs=30, batch_size=batch_size, optimizer=SGD)
    values = torch.tensor(history["train_elbo"])
    return values.mean().item(), values.std().item() / 30**0.5


def test_train_elbo_undoes_the_scale_of_subsampling_plates(x):
    value, error = elbo_per_datum(local_model, local_guide, data=x, batch_size=300)
    rows = torch.arange(N)
    for pair, data, size in (
        ((scaled_plate("model", x), scaled_plate("guide", x)), rows, 300),
        ((own_subsampling("model", 200), own_subsampling("guide", 200)), x, N),
    ):
        other, other_error = elbo_per_datum(*pair, data=data, batch_size=size)
        assert abs(value - other) < 5 * math.hypot(error, other_error) + 1e-4
        assert other_error < 0.05


@pytest.mark.parametrize(
    ("pair", "site"),
    [
        ((poutine.scale(local_model, 0.5), poutine.scale(local_guide, 0.5)), "site 'z' of the model carries scale 0.5"),
        ((local_model, poutine.scale(local_guide, 2.0)), "site 'z' of the guide carries scale 2"),
        ((poutine.scale(local_model, 2.0), local_guide), "site 'z' of the model carries scale 2"),
    ],
)
def test_train_elbo_is_left_out_under_other_scales_with_one_warning(x, pair, site):
    pyro.clear_param_store()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = fit(*pair, x, elbo=Trace_ELBO(), epochs=2, batch_size=300, optimizer=SGD)
    said = [str(warning.message) for warning in caught if "train_elbo" in str(warning.message)]
    assert len(said) == 1
    assert site in said[0]
    assert history["train_elbo"] == [None, None]
    assert None not in history["train_objective"]


def test_train_elbo_is_left_out_if_only_the_model_subsamples(x):
    index = torch.arange(N)

    def one_sided(index):
        slope = pyro.param("slope", torch.tensor(0.3))
        with pyro.plate("data", len(index), dim=-1):
            pyro.sample("z", dist.Normal(slope * x[index], 0.8))

    pyro.clear_param_store()
    with pytest.warns(UserWarning, match="subsampling, but not 'z' of the guide"):
        history = fit(
            scaled_plate("model", x), one_sided, index, elbo=Trace_ELBO(), epochs=1, batch_size=300, optimizer=SGD
        )
    assert history["train_elbo"] == [None]


def test_programs_that_subsample_by_themselves_train_as_under_svi(x):
    def subsampling(index):
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("data", N, subsample=index, dim=-1):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x[index])

    found = []
    for ours in (True, False):
        pyro.clear_param_store()
        pyro.set_rng_seed(4)
        adam = partial(torch.optim.Adam, lr=0.01)
        if ours:
            arguments = {"elbo": Trace_ELBO(), "epochs": 2, "batch_size": 300, "execution": "eager"}
            history = fit(subsampling, guide, torch.arange(N), optimizer=adam, **arguments)
            assert abs(history["train_elbo"][0] - elbo_of_all(x, torch.tensor(0.0), torch.tensor(0.1)) / N) < 0.5
        else:
            svi = SVI(subsampling, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
            for epoch in range(2):
                for rows in epoch_order(N, epoch=epoch, seed=0).split(300):
                    svi.step(rows)
        found.append(tuple(parameters().values()))
    torch.testing.assert_close(*found, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("dim", [1, -1])
def test_vectorized_particles_of_a_program_that_counts_dims_from_the_left_are_refused(dim):
    net = torch.nn.Linear(2, 3)

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(net(z).softmax(dim), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def train(**options):
        return fit(model, guide, torch.randn(20, 3), elbo=Trace_ELBO(num_particles=3, **options), epochs=1)

    train()
    if dim == -1:
        train(vectorize_particles=True)
        return
    with pytest.raises(ValueError, match=r"vectorized particles of Trace_ELBO .* use vectorize_particles=False"):
        train(vectorize_particles=True)


def test_the_elbo_of_data_whose_rows_no_plate_holds_is_left_out():
    words = torch.randn(5, 8)  # five words of each of eight documents

    def model(words):
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("documents", words.shape[1], dim=-1):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            for place, word in enumerate(words):
                pyro.sample(f"x_{place}", dist.Normal(z, 1.0), obs=word)

    def guide(words):
        with pyro.plate("documents", words.shape[1], dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))

    with pytest.warns(UserWarning, match=r"no plate has the size of a batch, 5, only {'documents': 8}"):
        history = fit(model, guide, words, elbo=Trace_ELBO(), epochs=1, execution="eager")
    assert history.rows[0]["train_elbo"] is None


def words_by_documents(x):
    """Mixed-membership program whose documents lie along the second dim of the data."""
    with pyro.plate("documents", x.shape[1], dim=-1):
        topic = pyro.sample("topic", dist.Normal(0.0, 1.0))
        with pyro.plate("words", x.shape[0], dim=-2):
            pyro.sample("x", dist.Normal(topic, 1.0), obs=x)


def documents_guide(x):
    loc = pyro.param("loc", torch.zeros(()))
    with pyro.plate("documents", x.shape[1], dim=-1):
        pyro.sample("topic", dist.Normal(loc, 1.0))


def test_train_elbo_is_left_out_if_another_plate_looks_like_that_of_the_data():
    pyro.set_rng_seed(0)
    words = torch.randn(5, 6)
    options = {"elbo": TraceMeanField_ELBO(), "epochs": 1, "batch_size": 6, "optimizer": SGD}
    with pytest.warns(UserWarning, match=r"train_elbo is left out.*plate 'documents'.*plate='documents'"):
        history = fit(words_by_documents, documents_guide, words, **options)
    assert history.rows[0]["train_elbo"] is None

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        named = fit(words_by_documents, documents_guide, words, plate="documents", **options)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    draws = torch.randn(2000, 6)
    log_p = -0.5 * (words - draws.unsqueeze(1)).square().sum(1) - 2.5 * math.log(2 * math.pi)
    assert named.rows[0]["train_elbo"] == pytest.approx(log_p.mean().item(), abs=4 * log_p.std().item() / 6**0.5)
