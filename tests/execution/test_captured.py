"""CUDA graphs where there is no card: on a stand-in that keeps what a graph keeps, operations and addresses."""

import copy
import random
import sys
import weakref
from contextlib import contextmanager, nullcontext, suppress
from functools import partial

import numpy as np
import pyro
import pytest
import torch
from oracles import stepper_of
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from pyrovae import (
    VAE,
    BernoulliLikelihood,
    Capacity,
    GuideProposal,
    KLConstraint,
    LinearWarmup,
    NormalEncoder,
    StandardNormalPrior,
    ais,
    fit,
    linear_schedule,
    log_marginal,
)
from pyrovae.execution import NotRecordedWarning
from pyrovae.execution.graphs import CapturedReplay
from pyrovae.execution.recording import CHECKED_CALLS
from pyrovae.training import StoppedError

# Where there is a card, torch looks whether it is capturing, which a stand-in never is.
pytestmark = pytest.mark.filterwarnings("ignore:This instance was constructed with capturable=True")

STEPS = 9
ADAM, SGD = partial(torch.optim.Adam, lr=1e-2, fused=True), partial(torch.optim.SGD, lr=1e-2)


def tensors(value):
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


class Graph(TorchDispatchMode):
    """Operations on the tensors they met when captured: a replay reads and writes the same memory.

    As on a card, what a capture runs changes nothing, neither tensors nor generators, and a graph keeps nothing alive
    but what it made itself.
    """

    replays = 0

    def __init__(self):
        super().__init__()
        self.operations, self.before, self.made = [], {}, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tensors(value):
                    self.before.setdefault(id(tensor), (tensor, tensor.clone()))
        out = func(*args, **kwargs)
        self.made |= {id(tensor): tensor for tensor in tensors(out)}
        self.operations.append((func, *tree_map(self.remembered, (args, kwargs)), out))
        return out

    def remembered(self, value):
        return weakref.ref(value) if isinstance(value, torch.Tensor) and id(value) not in self.made else value

    def replay(self):
        Graph.replays += 1
        with torch.no_grad():
            for func, *given, out in self.operations:
                args, kwargs = tree_map(lambda value: value() if isinstance(value, weakref.ref) else value, given)
                inputs = {tensor.untyped_storage().data_ptr() for tensor in tensors((args, kwargs))}
                for mine, new in zip(tensors(out), tensors(func(*args, **kwargs)), strict=True):
                    if mine.untyped_storage().data_ptr() not in inputs:
                        mine.copy_(new)


@contextmanager
def capturing(graph, stream, capture_error_mode):
    assert capture_error_mode == "thread_local"  # a batch may be prepared meanwhile
    state = torch.get_rng_state()
    with graph:
        yield
    with torch.no_grad():
        for tensor, value in reversed(graph.before.values()):
            tensor.copy_(value)
    torch.set_rng_state(state)


def refusing(graph, stream, capture_error_mode):
    raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be")


@contextmanager
def breaking(graph, stream, capture_error_mode):
    """As a card does: the reason at first, and then at the end of the capture, which it made worthless, another."""
    with capturing(graph, stream, capture_error_mode):
        yield
    try:
        refusing(graph, stream, capture_error_mode)
    except RuntimeError:
        raise RuntimeError("operation failed due to a previous error during capture") from None


@pytest.fixture
def card(monkeypatch):
    """Let tensors seem to be on a card from when it is called on."""

    class Stream:
        def wait_stream(self, other):
            pass

    for name, value in {
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda stream: nullcontext(),
        "CUDAGraph": Graph,
        "device": nullcontext,
        "graph": capturing,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(Graph, "replays", 0)

    def move():
        for name in ("execution.recording", "training.steps"):
            monkeypatch.setattr(sys.modules[f"pyrovae.{name}"], "on_gpu", lambda values: True)

    return move


def networks(*extra):
    pyro.set_rng_seed(5)
    decoder, encoder = (
        nn.Sequential(nn.Linear(n, 8), *(make() for make in extra), nn.Tanh(), nn.Linear(8, m))
        for n, m in ((2, 6), (6, 4))
    )
    return VAE(StandardNormalPrior(2), BernoulliLikelihood(decoder), NormalEncoder(encoder))


def run(make_optimizer, elbo, *extra, sizes=(20,), steps=STEPS):
    """Parameters, buffers, losses and gradients of some steps with other data and weights each, and a draw after."""
    vae = networks(*extra)
    parameters = list(vae.parameters())
    stepper = stepper_of(vae, elbo, make_optimizer, "recorded", dict.fromkeys(sizes, steps), weighted=True)
    found = []
    for step in range(steps):
        x = torch.bernoulli(torch.full((sizes[step % len(sizes)], 6), 0.3))
        loss = stepper(len(x), (x,), {}, weight=0.5 + step / 10).clone()
        found.append([loss, *(parameter.grad.clone() for parameter in parameters)])
    assert len(stepper.fully_captured) == (len(sizes) if Graph.replays and make_optimizer is ADAM else 0)
    return [*found, list(vae.state_dict().values()), [torch.rand(())]]


@pytest.mark.parametrize("make_optimizer", [ADAM, SGD], ids=["optimizer in the graph", "optimizer beside it"])
@pytest.mark.parametrize("sizes", [(20,), (20, 7)], ids=["one shape", "two shapes"])
@pytest.mark.parametrize(
    "extra", [(), (partial(nn.Dropout, 0.3), partial(nn.BatchNorm1d, 8))], ids=["plain", "buffers"]
)
def test_replayed_graphs_are_the_steps_themselves(card, make_optimizer, sizes, extra):
    settings = {"sizes": sizes, "steps": STEPS * len(sizes)}
    recorded = run(make_optimizer, TraceMeanField_ELBO(), *extra, **settings)
    assert Graph.replays == 0
    card()
    replayed = run(make_optimizer, TraceMeanField_ELBO(), *extra, **settings)
    assert Graph.replays == (STEPS - CHECKED_CALLS) * len(sizes)
    for one, other in zip(recorded, replayed, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fail", [refusing, breaking])
def test_what_a_card_cannot_capture_is_replayed_without_a_graph(card, monkeypatch, fail):
    recorded = run(ADAM, Trace_ELBO())
    monkeypatch.setattr(torch.cuda, "graph", fail)
    card()
    with pytest.warns(NotRecordedWarning, match="since CUDA cannot capture.*operation not permitted") as caught:
        found = run(ADAM, Trace_ELBO())
    assert len(caught) == 1
    assert "might be" not in str(caught[0].message)
    for one, other in zip(recorded, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def trained(
    transform=torch.bernoulli, kl_weight=None, epochs=4, stop_after=None, resume=None, optimizer=ADAM, each=lambda: None
):
    """What a run of `fit` gives, of eight whole batches and a rest, with how often it asked; or where it stopped."""
    vae, committed, asked = networks(), [], []
    x = torch.rand(70, 6, generator=torch.Generator().manual_seed(1))
    with suppress(StoppedError):
        history = fit(
            vae.model,
            vae.guide,
            x,
            elbo=TraceMeanField_ELBO(),
            epochs=epochs,
            batch_size=8,
            transform=transform,
            kl_weight=kl_weight,
            execution="recorded",
            optimizer=optimizer,
            resume=resume,
            commit=lambda state: committed.append(copy.deepcopy(state)) or each(),
            should_stop=lambda: asked.append(1) or len(asked) == stop_after,
        )
        rows = [[row["train_objective"], row["kl_weight"], row["train_elbo"] or 0.0] for row in history.rows]
        return [*vae.state_dict().values(), torch.tensor(rows), torch.rand(())], len(asked)
    return committed[-1]


@pytest.fixture
def at_once(monkeypatch):
    """Three steps in one graph."""
    monkeypatch.setattr(sys.modules["pyrovae.training.epochs"], "STEPS_PER_GRAPH", 3)


@pytest.mark.parametrize("kl_weight", [None, LinearWarmup(3)], ids=["plain", "warm-up"])
def test_many_steps_in_one_graph_are_those_one_by_one(card, at_once, kl_weight):
    recorded, asked = trained(kl_weight=kl_weight)
    assert asked == 4 * 9
    card()
    replayed, asked = trained(kl_weight=kl_weight)
    # Two steps compared and one captured; three at once and two that are left; later epochs 2 x 3 + 2; the rests.
    assert asked == 3 + 1 + 2 + 3 * (2 + 2) + 4
    torch.testing.assert_close(recorded, replayed, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("stop_after", "on_gpu"), [(9, True), (15, False)])
def test_a_run_stopped_on_either_device_goes_on_in_graphs(card, at_once, stop_after, on_gpu):
    recorded, _ = trained()
    if on_gpu:
        card()
    state = trained(stop_after=stop_after)
    assert (state["epoch"], state["step"]) == (1, 6)
    assert all(group["capturable"] == on_gpu for group in state["optimizer"]["param_groups"])
    card()
    replayed, asked = trained(resume=state)
    assert asked == 3 + 5 + 5  # 21 one by one
    assert Graph.replays > 5
    torch.testing.assert_close(recorded, replayed, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kl_weight", [lambda: Capacity(0.5, epochs=2), lambda: KLConstraint(5.0)])
def test_weights_that_look_at_the_divergence_take_part_in_every_step(card, at_once, kl_weight):
    recorded, _ = trained(kl_weight=kl_weight(), epochs=2)
    card()
    replayed, asked = trained(kl_weight=kl_weight(), epochs=2)
    assert asked == 2 * 9
    torch.testing.assert_close(recorded, replayed, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("draw", [random.random, np.random.random], ids=["python", "numpy"])
def test_a_transform_that_draws_in_python_takes_part_in_every_step(card, at_once, draw):
    def brightened(x):
        return torch.bernoulli(x) if draw() > 1e-9 else x  # draws, and no more

    recorded, _ = trained(transform=brightened, epochs=2)
    card()
    with pytest.warns(NotRecordedWarning, match="taken one by one, .*its record draws other random numbers") as caught:
        replayed, asked = trained(transform=brightened, epochs=2)
    assert len(caught) == 1
    assert asked == 2 * 9
    torch.testing.assert_close(recorded, replayed, rtol=1e-5, atol=1e-6)


def test_settings_of_the_optimizer_that_change_are_followed(card, at_once):
    made = []

    def make(parameters):
        made.append(ADAM(parameters))
        return made[-1]

    def halve():
        for group in made[-1].param_groups:
            group["lr"] /= 2

    recorded, _ = trained(optimizer=make, each=halve)
    card()
    replayed, asked = trained(optimizer=make, each=halve)
    assert asked == 3 + 1 + 2 + 1 + 3 * 9  # after the first epoch the optimizer stands beside the graphs
    torch.testing.assert_close(recorded, replayed, rtol=1e-5, atol=1e-6)


def test_hooks_of_the_optimizer_run_at_every_step(card, at_once):
    def make(parameters):
        optimizer = ADAM(parameters)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        optimizer.register_step_post_hook(lambda *given: schedule.step())
        return optimizer

    recorded, _ = trained(optimizer=make)
    card()
    replayed, asked = trained(optimizer=make)
    assert asked == 4 * 9
    torch.testing.assert_close(recorded, replayed, rtol=1e-5, atol=1e-6)


def test_an_optimizer_from_a_card_steps_on_a_processor():
    for refused in (None, "its draws have no record"):
        stepper = stepper_of(networks(), Trace_ELBO(), torch.optim.RMSprop, "recorded", {20: 9})
        for group in stepper.optimizer.param_groups:
            group["capturable"] = True
        stepper.restore({"executions": {"20": "recorded"}, "refused": refused})
        assert not any(group["capturable"] for group in stepper.optimizer.param_groups)


def test_a_number_of_steps_from_a_processor_is_moved_to_the_card(card):
    card()
    stepper = stepper_of(networks(), Trace_ELBO(), torch.optim.RMSprop, "recorded", {20: 9})
    first = stepper.parameters[0]
    stepper.optimizer.state[first]["step"] = 3
    stepper.restore({"executions": {"20": "recorded"}, "refused": None})
    assert torch.equal(stepper.optimizer.state[first]["step"], torch.tensor(3.0))


def estimated(method):
    """Estimates in several chunks, and a draw after."""
    vae = networks()
    x = torch.bernoulli(torch.full((40 if isinstance(method, GuideProposal) else 7, 6), 0.3))
    pyro.set_rng_seed(2)
    if method is ais:
        quick = {"betas": linear_schedule(6), "num_leapfrog": 2, "num_tuning": 4, "chunk_size": 64}
        found = ais(vae.model, x, num_particles=16, execution="recorded", **quick)
    else:
        num_particles, chunk_size = (7, 20) if method else (600, 200)  # two blocks of data under the guide
        given = {"num_particles": num_particles, "chunk_size": chunk_size, "execution": "recorded"}
        found = log_marginal(vae.model, vae.guide, x, proposal=method, **given)
    return [found.value, found.std_error, torch.rand(())]


@pytest.mark.parametrize("method", [None, GuideProposal(), ais], ids=["default", "guide", "ais"])
def test_estimates_by_graphs_are_those_without(card, method):
    recorded = estimated(method)
    assert Graph.replays == 0
    card()
    replayed = estimated(method)
    assert Graph.replays > 5
    torch.testing.assert_close(recorded, replayed, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fail", [refusing, breaking])
def test_estimates_that_a_card_cannot_capture_are_replayed_without_a_graph(card, monkeypatch, fail):
    recorded = estimated(GuideProposal())
    monkeypatch.setattr(torch.cuda, "graph", fail)
    card()
    with pytest.warns(NotRecordedWarning, match="replayed kernel by kernel, since CUDA.*operation not permitted"):
        replayed = estimated(GuideProposal())
    torch.testing.assert_close(recorded, replayed, rtol=0, atol=0)


def test_an_input_that_lies_elsewhere_is_not_captured():
    """Its value would stay that of the capture."""
    here, there = torch.ones(1), torch.ones(1, device="meta")
    for held, inputs in (([], [here, there]), ([there], [here])):
        with pytest.raises(RuntimeError, match="a tensor lies on meta, and others on cpu"):
            CapturedReplay(lambda x, y: [x], held, inputs, torch.device("cpu"))
