"""What a Pyro user passes to `fit` first: optimizers of pyro.optim, loaders, batches of dicts, Pyro's objectives."""

import copy
import math
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceGraph_ELBO
from small_programs import make_vae
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
)

from pyrovae import Blueprint, ImportanceWeightedELBO, LinearWarmup, fit, log_marginal
from pyrovae.training import StoppedError
from pyrovae.training.loaders import LoaderBatches

STEPS = 6


@pytest.fixture
def x():
    pyro.set_rng_seed(3)
    return torch.bernoulli(torch.full((24, 6), 0.4))


def parameters_of(vae):
    return torch.cat([parameter.detach().flatten() for parameter in vae.parameters()])


def train(vae, data, **options):
    pyro.set_rng_seed(7)
    options = {"elbo": Trace_ELBO(), "epochs": 2, "batch_size": 8, "execution": "eager"} | options
    return fit(vae.model, vae.guide, data, **options)


def in_order(data, batch_size=24, **options):
    """A loader without shuffling, which draws nothing from the global generator."""
    return DataLoader(data, batch_size=batch_size, generator=torch.Generator(), **options)


def keep(states):
    return lambda state: states.append(copy.deepcopy(state))


def refusal(function, *args, **kwargs):
    with pytest.raises(ValueError, match=r"\w") as error:
        function(*args, **kwargs)
    message = str(error.value)
    assert "\n" not in message
    return message


LOG_P = -0.5 * math.log(4 * math.pi)  # of x = 0 under the model of exact_pair
EXACT = {"elbo": Trace_ELBO(), "epochs": 1, "optimizer": partial(torch.optim.SGD, lr=0.0), "execution": "eager"}


def exact_pair(full_size=None):
    """z ~ N(0, 1), x ~ N(z, 1), and the posterior as guide, so that every draw has the weight p(x)."""
    loc = nn.Parameter(torch.zeros(()))

    def plate(x):
        return pyro.plate("data", full_size or len(x), subsample_size=len(x))

    def model(x):
        with plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        pyro.param("loc", loc)
        with plate(x):
            pyro.sample("z", dist.Normal(loc + x / 2, 0.5**0.5))

    return model, guide


class Chunks(IterableDataset):
    """An iterable data set with a length."""

    def __init__(self, entries):
        self.entries = entries

    def __len__(self):
        return len(self.entries)

    def __iter__(self):
        return iter(self.entries)


class TestOptimizers:
    @pytest.mark.parametrize(
        ("of_pyro", "of_torch"),
        [
            (pyro.optim.Adam({"lr": 0.02}), partial(torch.optim.Adam, lr=0.02)),
            (pyro.optim.SGD({"lr": 0.02, "momentum": 0.5}), partial(torch.optim.SGD, lr=0.02, momentum=0.5)),
        ],
    )
    @pytest.mark.parametrize("execution", ["eager", "recorded"])
    @pytest.mark.thin(2)
    def test_pyro_optimizers_train_as_those_of_torch(self, x, of_pyro, of_torch, execution):
        expected, found = make_vae(), make_vae()
        train(expected, x, optimizer=of_torch, execution=execution)
        train(found, x, optimizer=of_pyro, execution=execution)
        assert torch.equal(parameters_of(found), parameters_of(expected))

    @pytest.mark.parametrize(
        "make",
        [
            lambda: pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.9, "clip_norm": 0.1}),
            lambda: pyro.optim.Adam({"lr": 0.02}, {"clip_norm": 0.05}),
            lambda: pyro.optim.SGD({"lr": 0.2}, {"clip_value": 0.01}),
            lambda: pyro.optim.Adam(lambda name: {"lr": 0.05 if "likelihood" in name else 0.001}),
            lambda: pyro.optim.Adam(lambda module, name: {"lr": 0.05 if "weight" in name else 0.001}),
            lambda: pyro.optim.SGD(
                lambda name: {"lr": 0.1, "momentum": 0.9} if "encoder" in name else {"lr": 0.01},
                lambda module, name: {"clip_norm": 0.1 if "bias" in name else 0.2},
            ),
        ],
        ids=["decay", "clip_norm", "clip_value", "by name", "by module and name", "clip by name"],
    )
    def test_fit_takes_the_steps_of_svi_with_the_optimizer(self, x, make):
        expected, found = make_vae(), make_vae()
        svi = SVI(expected.model, expected.guide, make(), Trace_ELBO())
        pyro.set_rng_seed(7)
        for _ in range(STEPS):
            svi.step(x)
        train(found, in_order(x), optimizer=make(), epochs=STEPS)
        torch.testing.assert_close(parameters_of(found), parameters_of(expected), rtol=1e-5, atol=1e-6)

    def test_a_pyro_optimizer_resumes(self, x):
        once, twice, states = make_vae(), make_vae(), []
        options = {"commit": keep(states), "optimizer": pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.9})}
        train(once, x, **options)
        train(twice, x, **options | {"resume": states[0]})
        assert torch.equal(parameters_of(once), parameters_of(twice))

    @pytest.mark.parametrize(
        ("optimizer", "words"),
        [
            (
                lambda: pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 1}, "gamma": 1}),
                ["got PyroLRScheduler", "pyro.optim.ClippedAdam("],
            ),
            (lambda: torch.optim.Adam([nn.Parameter(torch.ones(1))]), ["got Adam", "partial(torch.optim.Adam"]),
            (lambda: {"lr": 1e-3}, ["got dict", "partial(torch.optim.Adam"]),
            (lambda: pyro.optim.Adam, ["got Adam without its options", 'pyro.optim.Adam({"lr": 1e-3})']),
            (lambda: lambda parameters: None, ["returns NoneType", "partial(torch.optim.Adam"]),
            (lambda: torch.optim.LBFGS, ["LBFGS needs several", "use Adam"]),
        ],
        ids=["scheduler", "made", "dict", "without options", "lambda", "LBFGS"],
    )
    def test_other_optimizers_are_refused(self, x, optimizer, words):
        message = refusal(train, make_vae(), x, optimizer=optimizer())
        assert all(word in message for word in words), message


class TestObjectives:
    def test_renyi_elbo_of_pyro_names_ours(self, x):
        message = refusal(train, make_vae(), x, elbo=RenyiELBO(num_particles=4))
        assert "pyro's RenyiELBO has no differentiable_loss" in message
        assert "write pyrovae.RenyiELBO(" in message

    def test_trace_graph_elbo_names_another(self, x):
        message = refusal(train, make_vae(), x, elbo=TraceGraph_ELBO())
        assert "TraceGraph_ELBO has no differentiable_loss" in message
        assert "write pyro.infer.Trace_ELBO()" in message


class TestLoaders:
    @pytest.mark.parametrize("execution", ["eager", "recorded"])
    @pytest.mark.parametrize("elbo", [Trace_ELBO(), ImportanceWeightedELBO(4)], ids=["pyro", "ours"])
    @pytest.mark.thin(1)
    def test_batches_of_every_form_train_alike(self, x, elbo, execution):
        found = []
        for data in (x, TensorDataset(x), [{"x": row} for row in x], [(row,) for row in x]):
            vae = make_vae()
            history = train(vae, in_order(data, 10), elbo=elbo, execution=execution)
            found.append((parameters_of(vae), history.rows[-1]["train_objective"]))
        for parameters, objective in found[1:]:
            assert torch.equal(parameters, found[0][0])
            assert objective == found[0][1]

    def test_recorded_steps_of_a_loader_are_the_eager_ones(self, x):
        eager, recorded = make_vae(), make_vae()
        train(eager, in_order(x, 10), epochs=3)
        train(recorded, in_order(x, 10), epochs=3, execution="recorded")
        torch.testing.assert_close(parameters_of(recorded), parameters_of(eager))

    def test_a_loader_takes_the_steps_of_svi(self, x):
        expected, found = make_vae(), make_vae()
        svi = SVI(expected.model, expected.guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
        loader = DataLoader(x, batch_size=10, shuffle=True)
        pyro.set_rng_seed(7)
        for _ in range(3):
            for batch in loader:
                svi.step(batch)
        train(found, loader, optimizer=pyro.optim.Adam({"lr": 0.02}), epochs=3)
        torch.testing.assert_close(parameters_of(found), parameters_of(expected), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(
        ("options", "seen"),
        [
            ({"batch_size": 10}, 24),
            ({"batch_size": 10, "drop_last": True}, 20),
            ({"batch_size": 10, "shuffle": True}, 24),
            ({"batch_sampler": [[0, 1, 2], [3, 4]]}, 5),
            ({"sampler": range(12), "batch_size": 5}, 12),
        ],
        ids=["plain", "drop_last", "shuffle", "batch_sampler", "sampler"],
    )
    def test_the_objective_is_per_datum_seen(self, options, seen):
        """Without parameters in the densities, each datum has the ELBO log p(x): log N(0; 0, 1) = -0.9189."""
        offset = nn.Parameter(torch.zeros(()))

        def model(x):
            pyro.param("offset", offset)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(0 * offset, 1.0), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(0.0, 1.0))

        loader = DataLoader(torch.zeros(24), **options)
        history = fit(model, guide, loader, elbo=Trace_ELBO(), epochs=1, validation=loader)
        assert history.rows[0]["train_elbo"] == pytest.approx(-0.918939, abs=1e-5), seen
        assert history.rows[0]["validation_elbo"] == pytest.approx(-0.918939, abs=1e-5)

    @pytest.mark.parametrize(
        "options",
        [
            {"batch_sampler": [[0, 1, 2], [3, 4], [5, 6, 7, 8]]},
            {"batch_size": None, "sampler": [[0, 1, 2], [3, 4], [5, 6, 7, 8]]},
            {"batch_size": 7},
        ],
        ids=["batch_sampler", "sampler of lists", "plain"],
    )
    @pytest.mark.parametrize("stop_at", [1, 2])
    def test_a_resumed_epoch_divides_by_the_rows_of_all_its_batches(self, options, stop_at):
        model, guide = exact_pair()
        options = {**options, "generator": torch.Generator()}
        loader, states, calls = DataLoader(TensorDataset(torch.zeros(24)), **options), [], iter(range(1, 9))
        with pytest.warns(UserWarning, match="not bit-identical"), pytest.raises(StoppedError):
            fit(
                *(model, guide, loader),
                **EXACT,
                commit=keep(states),
                should_stop=lambda: next(calls) == stop_at,
            )
        with pytest.warns(UserWarning, match="not bit-identical"):
            history = fit(model, guide, loader, **EXACT, resume=states[-1])
        assert history["train_elbo"] == history["train_objective"] == pytest.approx([LOG_P], abs=1e-5)

    @pytest.mark.parametrize(
        "options",
        [
            {"batch_size": 5, "sampler": [5 * n % 24 for n in range(63)]},
            {"batch_size": 5, "sampler": [5 * n % 24 for n in range(7)]},
            {"batch_size": 5, "drop_last": True},
            {"batch_sampler": [[0, 1, 2], [3, 4, 5], [6]]},
        ],
        ids=["longer sampler", "shorter sampler", "drop_last", "batch_sampler"],
    )
    def test_the_elbo_of_a_subsampling_program_is_per_datum_seen(self, options):
        loader = DataLoader(torch.linspace(0, 3, 24), **options)
        expected = dist.Normal(0.0, 2**0.5).log_prob(torch.cat(list(loader))).mean().item()
        history = fit(*exact_pair(full_size=24), loader, **EXACT)
        assert history["train_elbo"] == pytest.approx([expected], abs=1e-5)

    @pytest.mark.parametrize(
        "loader",
        [
            lambda x: DataLoader(x.split(10), batch_size=None),
            lambda x: DataLoader(x.split(5), batch_size=2, collate_fn=torch.cat),
            lambda x: DataLoader(Chunks(x.split(10)), batch_size=None),
            lambda x: DataLoader(TensorDataset(x), batch_size=None, sampler=torch.arange(24).split(10)),
        ],
        ids=["chunks", "joined chunks", "iterable chunks", "sampler of rows"],
    )
    def test_latents_outside_the_plate_count_once_for_the_rows_of_chunks(self, loader):
        """Of 24 rows in 3 batches, a batch of 10 weighs the latent outside the plate by 10/24."""
        x, found = torch.linspace(0, 1, 24), []

        def model(x):
            mean = pyro.sample("mean", dist.Normal(0.0, 0.1))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

        def guide(x):
            pyro.sample("mean", dist.Normal(pyro.param("loc", torch.zeros(())), 0.1))

        for data in (DataLoader(x, batch_size=10), loader(x)):
            pyro.clear_param_store()
            pyro.set_rng_seed(2)
            data.generator = torch.Generator()
            history = fit(model, guide, data, elbo=Trace_ELBO(), epochs=2, execution="eager")
            found.append((pyro.param("loc").item(), *history["train_elbo"]))
        assert found[1] == pytest.approx(found[0], rel=1e-6)

    def test_a_subset_sampler_names_the_data(self):
        loader = DataLoader(torch.zeros(24), batch_size=5, sampler=SubsetRandomSampler(range(12)))
        assert LoaderBatches(loader, exact_pair()).size == 12

    def test_an_iterable_data_set_with_a_length_may_have_a_smaller_last_batch(self):
        history = fit(*exact_pair(), DataLoader(Chunks(torch.zeros(24)), batch_size=10), **EXACT)
        assert history["train_elbo"] == pytest.approx([LOG_P], abs=1e-5)

    def test_a_validation_loader_has_the_elbo_of_its_data(self, x):
        rows = [
            train(make_vae(), x, validation=held_out).rows
            for held_out in (x, in_order(x, 5), in_order([{"x": row} for row in x], 5))
        ]
        assert rows[0][0]["validation_elbo"] == rows[1][0]["validation_elbo"] == rows[2][0]["validation_elbo"]

    def test_batches_are_converted_for_our_programs(self, x):
        expected, found = make_vae(), make_vae()
        train(expected, in_order(x, 10))
        train(found, in_order(x.double().numpy(), 10), validation=in_order(x.long(), 10))
        assert torch.equal(parameters_of(expected), parameters_of(found))

    def test_covariates_and_masks_come_in_dicts(self, x):
        vae = Blueprint(6, 2, num_covariates=1).vae()
        data = [{"x": row, "covariates": row[:1], "mask": row > -1} for row in x]
        history = train(vae, DataLoader(data, batch_size=10, shuffle=True), kl_weight=LinearWarmup(1))
        assert history["train_objective"][-1] > -10

    def test_ragged_sequences_come_through_collate_fn(self):
        """The padded entries are masked by the model, so that the steps are those of one datum at a time."""
        pyro.set_rng_seed(0)
        sequences = [torch.randn(length) for length in (2, 5, 3, 4, 6, 1)]

        def collate(batch):
            lengths = torch.tensor([len(sequence) for sequence in batch])
            return {"x": nn.utils.rnn.pad_sequence(batch, batch_first=True), "lengths": lengths}

        def model(x, lengths):
            loc = pyro.param("loc", torch.tensor(0.5))
            mask = torch.arange(x.shape[1]) < lengths.unsqueeze(-1)
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(loc, 1.0))
                steps = dist.Normal(z.unsqueeze(-1), 1.0).expand([*z.shape, x.shape[1]])
                pyro.sample("x", steps.mask(mask).to_event(1), obs=x)

        def guide(x, lengths):
            scale = pyro.param("scale", torch.tensor(0.7))
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(x.sum(-1) / (1 + lengths), scale))

        def fitted(execution):
            pyro.clear_param_store()
            pyro.set_rng_seed(1)
            loader = in_order(sequences, 2, collate_fn=collate)
            fit(model, guide, loader, elbo=Trace_ELBO(), epochs=4, execution=execution)
            return torch.stack([pyro.param("loc"), pyro.param("scale")]).detach()

        eager = fitted("eager")
        assert not torch.allclose(eager, torch.tensor([0.5, 0.7]))
        torch.testing.assert_close(fitted("recorded"), eager)

    def test_numbers_in_batches_are_not_recorded_as_constants(self):
        def collate(batch):
            return {"x": torch.stack([x for x, _ in batch]), "scale": float(batch[0][1])}

        data = [(torch.tensor(0.3), 1.0)] * 4 + [(torch.tensor(0.3), 2.0)] * 4

        def model(x, scale):
            loc = pyro.param("loc", torch.tensor(0.5))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(loc, 1.0))
                pyro.sample("x", dist.Normal(z, scale), obs=x)

        def guide(x, scale):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x, scale))

        def fitted(execution):
            pyro.clear_param_store()
            pyro.set_rng_seed(1)
            loader = in_order(data, 4, collate_fn=collate)
            fit(model, guide, loader, elbo=Trace_ELBO(), epochs=4, execution=execution)
            return pyro.param("loc").detach().clone()

        eager = fitted("eager")
        with pytest.warns(UserWarning, match="no tensors change from batch to batch; give them as tensors"):
            recorded = fitted("recorded")
        torch.testing.assert_close(recorded, eager)

    def test_resuming_a_loader_warns_once_that_it_is_not_bit_identical(self, x):
        states = []
        with pytest.warns(UserWarning, match=r"not bit-identical .* give tensors, or Streamed\(array\)") as caught:
            train(make_vae(), in_order(x, 10), commit=keep(states))
        assert len(caught) == 1
        vae = make_vae()
        with pytest.warns(UserWarning, match="not bit-identical"):
            history = train(vae, in_order(x, 10), resume=states[0], epochs=3)
        assert [row["epoch"] for row in history.rows] == [1, 2, 3]

    def test_a_loader_without_commit_does_not_warn(self, x):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train(make_vae(), in_order(x, 10))

    def test_a_stopped_epoch_resumes_at_its_step(self, x):
        once, twice, states = make_vae(), make_vae(), []
        train(once, in_order(x, 8), epochs=1)
        calls = iter([False, True])
        with pytest.warns(UserWarning, match="not bit-identical"), pytest.raises(Exception, match="after step 2 of 3"):
            train(twice, in_order(x, 8), epochs=1, commit=keep(states), should_stop=lambda: next(calls))
        with pytest.warns(UserWarning, match="not bit-identical"):
            train(twice, in_order(x, 8), epochs=1, resume=states[-1])
        torch.testing.assert_close(parameters_of(twice), parameters_of(once))


class Endless(IterableDataset):
    def __iter__(self):
        return iter([torch.zeros(6)] * 4)


class Rows(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, row):
        return torch.zeros(6)


class TestLoaderRefusals:
    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (lambda: DataLoader(Endless(), batch_size=2), ["with a length", "__len__"]),
            (lambda: Rows(), ["got the data set Rows", "DataLoader(dataset"]),
            (lambda: DataLoader(Rows(), sampler=DistributedSampler(Rows(), 2, 0)), ["DistributedSampler", "leave it"]),
            (lambda: DataLoader(Rows(), batch_size=9, drop_last=True), ["no batches", "drop_last"]),
            (lambda: DataLoader(Rows(), collate_fn=lambda batch: "four"), ["got str", "collate_fn"]),
            (lambda: DataLoader(TensorDataset(torch.zeros(4, 6), torch.zeros(4))), ["got 2 arguments", "covariates=c"]),
            (lambda: DataLoader(torch.zeros(4, 5)), ["shape (N, 6)", "got (1, 5)", "give data"]),
            (lambda: 3, ["got int", "torch.as_tensor(x)"]),
        ],
        ids=["iterable", "data set", "distributed", "empty", "strings", "labels", "width", "number"],
    )
    def test_other_data_are_refused(self, data, words):
        message = refusal(train, make_vae(), data())
        assert all(word in message for word in words), message

    def test_ragged_held_out_batches_are_refused(self, x):
        loader = DataLoader([{"x": torch.zeros(n)} for n in (3, 4)], batch_size=1)
        message = refusal(train, make_vae(), x, validation=loader)
        assert "can be concatenated" in message
        assert "pad held-out data" in message

    def test_estimators_name_tensors_in_the_place_of_a_loader(self, x):
        vae = make_vae()
        message = refusal(log_marginal, vae.model, vae.guide, DataLoader(x), num_particles=2)
        assert "log_marginal needs data as tensors, got a DataLoader" in message
        assert "torch.cat(list(loader))" in message
