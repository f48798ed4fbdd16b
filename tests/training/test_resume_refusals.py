"""States that do not fit the programs, the optimizer, the KL weight or the generators are refused by `fit`."""

import copy

import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from small_programs import make_vae

from pyrovae import KLConstraint, fit
from pyrovae.training.optimizers import load_optimizer_state

OPTIMIZERS = [
    *("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax"),
    *("ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"),
]


def train(vae, x, **options):
    return fit(
        vae.model,
        vae.guide,
        x,
        elbo=TraceMeanField_ELBO(),
        epochs=2,
        validation=x,
        kl_weight=KLConstraint(3.0),
        optimizer=torch.optim.Adam,
        **options,
    )


@pytest.fixture(scope="module")
def x():
    return torch.rand(60, 6, generator=torch.Generator().manual_seed(0)).round()


@pytest.fixture(scope="module")
def state(x):
    """The state after one epoch."""
    states = []
    train(make_vae(), x, commit=lambda state: states.append(copy.deepcopy(state)))
    return states[0]


def first(values):
    return next(iter(values))


def changed(state, *keys, value):
    """A copy of a state with another value under these keys, computed from the old one; None removes it."""
    state = inner = copy.deepcopy(state)
    for key in keys[:-1]:
        inner = inner[first(inner) if key == "first" else key]
    last = first(inner) if keys[-1] == "first" else keys[-1]
    inner[last] = value(inner[last])
    if inner[last] is None:
        del inner[last]
    return state


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (["values", "first"], torch.Tensor.double, "torch.float32, got .* and torch.float64"),
        (["values", "first"], torch.Tensor.half, "torch.float32, got .* and torch.float16"),
        (["values", "first"], lambda value: value[:1], r"must have shape .*, got \(1,"),
        (["values", "first"], lambda value: None, "parameters differ in"),
        (["losses"], lambda value: value[:, None], "steps an epoch"),
        (["optimizer", "state", 0, "exp_avg"], lambda value: value[:1], "needs the entries"),
        (["optimizer", "state", 0, "exp_avg_sq"], lambda value: None, "needs the entries"),
        (["optimizer", "state", 0, "step"], lambda value: torch.zeros(5), "needs the entries"),
        (["optimizer", "state", 0, "exp_avg"], lambda value: "text", "needs the entries"),
        (["optimizer", "state", 0, "exp_avg"], torch.Tensor.long, "needs the entries"),
        (["optimizer", "state", 0, "step"], lambda value: value * 1j, "needs the entries"),
        (["step"], lambda value: 10**9, "has taken 1,000,000,000 of"),
        (["optimizer", "param_groups", 0, "amsgrad"], lambda value: True, "option amsgrad is True, not False"),
        (["optimizer", "param_groups", 0, "differentiable"], lambda value: True, "option differentiable is True"),
        (["optimizer", "param_groups", 0, "lr"], lambda value: torch.ones(2), r"option lr has shape \(2,\)"),
        (["optimizer", "param_groups", 0, "lr"], lambda value: "text", "option lr is of type str, not float"),
        (["optimizer", "param_groups", 0, "betas"], lambda value: (0.9,), "option betas"),
        (["optimizer", "param_groups", 0, "eps"], lambda value: None, "KeyError: 'eps'"),
        (["optimizer", "param_groups", 0, "params"], lambda value: value[:2], "doesn't match the size"),
        (["optimizer", "param_groups"], lambda value: [], "zip"),
        (["stepper", "executions"], lambda value: {"x": "eager"}, "invalid literal"),
        (["control", "weight"], lambda value: None, "KeyError: 'weight'"),
        (["control", "weight"], lambda value: torch.zeros(3), "shape"),
        (["generators", "torch"], lambda value: value[:7], "RNG state"),
        (["generators", "torch"], torch.zeros_like, "mt19937"),
        (["generators", "random"], lambda value: (3, (1, 2), None), "state vector"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_before_the_first_step(x, state, keys, value, words):
    with pytest.raises(ValueError, match="the state to resume") as refusal:
        train(make_vae(), x, resume=changed(state, *keys, value=value))
    refusal.match(words)
    assert "\n" not in str(refusal.value)


def test_the_first_epoch_with_validation_data_is_the_best_after_epochs_without(x):
    states, vae = [], make_vae()
    options = {"elbo": TraceMeanField_ELBO()}
    fit(vae.model, vae.guide, x, epochs=1, commit=lambda state: states.append(copy.deepcopy(state)), **options)
    resume = {**states[0], "stop_reason": None}
    history = fit(vae.model, vae.guide, x, epochs=2, validation=x, resume=resume, **options)
    assert history.best_epoch == 2


def test_the_values_of_the_best_epoch_are_checked_as_well(x):
    states = []
    options = {"elbo": TraceMeanField_ELBO(), "validation": x}
    vae = make_vae()
    fit(vae.model, vae.guide, x, epochs=1, commit=lambda state: states.append(copy.deepcopy(state)), **options)
    state = changed(states[0], "best", "first", value=torch.Tensor.double)
    with pytest.raises(ValueError, match=r"torch\.float32, got .* and torch\.float64"):
        fit(vae.model, vae.guide, x, epochs=1, resume=state, **options)


@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_resumes_to_the_bit_and_refuses_entries_of_another_shape(name, momentum):
    options = {"momentum": 0.9} if momentum and name in ("RMSprop", "SGD") else {}

    def start():
        shapes = ((3, 4), (4,), (), (2, 3, 5, 5))
        parameters = [torch.full(shape, 1.5, requires_grad=True) for shape in shapes]
        return parameters, getattr(torch.optim, name)(parameters, lr=0.1, **options)

    def step(parameters, optimizer):
        for index, parameter in enumerate(parameters[:3]):  # the last one is not used
            parameter.grad = torch.full_like(parameter, 0.5 + index)
        optimizer.step()

    parameters, optimizer = start()
    step(parameters, optimizer)
    state, resumed = copy.deepcopy(optimizer.state_dict()), start()
    load_optimizer_state(resumed[1], state)
    with torch.no_grad():
        for ours, theirs in zip(resumed[0], parameters, strict=True):
            ours.copy_(theirs)
    for each in ((parameters, optimizer), resumed):
        step(*each)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(resumed[0], parameters, strict=True))
    for key, entry in state["state"].get(0, {}).items():
        for wrong in (torch.zeros(7), None):
            if isinstance(entry, torch.Tensor):
                with pytest.raises((ValueError, KeyError)):
                    load_optimizer_state(start()[1], changed(state, "state", 0, key, value=lambda old, new=wrong: new))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_counter_of_steps_may_have_any_real_dtype(dtype):
    parameters = [torch.zeros(3, requires_grad=True)]
    optimizer = torch.optim.Adam(parameters)
    parameters[0].grad = torch.ones(3)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["step"] = saved["state"][0]["step"].to(dtype)
    again = torch.optim.Adam(parameters)
    load_optimizer_state(again, saved)
    assert again.state[parameters[0]]["step"] == 1
