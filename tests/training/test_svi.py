"""The training loop equals Pyro's SVI, resumes bit-identically, and stops cleanly."""

import copy
from functools import partial

import numpy
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import HandWritten, LinearGaussian
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from pyrovae import (
    DIPVAEELBO,
    MLP,
    VAE,
    BernoulliLikelihood,
    BetaTCELBO,
    FactorVAEELBO,
    InfoVAEELBO,
    MixturePrior,
    NormalEncoder,
    NormalLikelihood,
    StandardNormalPrior,
    evidence_lower_bound,
    fit,
    log_weights,
)
from pyrovae.training import NonFiniteLossError, StoppedError
from pyrovae.training.batches import Batches, epoch_order

PLAIN_ADAM = partial(torch.optim.Adam, lr=1e-2)


def make_vae(seed=5, prior=StandardNormalPrior):
    pyro.set_rng_seed(seed)
    network = partial(MLP, hidden=[8])
    return VAE(prior(2), BernoulliLikelihood(network(2, 6)), NormalEncoder(network(6, 4)))


@pytest.fixture
def x():
    return torch.bernoulli(torch.full((70, 6), 0.3))


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same(one, other, tolerance=0.0):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize(("fused", "tolerance"), [(False, 0.0), (True, 1e-6)])
def test_fit_equals_a_loop_of_svi_steps(x, elbo, fused, tolerance):
    ours, theirs = make_vae(), make_vae()
    pyro.set_rng_seed(9)
    fit(
        ours.model,
        ours.guide,
        x,
        elbo=elbo(),
        epochs=3,
        batch_size=32,
        seed=4,
        optimizer=partial(torch.optim.Adam, lr=1e-2, fused=fused),
    )
    pyro.set_rng_seed(9)
    svi = SVI(theirs.model, theirs.guide, pyro.optim.Adam({"lr": 1e-2}), elbo())
    for epoch in range(3):
        for rows in epoch_order(70, epoch=epoch, seed=4).split(32):
            svi.step(x[rows])
    for one, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    start = make_vae().state_dict()
    assert all(not torch.equal(a, b) for a, b in zip(ours.state_dict().values(), start.values(), strict=True))


@pytest.mark.parametrize("bound", [False, True], ids=["functions", "bound methods"])
def test_a_hand_written_pair_trains_as_under_svi(bound):
    # Fact 4 of the design: bound methods and functions have no parameters that elbo(model, guide) would see.
    pyro.set_rng_seed(1)
    hand = HandWritten()
    start = copy.deepcopy(hand)
    x = torch.randn(40, 4)
    model, guide = (hand.model, hand.guide) if bound else ((lambda r: hand.model(r)), (lambda r: hand.guide(r)))
    pyro.set_rng_seed(2)
    fit(model, guide, x, elbo=Trace_ELBO(), epochs=2, batch_size=16, optimizer=PLAIN_ADAM)
    ours = {name: value.clone() for name, value in pyro.get_param_store().items()}
    pyro.clear_param_store()
    pyro.set_rng_seed(2)
    svi = SVI(start.model, start.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    for epoch in range(2):
        for rows in epoch_order(40, epoch=epoch, seed=0).split(16):
            svi.step(x[rows])
    assert len(ours) == 6
    assert_same(ours, dict(pyro.get_param_store().items()))


def test_fit_trains_a_plain_module(x):
    # Fact 4: under SVI a plain nn.Module program trains nothing.
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 6)

        def forward(self, x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=self.layer(z)).to_event(1), obs=x)

    model, guide = Plain(), make_vae().guide
    before = weights(model)
    fit(model, guide, x, elbo=Trace_ELBO(), epochs=1)
    assert all(not torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_two_vaes_and_a_copy_all_train_under_svi_and_fit(x):
    one, two = make_vae(), make_vae()
    three = copy.deepcopy(one)
    before = [weights(v) for v in (one, two, three)]
    for vae in (one, two, three):
        SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(x)
    for vae, start in zip((one, two, three), before, strict=True):
        assert all(not torch.equal(start[name], value) for name, value in vae.state_dict().items())
        start.update(weights(vae))
        fit(vae.model, vae.guide, x, elbo=Trace_ELBO(), epochs=1)
        assert all(not torch.equal(start[name], value) for name, value in vae.state_dict().items())


def test_two_vaes_cannot_share_a_name(x):
    vae = VAE(StandardNormalPrior(2), BernoulliLikelihood(MLP(2, 6)), NormalEncoder(MLP(6, 4)), name="mine")
    parts = (StandardNormalPrior(2), BernoulliLikelihood(MLP(2, 6)), NormalEncoder(MLP(6, 4)))
    with pytest.raises(ValueError, match="have the name 'mine'"):
        VAE(*parts, name="mine")
    vae.model(x)
    del vae  # its parameters leave Pyro's store
    assert VAE(*parts, name="mine").name == "mine"
    pyro.param("mine.own", torch.zeros(2))
    with pytest.raises(ValueError, match="have the name 'mine'"):
        VAE(*parts, name="mine")
    pyro.clear_param_store()
    assert VAE(*parts, name="mine").name == "mine"


@pytest.mark.parametrize("prior", [StandardNormalPrior, MixturePrior])
def test_the_history_records_a_rising_elbo(x, prior):
    vae = make_vae(prior=prior)
    history = fit(
        vae.model, vae.guide, x, elbo=Trace_ELBO(), epochs=25, batch_size=35, validation=x, optimizer=PLAIN_ADAM
    )
    assert len(history) == 25
    assert history["epoch"] == list(range(1, 26))
    assert history["train_elbo"][-1] > history["train_elbo"][0]
    assert history["validation_elbo"][-1] > history["validation_elbo"][0]
    assert history.stop_reason == "epochs"


def test_the_programs_end_at_the_best_epoch(x):
    vae = make_vae()
    seen = {}

    def commit(state):
        seen[state["epoch"]] = {name: value.clone() for name, value in state["values"].items()}

    history = fit(
        vae.model,
        vae.guide,
        x,
        elbo=Trace_ELBO(),
        epochs=40,
        validation=torch.bernoulli(torch.full((30, 6), 0.3)),
        patience=3,
        optimizer=partial(torch.optim.Adam, lr=0.2),
        commit=commit,
    )
    assert history.stop_reason == "plateau"
    assert len(history) == history.best_epoch + 3
    assert history["validation_elbo"][history.best_epoch - 1] == max(history["validation_elbo"])
    assert_same(weights(vae), seen[history.best_epoch])


def test_the_train_elbo_is_per_datum(x):
    # With a learning rate of zero the parameters stay constant, and the training objective is the ELBO per datum.
    vae = make_vae()
    arguments = {"epochs": 60, "batch_size": 32, "optimizer": partial(torch.optim.SGD, lr=0.0), "validation": x}
    history = fit(vae.model, vae.guide, x, elbo=TraceMeanField_ELBO(), **arguments)
    bound = evidence_lower_bound(vae.model, vae.guide, x, num_particles=2000).value.mean().item()
    values = torch.tensor(history["train_elbo"])
    # Five standard errors of the mean of 60 epochs, the seed fixed.
    assert abs(values.mean().item() - bound) < 5 * values.std().item() / 60**0.5 + 0.01
    assert len(set(history["validation_elbo"])) == 1  # the same draws in each epoch
    assert abs(history["validation_elbo"][0] - bound) < 0.5
    assert history.best_epoch == 1  # an equal epoch is not better


def test_a_hand_written_pair_resumes_and_ends_at_its_best_epoch():
    pyro.set_rng_seed(1)
    hand = HandWritten()
    x = torch.randn(40, 4)
    states = []
    arguments = {"elbo": Trace_ELBO(), "epochs": 6, "batch_size": 16, "optimizer": PLAIN_ADAM, "validation": x[:5]}
    start = copy.deepcopy(hand)
    pyro.set_rng_seed(2)
    history = fit(hand.model, hand.guide, x, commit=lambda s: states.append(copy.deepcopy(s)), **arguments)
    ours = {name: value.clone() for name, value in pyro.get_param_store().items()}
    assert_same(
        {name: value for name, value in states[history.best_epoch - 1]["values"].items() if name.startswith("param.")},
        {f"param.{name}": value.detach() for name, value in pyro.get_param_store().named_parameters()},
    )
    pyro.clear_param_store()
    pyro.set_rng_seed(99)
    fit(start.model, start.guide, x, resume=states[2], **arguments)
    assert_same(ours, dict(pyro.get_param_store().items()))


def test_fit_sets_training_mode_and_commits_buffers(x):
    network = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6))
    vae = VAE(StandardNormalPrior(2), BernoulliLikelihood(network), NormalEncoder(MLP(6, 4))).eval()
    states = []
    fit(vae.model, vae.guide, x, elbo=Trace_ELBO(), epochs=1, commit=states.append)
    assert network.training
    assert bool((network[1].running_mean != 0).any())
    assert any(name.endswith("running_mean") for name in states[0]["values"])


def test_the_order_of_the_data_depends_on_epoch_and_seed():
    orders = [tuple(epoch_order(20, epoch=e, seed=s).tolist()) for e in range(4) for s in range(4)]
    assert len(set(orders)) == 16
    assert sorted(orders[0]) == list(range(20))


def stop_after(steps):
    count = iter(range(1, 10**6))
    return lambda: next(count) == steps


@pytest.mark.parametrize("stop_at", [1, 4, 7, 9, 13])
@pytest.mark.parametrize("optimizer", [PLAIN_ADAM, partial(torch.optim.SGD, lr=1e-3, momentum=0.9)])
@pytest.mark.thin(3)
def test_a_resumed_run_equals_an_uninterrupted_run(x, stop_at, optimizer):
    arguments = {
        "elbo": Trace_ELBO(),
        "epochs": 4,
        "batch_size": 20,
        "validation": x[:9],
        "optimizer": optimizer,
        "seed": 3,
        "transform": noisy,
    }
    straight = make_vae()
    pyro.set_rng_seed(8)
    history = fit(straight.model, straight.guide, x, **arguments)

    broken, states = make_vae(), []
    pyro.set_rng_seed(8)
    with pytest.raises(StoppedError, match=f"after step {(stop_at - 1) % 4 + 1} of 4"):
        fit(
            broken.model,
            broken.guide,
            x,
            **arguments,
            commit=lambda s: states.append(copy.deepcopy(s)),
            should_stop=stop_after(stop_at),
        )
    fresh = make_vae(seed=77)
    pyro.set_rng_seed(1234)
    again = fit(fresh.model, fresh.guide, x, **arguments, resume=states[-1])
    assert_same(weights(straight), weights(fresh))
    for key in ("epoch", "train_elbo", "validation_elbo"):
        assert history[key] == again[key]
    assert again.best_epoch == history.best_epoch


def noisy(x):
    return torch.where(torch.rand_like(x) < 0.1, 1 - x, x)


def test_the_transform_is_applied_to_each_batch_anew(x):
    seen = []

    def transform(batch):
        seen.append(noisy(batch))
        return seen[-1]

    vae = make_vae()
    fit(vae.model, vae.guide, x[:10], elbo=Trace_ELBO(), epochs=2, transform=transform)
    batches = seen[-2:]
    assert not torch.equal(batches[0].sort(0).values, batches[1].sort(0).values)


def test_validation_draws_leave_the_random_state_unchanged(x):
    from torch.distributions import Distribution

    vae = make_vae()
    before = Distribution._validate_args
    torch.manual_seed(3)
    fit(vae.model, vae.guide, x, elbo=Trace_ELBO(), epochs=1, batch_size=70, validation=x)
    after_with = torch.rand(1)
    assert Distribution._validate_args == before
    vae = make_vae()
    torch.manual_seed(3)
    fit(vae.model, vae.guide, x, elbo=Trace_ELBO(), epochs=1, batch_size=70)
    assert torch.equal(after_with, torch.rand(1))  # validation restores the random state


def test_pyro_checks_only_the_first_batch(x):
    # Fact 7 of the design.
    from torch.distributions import Distribution

    vae, seen = make_vae(), []

    class Watching(Trace_ELBO):
        def differentiable_loss(self, model, guide, *args, **kwargs):
            seen.append(Distribution._validate_args)
            return super().differentiable_loss(model, guide, *args, **kwargs)

    fit(vae.model, vae.guide, x, elbo=Watching(), epochs=2, batch_size=35)
    assert seen == [True, False, False, False]


def test_data_may_be_a_tensor_a_sequence_or_a_mapping(x):
    vae = make_vae()
    results = []
    for data in (x, [x], {"x": x}):
        vae = make_vae()
        pyro.set_rng_seed(1)
        fit(vae.model, vae.guide, data, elbo=Trace_ELBO(), epochs=1)
        results.append(weights(vae))
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


class TestRefusals:
    def test_grey_pixels_are_refused_with_two_remedies(self, x):
        vae = make_vae()
        x[65, 2] = 0.5
        with pytest.raises(ValueError, match=r"0\.5 at datum 65, entry 2.*binarise.*ContinuousBernoulliLikelihood"):
            fit(vae.model, vae.guide, x, elbo=Trace_ELBO(), epochs=1)

    def test_a_nan_loss_stops_training_before_a_commit(self, x):
        vae = make_vae()
        commits = []
        pyro.set_rng_seed(0)
        message = r"became nan in epoch \d+, step \d+; the density of site 'z' of the guide is not finite; lower"
        with pytest.raises(NonFiniteLossError, match=message):
            fit(
                vae.model,
                vae.guide,
                x,
                elbo=Trace_ELBO(),
                epochs=400,
                batch_size=10,
                optimizer=partial(torch.optim.SGD, lr=1e6),
                commit=lambda state: commits.append(copy.deepcopy(state["values"])),
            )
        assert all(torch.isfinite(value).all() for values in commits for value in values.values())

    def test_infinite_parameters_after_the_last_step_are_not_committed(self, x):
        # One step an epoch: its loss is finite, the parameters after it are not.
        vae = make_vae()
        commits = []
        with pytest.raises(NonFiniteLossError, match=r"'model\..*' became nan or infinite in epoch 1"):
            fit(
                vae.model,
                vae.guide,
                x,
                elbo=Trace_ELBO(),
                epochs=2,
                batch_size=70,
                optimizer=partial(torch.optim.SGD, lr=float("inf")),
                commit=commits.append,
            )
        assert not commits

    @pytest.mark.parametrize("name", ["epochs", "batch_size", "patience"])
    def test_fit_refuses_counts_below_one(self, x, name):
        vae = make_vae()
        arguments = {"epochs": 1, "validation": x, name: 0}
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            fit(vae.model, vae.guide, x, elbo=Trace_ELBO(), **arguments)

    def test_patience_without_validation_data_is_refused(self, x):
        vae = make_vae()
        with pytest.raises(ValueError, match="patience needs validation data"):
            fit(vae.model, vae.guide, x, elbo=Trace_ELBO(), epochs=1, patience=2)

    def test_programs_without_parameters_are_refused(self):
        oracle = LinearGaussian()
        vae = oracle.vae()
        vae.requires_grad_(False)
        with pytest.raises(ValueError, match="no parameters to train"):
            fit(vae.model, vae.guide, oracle.data(5), elbo=Trace_ELBO(), epochs=1)

    def test_an_objective_without_a_differentiable_loss_is_refused(self, x):
        vae = make_vae()
        with pytest.raises(ValueError, match="RenyiELBO has no differentiable_loss"):
            fit(vae.model, vae.guide, x, elbo=RenyiELBO(), epochs=1)

    def test_nan_on_validation_data_stops_training(self, x):
        class Broken(nn.Module):
            def forward(self, z):
                x = z.repeat_interleave(3, dim=-1)
                return x if self.training else x * torch.nan

        vae = VAE(StandardNormalPrior(2), NormalLikelihood(Broken()), NormalEncoder(MLP(6, 4)))
        with pytest.raises(NonFiniteLossError, match="on the validation data, the log weights of datum 0 are NaN"):
            fit(vae.model, vae.guide, x, elbo=Trace_ELBO(), epochs=2, validation=x[:3])

    def test_validation_data_outside_the_support_are_refused(self, x):
        vae = make_vae()
        with pytest.raises(ValueError, match="lie outside the support"):
            fit(vae.model, vae.guide, x, elbo=Trace_ELBO(), epochs=1, validation=x + 0.5)

    def test_an_objective_that_is_a_class_is_refused(self, x):
        vae = make_vae()
        with pytest.raises(ValueError, match=r"must be an object, .*; give Trace_ELBO\(\)"):
            fit(vae.model, vae.guide, x, elbo=Trace_ELBO, epochs=1)

    def test_arrays_on_disk_are_refused_with_a_remedy(self, x, tmp_path):
        numpy.save(tmp_path / "x.npy", x.numpy())
        on_disk = numpy.load(tmp_path / "x.npy", mmap_mode="r")
        vae = make_vae()
        with pytest.raises(ValueError, match=r"got a memory-mapped array; give Streamed\(x\)"):
            fit(vae.model, vae.guide, {"x": on_disk}, elbo=Trace_ELBO(), epochs=1)

    @pytest.mark.parametrize(
        ("decoder", "encoder", "message"),
        [
            (
                MLP(2, 1),
                MLP(6, 4),
                r"x must have shape \(N, 1\), which the likelihood gives, got \(70, 6\); give .* num_outputs\(6\)",
            ),
            (
                MLP(2, 6),
                MLP(6, 3),
                "a multiple of 2 outputs, got 3",
            ),
            (
                MLP(3, 6),
                MLP(6, 6),
                "covariates of shape .70, 1., got no covariates; give .*, or build the networks for 1 inputs fewer",
            ),
        ],
    )
    def test_log_weights_refuse_networks_of_other_sizes(self, x, decoder, encoder, message):
        vae = VAE(StandardNormalPrior(2), BernoulliLikelihood(decoder), NormalEncoder(encoder))
        with pytest.raises(ValueError, match=message):
            log_weights(vae.model, vae.guide, x, num_particles=2)

    def test_fit_refuses_the_state_of_another_model(self, x):
        states = []
        vae = make_vae()
        fit(vae.model, vae.guide, x, elbo=Trace_ELBO(), epochs=1, commit=states.append)
        mixture = make_vae(prior=MixturePrior)
        with pytest.raises(ValueError, match="another model: parameters differ"):
            fit(mixture.model, mixture.guide, x, elbo=Trace_ELBO(), epochs=1, resume=states[0])
        with pytest.raises(ValueError, match="steps an epoch"):
            fit(vae.model, vae.guide, x, elbo=Trace_ELBO(), epochs=1, batch_size=7, resume=states[0])


@pytest.mark.parametrize(("size", "joined"), [(7, [3, 4]), (8, [3, 3, 2]), (9, [3, 3, 3]), (1, [1])])
def test_a_remainder_of_one_joins_the_batch_before_it_for_aggregate_objectives_alone(size, joined):
    oracle = LinearGaussian(dtype=torch.float32)
    x = oracle.data(size)
    for least, sizes in ((2, joined), (1, [len(rows) for rows in x.split(3)])):
        batches = Batches((x,), {}, batch_size=3, least_data=least)
        assert [len(batches.rows(step)) for step in range(batches.steps)] == sizes
        assert sum(rows * count for rows, count in batches.calls(1).items()) == size
    assert Trace_ELBO.__dict__.get("least_data", 1) == 1
    for elbo in (BetaTCELBO(9), FactorVAEELBO(2), InfoVAEELBO(), DIPVAEELBO()):
        if size > 1:
            vae = oracle.vae(sd_factor=1.0)
            fit(vae.model, vae.guide, x, elbo=elbo, epochs=1, batch_size=3, validation=x, progress=False)
