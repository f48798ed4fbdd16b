"""The direct step of fused Adam is the optimizer's own, and is left where something else must happen in a step."""

from functools import wraps

import pytest
import torch
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import ExponentialLR
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from pyrovae.training.optimizers import take_step


class Restless(Adam):
    """Adam that takes every step twice."""

    def step(self, closure=None):
        super().step()
        return super().step()


def with_attribute(optimizer, name, value):
    setattr(optimizer, name, value)
    return optimizer


def looked_at(optimizer):
    """An optimizer with an empty state of each parameter, which a lookup has left behind."""
    assert not any(optimizer.state[parameter] for parameter in optimizer.param_groups[0]["params"])
    return optimizer


OPTIMIZERS = {
    "plain": lambda p: Adam(p, lr=0.1, fused=True),
    "options": lambda p: Adam(p, lr=0.1, betas=(0.7, 0.8), eps=0.3, weight_decay=0.2, maximize=True, fused=True),
    "decoupled": lambda p: AdamW(p, lr=0.1, weight_decay=0.2, fused=True),
    "groups": lambda p: Adam(
        [{"params": p[:1], "lr": 0.5, "betas": (0.5, 0.6)}, {"params": p[1:], "eps": 0.2}], lr=0.1, fused=True
    ),
    "own step": lambda p: Restless(p, lr=0.1, fused=True),
    "gradients scaled": lambda p: with_attribute(Adam(p, lr=0.1, fused=True), "grad_scale", torch.tensor(3.0)),
    "found infinite": lambda p: with_attribute(Adam(p, lr=0.1, fused=True), "found_inf", torch.tensor(1.0)),
    "state looked at": lambda p: looked_at(Adam(p, lr=0.1, fused=True)),
    "amsgrad": lambda p: Adam(p, lr=0.1, amsgrad=True, fused=True),
    "unfused": lambda p: Adam(p, lr=0.1),
    "sgd": lambda p: SGD(p, lr=0.1, momentum=0.9),
}


def walk(make, step):
    """Take ten steps down a sum of cosines; the last parameter has no gradient in even steps."""
    parameters = [torch.linspace(0, 3, 12).reshape(3, 4).requires_grad_(), torch.ones(5, requires_grad=True)]
    optimizer = make(parameters)
    for count in range(10):
        for parameter in parameters:
            parameter.grad = -parameter.detach().sin() * (count + 1)
        if count % 2 == 0:
            parameters[1].grad = None
        step(optimizer)
    return [*parameters, *(value for state in optimizer.state.values() for value in state.values())]


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_steps_are_those_of_the_optimizer(make):
    expected, found = walk(make, lambda optimizer: optimizer.step()), walk(make, take_step)
    assert all(map(torch.equal, expected, found))


@pytest.fixture
def calls(monkeypatch):
    """Count the calls of `Adam.step`."""
    counted, step = [], Adam.step

    @wraps(step)  # which tells torch that the method calls the hooks
    def counting(self, *args):
        counted.append(self)
        return step(self, *args)

    monkeypatch.setattr(Adam, "step", counting)
    return counted


def test_only_the_first_step_of_a_plain_adam_is_its_method(calls):
    walk(lambda parameters: Adam(parameters[:1], fused=True), take_step)
    assert len(calls) == 1


@pytest.mark.parametrize("register", ["register_step_pre_hook", "register_step_post_hook"])
def test_hooks_of_an_optimizer_see_every_step(register):
    seen = []

    def hooked(parameters):
        optimizer = Adam(parameters, fused=True)
        getattr(optimizer, register)(lambda *args: seen.append(args))
        return optimizer

    walk(hooked, take_step)
    assert len(seen) == 10


@pytest.mark.parametrize("register", [register_optimizer_step_pre_hook, register_optimizer_step_post_hook])
def test_hooks_of_all_optimizers_see_every_step(register):
    seen = []
    handle = register(lambda *args: seen.append(args))
    try:
        walk(OPTIMIZERS["plain"], take_step)
    finally:
        handle.remove()
    assert len(seen) == 10


def test_schedulers_see_every_step(calls):
    def scheduled(parameters):
        optimizer = Adam(parameters, fused=True)
        optimizer.scheduler = ExponentialLR(optimizer, 0.5)
        return optimizer

    walk(scheduled, take_step)
    assert len(calls) == 10


def test_a_new_learning_rate_holds_from_the_next_step():
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = Adam([parameter], lr=0.5, fused=True)
    moves = []
    for rate in (0.5, 0.5, 0.01):
        optimizer.param_groups[0]["lr"] = rate
        before, parameter.grad = parameter.item(), torch.ones(1)
        take_step(optimizer)
        moves.append(before - parameter.item())
    assert moves == pytest.approx([0.5, 0.5, 0.01], rel=1e-5)


def test_sparse_gradients_are_refused_in_the_words_of_the_optimizer():
    parameter = torch.zeros(3, requires_grad=True)
    optimizer = Adam([parameter], fused=True)
    parameter.grad = torch.ones(3)
    take_step(optimizer)
    parameter.grad = torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match="SparseAdam"):
        take_step(optimizer)
