"""Steps as CUDA graphs, where there is no card: a stand-in that keeps what a graph keeps, operations and addresses."""

from contextlib import contextmanager, nullcontext
from functools import partial

import pyro
import pytest
import torch
from oracles import stepper_of
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyrovae import VAE, BernoulliLikelihood, NormalEncoder, StandardNormalPrior
from pyrovae.recording import CHECKED_CALLS, NotRecordedWarning

STEPS = 9
ADAM, SGD = partial(torch.optim.Adam, lr=1e-2, fused=True), partial(torch.optim.SGD, lr=1e-2)


def tensors(value):
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


class Graph(TorchDispatchMode):
    """Operations on the tensors they met when captured: a replay reads and writes the same memory.

    As on a card, what a capture runs changes nothing, neither tensors nor generators.
    """

    replays = 0

    def __init__(self):
        super().__init__()
        self.operations, self.before = [], {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tensors(value):
                    self.before.setdefault(id(tensor), (tensor, tensor.clone()))
        out = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, out))
        return out

    def replay(self):
        Graph.replays += 1
        with torch.no_grad():
            for func, args, kwargs, out in self.operations:
                inputs = {tensor.untyped_storage().data_ptr() for tensor in tensors((args, kwargs))}
                for mine, new in zip(tensors(out), tensors(func(*args, **kwargs)), strict=True):
                    if mine.untyped_storage().data_ptr() not in inputs:
                        mine.copy_(new)


@contextmanager
def capturing(graph, capture_error_mode):
    assert capture_error_mode == "thread_local"  # a batch may be prepared meanwhile
    state = torch.get_rng_state()
    with graph:
        yield
    with torch.no_grad():
        for tensor, value in reversed(graph.before.values()):
            tensor.copy_(value)
    torch.set_rng_state(state)


@pytest.fixture
def card(monkeypatch):
    """Make a function that says of a stepper that its parameters are on a card."""

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

    def move(stepper):
        stepper.device = torch.device("cuda")
        for group in stepper.optimizer.param_groups:  # as a stepper does where parameters are on a card
            if "capturable" in group:
                group["capturable"] = True

    return move


def networks(*extra):
    pyro.set_rng_seed(5)
    decoder, encoder = (
        nn.Sequential(nn.Linear(n, 8), *(make() for make in extra), nn.Tanh(), nn.Linear(8, m))
        for n, m in ((2, 6), (6, 4))
    )
    return VAE(StandardNormalPrior(2), BernoulliLikelihood(decoder), NormalEncoder(encoder))


def run(make_optimizer, elbo, *extra, move=None, sizes=(20,), steps=STEPS):
    """Parameters, buffers, losses and gradients of some steps with other data and weights each, and a draw after."""
    vae = networks(*extra)
    parameters = list(vae.parameters())
    stepper = stepper_of(vae, elbo, make_optimizer, "recorded", dict.fromkeys(sizes, steps), weighted=True)
    if move is not None:
        move(stepper)
    found = []
    for step in range(steps):
        x = torch.bernoulli(torch.full((sizes[step % len(sizes)], 6), 0.3))
        loss = stepper(len(x), (x,), {}, weight=0.5 + step / 10).clone()
        found.append([loss, *(parameter.grad.clone() for parameter in parameters)])
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
    replayed = run(make_optimizer, TraceMeanField_ELBO(), *extra, move=card, **settings)
    assert Graph.replays == (STEPS - CHECKED_CALLS) * len(sizes)
    for one, other in zip(recorded, replayed, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_what_a_card_cannot_capture_is_replayed_without_a_graph(card, monkeypatch):
    def refusing(graph, capture_error_mode):
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be")

    recorded = run(ADAM, Trace_ELBO())
    monkeypatch.setattr(torch.cuda, "graph", refusing)
    with pytest.warns(NotRecordedWarning, match="since CUDA cannot capture.*operation not permitted") as caught:
        found = run(ADAM, Trace_ELBO(), move=card)
    assert len(caught) == 1
    assert "might be" not in str(caught[0].message)
    for one, other in zip(recorded, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
