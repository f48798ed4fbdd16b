"""Recorded programs have the numbers, gradients and draws of eager programs, or a warning says why not."""

import copy
import sys
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import HandWritten
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import nn

from pyrovae import (
    MLP,
    VAE,
    BernoulliLikelihood,
    CategoricalEncoder,
    CategoricalPrior,
    DefensiveProposal,
    GuideProposal,
    LinearWarmup,
    MixtureVAE,
    NormalEncoder,
    StandardNormalPrior,
    fit,
    log_marginal,
)
from pyrovae.execution import NotRecordedWarning, Recorded, choose_execution
from pyrovae.objectives.recordable_elbos import RecordableTrace_ELBO
from pyrovae.programs import Blueprint
from pyrovae.training import StoppedError

PLAIN_ADAM = partial(torch.optim.Adam, lr=1e-2)
SGD = partial(torch.optim.SGD, lr=1e-2)
ENUMERATED = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)


def test_a_record_that_inductor_cannot_compile_is_replayed_without_compilation(x, monkeypatch):
    def failing(graph, inputs):
        raise RuntimeError("no compiler is found\nand more")

    monkeypatch.setattr(sys.modules["pyrovae.execution.replay"], "compile_graph", failing)
    recorded = trained("recorded", x, batch_size=35)
    with pytest.warns(NotRecordedWarning, match="replayed without compilation, .*: no compiler is found$") as caught:
        compiled = trained("compiled", x, batch_size=35)
    assert len(caught) == 1
    assert all(torch.equal(value, recorded[0][name]) for name, value in compiled[0].items())


def test_programs_do_not_run_after_they_are_recorded(x):
    def runs(epochs):
        vae, count = make_vae(), []
        vae.model.likelihood.register_forward_hook(lambda *given: count.append(1))
        trained("recorded", x, lambda: vae, epochs=epochs, batch_size=35, elbo=TraceMeanField_ELBO())
        return len(count)

    assert runs(3) == runs(9)


@pytest.mark.parametrize(("least", "execution"), [((6, 99), "recorded"), ((7, 99), "eager"), ((2, 6), "compiled")])
def test_auto_execution_of_steps_follows_from_their_number(x, monkeypatch, least, execution):
    for name, value in zip(("RECORDED_FROM", "COMPILED_FROM"), least, strict=True):
        monkeypatch.setattr(sys.modules["pyrovae.training.stepper"], name, value)
    monkeypatch.setattr(sys.modules["pyrovae.execution.replay"], "compile_graph", lambda graph, inputs: graph)
    found = trained("auto", x, epochs=3, batch_size=35)  # six steps
    assert found[2][-1]["stepper"]["executions"]["35"] == execution


class Transposed(nn.Module):
    """A layer whose weight has a gradient with the strides of the transpose."""

    def __init__(self, num_inputs, num_outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_outputs, num_inputs))

    def forward(self, value):
        return value @ self.weight.t().contiguous()


def test_gradients_have_the_strides_of_the_parameters(x):
    def make():
        pyro.set_rng_seed(5)
        return VAE(StandardNormalPrior(2), BernoulliLikelihood(Transposed(2, 6)), NormalEncoder(network(6, 4)))

    vae = make()
    loss = TraceMeanField_ELBO().differentiable_loss(vae.model, vae.guide, x)
    (gradient,) = torch.autograd.grad(loss, [vae.model.likelihood.network.weight])
    assert gradient.stride() != vae.model.likelihood.network.weight.stride()
    adam = partial(torch.optim.Adam, lr=1e-2, fused=True)
    assert_trained_alike(*(trained(how, x, make, optimizer=adam) for how in ("eager", "recorded")))


def network(num_inputs, num_outputs, *extra):
    return nn.Sequential(nn.Linear(num_inputs, 8), *extra, nn.Tanh(), nn.Linear(8, num_outputs))


def make_vae(*extra, seed=5):
    pyro.set_rng_seed(seed)
    return VAE(StandardNormalPrior(2), BernoulliLikelihood(network(2, 6, *extra)), NormalEncoder(network(6, 4, *extra)))


@pytest.fixture
def x():
    return torch.bernoulli(torch.full((70, 6), 0.3))


def trained(execution, x, make=make_vae, elbo=None, seed=3, **arguments):
    """Run `fit` from one seed. Returns the final values, the history and all committed states."""
    programs = make()
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    arguments = {"epochs": 3, "batch_size": 32, "optimizer": PLAIN_ADAM, **arguments}
    states = []
    history = fit(
        programs.model,
        programs.guide,
        x,
        elbo=elbo or Trace_ELBO(),
        execution=execution,
        commit=lambda state: states.append(copy.deepcopy(state)),
        **arguments,
    )
    return states[-1]["values"], history, states


def assert_trained_alike(one, other, tolerance=1e-5):
    assert one[0].keys() == other[0].keys()
    for name, value in one[0].items():
        torch.testing.assert_close(value, other[0][name], rtol=tolerance, atol=tolerance)
    for a, b in zip(one[1]["train_elbo"], other[1]["train_elbo"], strict=True):
        assert a is b is None or abs(a - b) < 1e-4


@pytest.mark.parametrize(
    "elbo",
    [
        Trace_ELBO(),
        TraceMeanField_ELBO(),
        Trace_ELBO(num_particles=2),
        TraceMeanField_ELBO(num_particles=3, vectorize_particles=True),
    ],
    ids=["sampled", "closed form", "particles in turn", "particles at once"],
)
@pytest.mark.thin(2)
def test_recorded_fit_equals_eager_fit(x, elbo):
    runs = [trained(how, x, elbo=copy.deepcopy(elbo), validation=x[:9]) for how in ("eager", "recorded")]
    assert_trained_alike(*runs)
    assert runs[0][1]["validation_elbo"] == pytest.approx(runs[1][1]["validation_elbo"], abs=1e-4)
    assert runs[1][2][-1]["stepper"] == {"executions": {"32": "recorded", "6": "recorded"}, "refused": None}


def test_the_kl_weight_is_not_a_constant_of_the_record(x):
    # Six steps of one shape. The weight also changes after the two steps that are verified.
    arguments = {"elbo": TraceMeanField_ELBO(), "kl_weight": LinearWarmup(4), "batch_size": 35}
    runs = [trained(how, x, **arguments) for how in ("eager", "recorded")]
    assert_trained_alike(*runs)
    other = trained("recorded", x, **{**arguments, "kl_weight": lambda epoch: min(1.0, epoch / 4) if epoch < 2 else 9})
    assert any(not torch.allclose(value, runs[1][0][name], atol=1e-4) for name, value in other[0].items())


def test_batch_norm_keeps_its_running_means(x):
    # SGD, since the bias before batch norm has a gradient of rounding errors only, which Adam would amplify.
    runs = [trained(how, x, partial(make_vae, nn.BatchNorm1d(8)), optimizer=SGD) for how in ("eager", "recorded")]
    assert_trained_alike(*runs)
    counts = [value for name, value in runs[1][0].items() if name.endswith("num_batches_tracked")]
    assert [int(count) for count in counts] == [18, 18]  # one module in both networks, nine steps


def test_dropout_draws_anew_at_every_replay(x):
    assert_trained_alike(*(trained(how, x, partial(make_vae, nn.Dropout(0.4))) for how in ("eager", "recorded")))
    dropped = Recorded(lambda x: [nn.functional.dropout(x, 0.5)])
    torch.manual_seed(1)
    draws = [dropped(x + 1)[0] for _ in range(4)]
    torch.manual_seed(1)
    assert all(torch.equal(draw, nn.functional.dropout(x + 1, 0.5)) for draw in draws)
    assert not torch.equal(draws[2], draws[3])


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.thin(1)
def test_recorded_steps_with_masks_equal_eager_steps(x, elbo):
    mask = torch.rand(70, 6) < 0.7
    data = {"x": x.where(mask, torch.nan), "mask": mask}
    assert_trained_alike(*(trained(how, data, elbo=elbo()) for how in ("eager", "recorded")))


def test_a_hand_written_pair_with_parameters_in_pyros_store_is_recorded():
    x = torch.randn(40, 4)

    def make():
        pyro.set_rng_seed(1)
        return HandWritten()

    runs = [trained(how, x, make, batch_size=16) for how in ("eager", "recorded")]
    assert len(runs[0][0]) == 6
    assert_trained_alike(*runs)


class Pair(nn.Module):
    """A model of one latent and six Bernoulli variables, with a given draw of the guide and a given prior."""

    def __init__(self, draw, prior):
        super().__init__()
        pyro.set_rng_seed(5)
        self.encoder, self.decoder = network(6, 2), network(2, 6)
        self.draw, self.prior = draw, prior

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.prior)
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.draw(self.encoder(x)))


NORMAL = dist.Normal(torch.zeros(2), 1.0).to_event(1)


def test_draws_without_gradients_are_recorded_with_their_score_function_gradients(x):
    make = partial(
        Pair, lambda h: dist.Bernoulli(logits=h).to_event(1), dist.Bernoulli(torch.full((2,), 0.4)).to_event(1)
    )
    assert_trained_alike(*(trained(how, x, make) for how in ("eager", "recorded")))


class Classes(nn.Module):
    """p(y) p(z|y) p(x|z) with a class y that is enumerated in the guide or the model, or drawn."""

    def __init__(self, how="parallel", *, on_the_plate=True):
        super().__init__()
        pyro.set_rng_seed(5)
        self.means, self.logits = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.zeros(3))
        self.classes, self.encoder, self.decoder = network(6, 3), network(9, 2), network(2, 6)
        self.how, self.on_the_plate, self.shift = how, on_the_plate, 0.0

    def model(self, x, mask=None):
        infer = {"enumerate": "parallel"} if self.how == "model" else {}
        if not self.on_the_plate:
            pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1), poutine.mask(mask=True if mask is None else mask):
            y = pyro.sample("y", dist.Categorical(logits=self.logits), infer=infer)
            z = pyro.sample("z", dist.Normal(self.means[y], 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x, mask=None):
        if not self.on_the_plate:
            pyro.sample("w", dist.Normal(0.0, 1.0))
        infer = {"num_samples": 4, "enumerate": "parallel"} if self.how == "some" else {"enumerate": self.how}
        with pyro.plate("data", len(x), dim=-1), poutine.mask(mask=True if mask is None else mask):
            y = torch.zeros(1, dtype=torch.long)
            if self.how != "model":
                q = dist.Categorical(logits=self.classes(x) + self.shift, validate_args=False)
                y = pyro.sample("y", q, infer={} if self.how == "drawn" else infer)
            y = torch.eye(3)[y].expand(*y.shape[: max(0, y.dim() - 1)], len(x), 3)
            given = torch.cat([x.expand(*y.shape[:-1], 6), y], -1)
            pyro.sample("z", dist.Normal(self.encoder(given), 0.3).to_event(1))


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_particles": 2}, {"num_particles": 3, "vectorize_particles": True}],
    ids=["once", "particles in turn", "particles at once"],
)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.thin(1)
def test_recorded_steps_of_a_sum_over_classes_equal_eager_steps(x, settings, masked):
    elbo, data = TraceEnum_ELBO(max_plate_nesting=1, **settings), {"x": x, "mask": torch.rand(70) < 0.7}
    arguments = {"elbo": elbo, "kl_weight": LinearWarmup(4), "batch_size": 35}
    runs = [trained(how, data if masked else x, Classes, **arguments) for how in ("eager", "recorded")]
    assert_trained_alike(*runs)
    assert runs[1][2][-1]["stepper"]["refused"] is None


@pytest.mark.parametrize("program", [partial(MixtureVAE, num_classes=3), Blueprint.vae], ids=["mixture", "alone"])
@pytest.mark.thin(1)
def test_programs_with_a_discrete_latent_are_recorded(x, program):
    parts = {"prior": CategoricalPrior, "encoder": CategoricalEncoder} if program is Blueprint.vae else {}

    def make():
        pyro.set_rng_seed(5)
        return program(Blueprint(6, 2, 0, likelihood=BernoulliLikelihood, network=partial(MLP, hidden=[5]), **parts))

    runs = [trained(how, x, make, TraceEnum_ELBO(max_plate_nesting=1)) for how in ("eager", "recorded")]
    assert_trained_alike(*runs)
    assert runs[1][2][-1]["stepper"]["refused"] is None


def test_recorded_steps_stay_finite_if_a_class_has_probability_0(x):
    def make():
        pair = Classes()
        pair.shift = torch.tensor([0.0, -torch.inf, 0.0])
        return pair

    runs = [trained(how, x, make, TraceEnum_ELBO(max_plate_nesting=1)) for how in ("eager", "recorded")]
    assert all(bool(value.isfinite().all()) for value in runs[1][0].values())
    assert_trained_alike(*runs)


def calls_of(factors):
    """Return a draw whose scale is another Python number at each call."""
    numbers = iter(factors)
    return lambda h: dist.Normal(h, next(numbers)).to_event(1)


def branching(h):
    return dist.Normal(h if h.sum() > 0 else 2 * h, 0.3).to_event(1)


def selecting(h):
    return dist.Normal(h + h[h[:, 0] > -9].mean(0), 0.3).to_event(1)


class Own(Trace_ELBO):
    pass


@pytest.mark.parametrize(
    ("make", "elbo", "reason"),
    [
        (partial(Pair, branching, NORMAL), Trace_ELBO(), r"value of a tensor.* in test_recording.py, line \d+"),
        (partial(Pair, selecting, NORMAL), Trace_ELBO(), "the output shape of aten.index.Tensor depends on"),
        (make_vae, Own(), "but Own is not known to be one; set its attribute recordable to True"),
        (partial(Classes, "sequential"), ENUMERATED, "enumerates all values of site 'y' in parallel"),
        (partial(Classes, "some"), ENUMERATED, "enumerates all values of site 'y' in parallel"),
        (partial(Classes, "model"), ENUMERATED, "enumerates all values of site 'y' in parallel"),
        (partial(Classes, "drawn"), ENUMERATED, "needs reparameterised draws, but site 'y' has none"),
        (partial(Classes, on_the_plate=False), ENUMERATED, "needs every site in the data plate alone"),
    ],
    ids=["control flow", "selection", "own objective", "in turn", "some", "the model's", "drawn", "a site for all"],
)
@pytest.mark.thin(4)
def test_programs_that_cannot_be_recorded_warn_once_and_run_eagerly(x, make, elbo, reason):
    eager = trained("eager", x, make, elbo)
    with pytest.warns(NotRecordedWarning, match=f"training runs eagerly, .* recorded: .*{reason}") as caught:
        runs = trained("recorded", x, make, elbo)
    assert len(caught) == 1
    assert_trained_alike(eager, runs, 1e-6)


def test_a_python_number_that_changes_between_steps_is_detected(x):
    # The checks before the first step, the first reference and the record use 0.1; then come 0.9.
    numbers = [0.1] * 12 + [0.9] * 30
    with pytest.warns(NotRecordedWarning, match="the replay gives different numbers"):
        trained("recorded", x, lambda: Pair(calls_of(numbers), NORMAL), batch_size=70)


def test_a_derivative_that_recording_loses_is_detected(x):
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * (2.0 if torch.utils._python_dispatch._get_current_dispatch_mode() is None else 1.0)

    make = partial(Pair, lambda h: dist.Normal(Doubled.apply(h), 0.3).to_event(1), NORMAL)
    eager = trained("eager", x, make)
    with pytest.warns(NotRecordedWarning, match="the replay gives different numbers"):
        found = trained("recorded", x, make)
    assert_trained_alike(eager, found, 1e-6)


def test_a_user_objective_marked_recordable_is_recorded(x):
    class Halved(RecordableTrace_ELBO):
        recordable = True

        def differentiable_loss(self, *args, **kwargs):
            return super().differentiable_loss(*args, **kwargs) / 2

    runs = [trained(how, x, elbo=Halved(), optimizer=SGD) for how in ("eager", "recorded")]
    assert runs[1][2][-1]["stepper"]["refused"] is None
    assert_trained_alike(*runs)


def stop_after(steps):
    count = iter(range(1, 10**6))
    return lambda: next(count) == steps


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [1, 4, 6])
def test_a_resumed_recorded_run_equals_an_uninterrupted_run(x, stop_at):
    arguments = {"validation": x[:9], "kl_weight": LinearWarmup(2), "transform": noisy}
    straight = trained("recorded", x, partial(make_vae, nn.Dropout(0.2)), **arguments)
    broken, states = make_vae(nn.Dropout(0.2)), []
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    arguments |= {"elbo": Trace_ELBO(), "epochs": 3, "batch_size": 32, "optimizer": PLAIN_ADAM}
    with pytest.raises(StoppedError):
        fit(
            broken.model,
            broken.guide,
            x,
            **arguments,
            execution="recorded",
            commit=lambda state: states.append(copy.deepcopy(state)),
            should_stop=stop_after(stop_at),
        )
    fresh = make_vae(nn.Dropout(0.2), seed=77)
    again = fit(fresh.model, fresh.guide, x, **arguments, resume=states[-1])  # execution="auto" keeps that of the state
    values = {
        f"{part}.{name}": v for part in ("model", "guide") for name, v in getattr(fresh, part).state_dict().items()
    }
    best = straight[2][straight[1].best_epoch - 1]["values"]
    assert all(torch.equal(value, best[name]) for name, value in values.items())
    for key in ("epoch", "train_elbo", "validation_elbo"):
        assert straight[1][key] == again[key]


def noisy(x):
    return torch.where(torch.rand_like(x) < 0.1, 1 - x, x)


def test_resuming_a_run_that_cannot_be_recorded_does_not_warn_again(x):
    make = partial(Pair, branching, NORMAL)
    with pytest.warns(NotRecordedWarning):
        states = trained("recorded", x, make, epochs=2)[2]
    programs = make()
    pyro.clear_param_store()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(programs.model, programs.guide, x, elbo=Trace_ELBO(), epochs=3, batch_size=32, resume=states[-1])


PROPOSALS = {"default": None, "guide": GuideProposal(), "defensive": DefensiveProposal()}


@pytest.mark.parametrize("proposal", [pytest.param("default", marks=pytest.mark.slow), "guide", "defensive"])
def test_recorded_log_marginal_equals_the_eager_one(x, proposal):
    vae = make_vae()
    arguments = {
        "num_particles": 60,
        "chunk_size": 300,
        "proposal": PROPOSALS[proposal],
    }  # 3 blocks, one smaller
    estimates = []
    for how in ("eager", "recorded"):
        pyro.set_rng_seed(4)
        estimates.append(log_marginal(vae.model, vae.guide, x, execution=how, **arguments))
    for eager, recorded in zip(*estimates, strict=True):
        torch.testing.assert_close(eager, recorded, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_log_marginal_with_masks_is_recorded(x):
    vae = make_vae()
    mask = torch.rand(70, 6) < 0.7
    estimates = []
    for how in ("eager", "recorded"):
        pyro.set_rng_seed(4)
        estimates.append(log_marginal(vae.model, vae.guide, x, mask=mask, num_particles=20, execution=how))
    torch.testing.assert_close(estimates[0].value, estimates[1].value)


@pytest.mark.compiles
def test_compiled_log_marginal_equals_the_eager_one(x):
    vae = make_vae()
    estimates = []
    for how in ("eager", "compiled"):
        pyro.set_rng_seed(4)
        estimate = log_marginal(
            vae.model,
            vae.guide,
            x[:64],
            num_particles=40,
            chunk_size=640,
            proposal=GuideProposal(),
            execution=how,
        )
        estimates.append(estimate.value)
    torch.testing.assert_close(*estimates, rtol=1e-4, atol=1e-4)


def test_log_marginal_runs_eagerly_if_the_guide_cannot_be_recorded(x):
    pair = Pair(branching, NORMAL)
    pyro.set_rng_seed(4)
    eager = log_marginal(pair.model, pair.guide, x, num_particles=30, proposal=GuideProposal(), execution="eager")
    pyro.set_rng_seed(4)
    with pytest.warns(NotRecordedWarning, match=r"log w runs eagerly.*value of a tensor") as caught:
        found = log_marginal(
            pair.model, pair.guide, x, num_particles=30, proposal=GuideProposal(), execution="recorded"
        )
    assert len(caught) == 1
    assert torch.equal(eager.value, found.value)


def test_auto_execution_depends_only_on_the_number_of_calls():
    choose = partial(choose_execution, recorded_from=100, compiled_from=1000)
    assert [choose("auto", calls) for calls in (99, 100, 999, 1000)] == ["eager", "recorded", "recorded", "compiled"]
    assert [choose(how, 5) for how in ("eager", "recorded", "compiled")] == ["eager", "recorded", "compiled"]
    with pytest.raises(ValueError, match="execution must be"):
        choose("fast", 5)
