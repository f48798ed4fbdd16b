"""CUDA graphs without a GPU: a stand-in stores operations and addresses, as a CUDA graph does."""

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
from pyrovae.execution.cuda_graphs import CapturedReplay
from pyrovae.execution.replay import VERIFIED_CALLS
from pyrovae.training import StoppedError

# If a GPU is present, torch asks it whether it is capturing. The stand-in never is.
pytestmark = pytest.mark.filterwarnings("ignore:This instance was constructed with capturable=True")

STEPS = 9
ADAM, SGD = partial(torch.optim.Adam, lr=1e-2, fused=True), partial(torch.optim.SGD, lr=1e-2)


def tensors(value):
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


class Graph(TorchDispatchMode):
    """Stand-in for a CUDA graph: a replay repeats the captured operations on the same memory.

    As on a GPU, a capture changes neither tensors nor generators, and a graph keeps only its own tensors alive.
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
    assert capture_error_mode == "thread_local"  # other threads prepare batches during a capture
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
    """Raise the reason first and another error at the end of the capture, as CUDA does."""
    with capturing(graph, stream, capture_error_mode):
        yield
    try:
        refusing(graph, stream, capture_error_mode)
    except RuntimeError:
        raise RuntimeError("operation failed due to a previous error during capture") from None


@pytest.fixture
def gpu(monkeypatch):
    """Return a function after whose call all tensors seem to be on a GPU."""

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
        for name in ("execution.replay", "training.optimizers", "training.stepper"):
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
    """Take steps, each with its own data and KL weight. Returns losses, gradients, final values and the next draw."""
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
@pytest.mark.thin(1)
def test_graphs_of_one_step_train_as_recorded_steps(gpu, make_optimizer, sizes, extra):
    settings = {"sizes": sizes, "steps": STEPS * len(sizes)}
    recorded = run(make_optimizer, TraceMeanField_ELBO(), *extra, **settings)
    assert Graph.replays == 0
    gpu()
    replayed = run(make_optimizer, TraceMeanField_ELBO(), *extra, **settings)
    assert Graph.replays == (STEPS - VERIFIED_CALLS) * len(sizes)
    for one, other in zip(recorded, replayed, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fail", [refusing, breaking])
@pytest.mark.thin(1)
def test_a_step_that_cuda_cannot_capture_is_replayed_without_a_graph(gpu, monkeypatch, fail):
    recorded = run(ADAM, Trace_ELBO())
    monkeypatch.setattr(torch.cuda, "graph", fail)
    gpu()
    with pytest.warns(NotRecordedWarning, match="since CUDA cannot capture.*operation not permitted") as caught:
        found = run(ADAM, Trace_ELBO())
    assert len(caught) == 1
    assert "might be" not in str(caught[0].message)
    for one, other in zip(recorded, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def trained(
    transform=torch.bernoulli, kl_weight=None, epochs=4, stop_after=None, resume=None, optimizer=ADAM, each=lambda: None
):
    """Run `fit` on eight full batches and a smaller one.

    Returns the values, history and next draw with the number of calls of should_stop; the state if the run stopped.
    """
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
    """Capture three steps in one graph."""
    monkeypatch.setattr(sys.modules["pyrovae.training.epochs"], "STEPS_PER_GRAPH", 3)


@pytest.mark.parametrize("kl_weight", [None, LinearWarmup(3)], ids=["plain", "warm-up"])
@pytest.mark.thin(1)
def test_graphs_of_several_steps_train_as_recorded_steps(gpu, at_once, kl_weight):
    recorded, asked = trained(kl_weight=kl_weight)
    assert asked == 4 * 9
    gpu()
    replayed, asked = trained(kl_weight=kl_weight)
    # Epoch 1: two steps verified, one captured, one graph of three, two left; later epochs: 2 x 3 + 2; smaller batches.
    assert asked == 3 + 1 + 2 + 3 * (2 + 2) + 4
    torch.testing.assert_close(recorded, replayed, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("stop_after", "on_gpu"), [(9, True), (15, False)])
@pytest.mark.thin(1)
def test_a_run_stopped_on_either_device_resumes_with_graphs(gpu, at_once, stop_after, on_gpu):
    recorded, _ = trained()
    if on_gpu:
        gpu()
    state = trained(stop_after=stop_after)
    assert (state["epoch"], state["step"]) == (1, 6)
    assert all(group["capturable"] == on_gpu for group in state["optimizer"]["param_groups"])
    gpu()
    replayed, asked = trained(resume=state)
    assert asked == 3 + 5 + 5  # 21 one by one
    assert Graph.replays > 5
    torch.testing.assert_close(recorded, replayed, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kl_weight", [lambda: Capacity(0.5, epochs=2), lambda: KLConstraint(5.0)])
@pytest.mark.thin(1)
def test_kl_weights_that_depend_on_the_divergence_run_at_every_step(gpu, at_once, kl_weight):
    recorded, _ = trained(kl_weight=kl_weight(), epochs=2)
    gpu()
    replayed, asked = trained(kl_weight=kl_weight(), epochs=2)
    assert asked == 2 * 9
    torch.testing.assert_close(recorded, replayed, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("draw", [random.random, np.random.random], ids=["python", "numpy"])
@pytest.mark.thin(1)
def test_a_transform_that_draws_in_python_runs_at_every_step(gpu, at_once, draw):
    def brightened(x):
        return torch.bernoulli(x) if draw() > 1e-9 else x  # draws, and no more

    recorded, _ = trained(transform=brightened, epochs=2)
    gpu()
    with pytest.warns(NotRecordedWarning, match="one by one, .*the replay draws different random numbers") as caught:
        replayed, asked = trained(transform=brightened, epochs=2)
    assert len(caught) == 1
    assert asked == 2 * 9
    torch.testing.assert_close(recorded, replayed, rtol=1e-5, atol=1e-6)


def test_graphs_follow_changed_settings_of_the_optimizer(gpu, at_once):
    made = []

    def make(parameters):
        made.append(ADAM(parameters))
        return made[-1]

    def halve():
        for group in made[-1].param_groups:
            group["lr"] /= 2

    recorded, _ = trained(optimizer=make, each=halve)
    gpu()
    replayed, asked = trained(optimizer=make, each=halve)
    assert asked == 3 + 1 + 2 + 1 + 3 * 9  # after the first epoch the optimizer stands beside the graphs
    torch.testing.assert_close(recorded, replayed, rtol=1e-5, atol=1e-6)


def test_hooks_of_the_optimizer_run_at_every_step(gpu, at_once):
    def make(parameters):
        optimizer = ADAM(parameters)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        optimizer.register_step_post_hook(lambda *given: schedule.step())
        return optimizer

    recorded, _ = trained(optimizer=make)
    gpu()
    replayed, asked = trained(optimizer=make)
    assert asked == 4 * 9
    torch.testing.assert_close(recorded, replayed, rtol=1e-5, atol=1e-6)


def test_an_optimizer_state_from_a_gpu_is_restored_on_a_cpu():
    for refused in (None, "its draws have no record"):
        stepper = stepper_of(networks(), Trace_ELBO(), torch.optim.RMSprop, "recorded", {20: 9})
        for group in stepper.optimizer.param_groups:
            group["capturable"] = True
        stepper.restore({"executions": {"20": "recorded"}, "refused": refused})
        assert not any(group["capturable"] for group in stepper.optimizer.param_groups)


def test_the_step_count_of_an_optimizer_from_a_cpu_is_moved_to_the_gpu(gpu):
    gpu()
    stepper = stepper_of(networks(), Trace_ELBO(), torch.optim.RMSprop, "recorded", {20: 9})
    first = stepper.parameters[0]
    stepper.optimizer.state[first]["step"] = 3
    stepper.restore({"executions": {"20": "recorded"}, "refused": None})
    assert torch.equal(stepper.optimizer.state[first]["step"], torch.tensor(3.0))


def estimated(method):
    """Estimate log p(x) in several chunks. Returns values, standard errors and a draw after them."""
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


@pytest.mark.parametrize("method", [GuideProposal(), None, ais], ids=["guide", "default", "ais"])
@pytest.mark.thin(1)
def test_estimates_with_graphs_equal_those_without(gpu, method):
    recorded = estimated(method)
    assert Graph.replays == 0
    gpu()
    replayed = estimated(method)
    assert Graph.replays > 5
    torch.testing.assert_close(recorded, replayed, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fail", [refusing, breaking])
@pytest.mark.thin(1)
def test_estimates_that_cuda_cannot_capture_are_replayed_without_a_graph(gpu, monkeypatch, fail):
    recorded = estimated(GuideProposal())
    monkeypatch.setattr(torch.cuda, "graph", fail)
    gpu()
    with pytest.warns(NotRecordedWarning, match="replayed kernel by kernel, since CUDA.*operation not permitted"):
        replayed = estimated(GuideProposal())
    torch.testing.assert_close(recorded, replayed, rtol=0, atol=0)


def test_a_cuda_graph_refuses_an_input_on_another_device():
    """A graph would read its value only once, during the capture."""
    here, there = torch.ones(1), torch.ones(1, device="meta")
    for held, inputs in (([], [here, there]), ([there], [here])):
        with pytest.raises(RuntimeError, match="needs all tensors on cpu, got one on meta"):
            CapturedReplay(lambda x, y: [x], held, inputs, torch.device("cpu"))
