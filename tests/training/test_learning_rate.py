"""Schedules and warm-up of the learning rate, and clipped gradients, against torch's schedulers and plain formulas."""

import copy
import math
from functools import partial

import pyro.optim
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from small_programs import make_vae
from torch.optim import lr_scheduler as torchs

from pyrovae import BurdaLR, fit
from pyrovae.training import StoppedError

EPOCHS, BATCH, STEPS = 6, 16, 4  # 60 data

SCHEDULES = {
    "cosine": partial(torchs.CosineAnnealingLR, T_max=EPOCHS),
    "warm restarts": partial(torchs.CosineAnnealingWarmRestarts, T_0=2, T_mult=2),
    "step": partial(torchs.StepLR, step_size=2),
    "several steps": partial(torchs.MultiStepLR, milestones=[2, 3, 3]),
    "exponential": partial(torchs.ExponentialLR, gamma=0.8),
    "linear": partial(torchs.LinearLR, total_iters=4),
    "one-cycle": partial(torchs.OneCycleLR, max_lr=0.05, total_steps=EPOCHS * STEPS),
    "plateau": partial(torchs.ReduceLROnPlateau, patience=0, threshold=0.05),
    "ladder": BurdaLR,
}
BY_STEP = ("one-cycle",)


class Recording(torch.optim.Adam):
    """Adam that keeps the rate, the parameters' norm of the gradient, and the values after each step."""

    def __init__(self, parameters, seen, **options):
        self.seen = seen
        super().__init__(parameters, **options)

    def step(self, closure=None):
        (group,) = self.param_groups
        norm = torch.cat([p.grad.flatten() for p in group["params"]]).norm().item()
        super().step(closure)
        values = [p.detach().clone() for p in group["params"]]
        self.seen.append((float(group["lr"]), norm, values))


class EveryThirdStep(torchs.LRScheduler):
    """A schedule of a user, which halves the rate at every third step."""

    every_step = True

    def get_lr(self):
        return [base * 0.5 ** (self.last_epoch // 3) for base in self.base_lrs]


def train(x, *, seen=None, epochs=EPOCHS, vae=None, **options):
    vae = vae or make_vae()
    options.setdefault("optimizer", partial(Recording, seen=[] if seen is None else seen, lr=0.01))
    options.setdefault("execution", "eager")
    history = fit(
        vae.model,
        vae.guide,
        x,
        elbo=TraceMeanField_ELBO(),
        epochs=epochs,
        batch_size=BATCH,
        validation=x[:20],
        **options,
    )
    return vae, history


@pytest.fixture(scope="module")
def x():
    return torch.rand(60, 6, generator=torch.Generator().manual_seed(0)).round()


def rates_of_torch(schedule, losses, by_step):
    """The rates that torch's scheduler gives an optimizer in a loop, one for each step."""
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=0.01)
    scheduler, found = schedule(optimizer), []
    for loss in losses:
        for _ in range(STEPS):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if by_step:
                scheduler.step()
        if isinstance(scheduler, torchs.ReduceLROnPlateau):
            scheduler.step(loss)
        elif not by_step:
            scheduler.step()
    return found


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.thin(4)
def test_the_rates_are_those_of_torchs_scheduler_in_a_loop(x, name):
    seen = []
    _, history = train(x, seen=seen, lr_schedule=SCHEDULES[name])
    losses = [-value for value in history["validation_objective"]]
    expected = rates_of_torch(SCHEDULES[name], losses, name in BY_STEP)
    assert [rate for rate, _, _ in seen] == expected
    assert history["learning_rate"] == expected[STEPS - 1 :: STEPS]
    assert len(set(expected)) > 1


def test_a_schedule_of_the_users_own_may_step_after_every_step(x):
    seen = []
    train(x, seen=seen, lr_schedule=EveryThirdStep)
    assert [rate for rate, _, _ in seen] == [0.01 * 0.5 ** (step // 3) for step in range(EPOCHS * STEPS)]


def test_the_ladder_has_the_rungs_of_burda():
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=1e-3)
    scheduler, rates = BurdaLR(optimizer), []
    for _ in range(3300):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    ends = [sum(3**i for i in range(rung + 1)) for rung in range(8)]  # 1, 4, 13, ..., 3280
    assert ends[-1] == 3280
    for rung, end in enumerate(ends):
        begin = ends[rung - 1] if rung else 0
        assert {round(math.log10(rate / 1e-3) * 7, 9) for rate in rates[begin:end]} == {-rung}
    assert rates[3280:] == [rates[3279]] * 20  # the last rung goes on
    with pytest.raises(ValueError, match="rungs must be at least 1, got 0"):
        BurdaLR(optimizer, rungs=0)


def test_the_warmup_is_linear_by_step_and_multiplies_the_schedule(x):
    seen = []
    _, history = train(x, seen=seen, lr_warmup=1.5, lr_schedule=SCHEDULES["step"])
    scheduled = rates_of_torch(SCHEDULES["step"], [0] * EPOCHS, False)
    expected = [rate * min(1, (step + 1) / 6) for step, rate in enumerate(scheduled)]
    assert [rate for rate, _, _ in seen] == pytest.approx(expected, rel=1e-12)
    assert history["learning_rate"] == [rate for rate, _, _ in seen][STEPS - 1 :: STEPS]


def test_the_gradient_is_shortened_to_the_norm_per_datum(x):
    free, clipped = [], []
    train(x, seen=free)
    norms = [norm / size for (_, norm, _), size in zip(free, [16, 16, 16, 12] * EPOCHS, strict=True)]
    limit = sorted(norms)[len(norms) // 2]
    train(x, seen=clipped, clip=limit)
    found = [norm / size for (_, norm, _), size in zip(clipped, [16, 16, 16, 12] * EPOCHS, strict=True)]
    assert max(found) <= limit * (1 + 1e-5)
    assert sum(norm > limit * (1 - 1e-4) for norm in found) > 3
    unchanged = train(x, clip=1e6)[0]
    for one, other in zip(unchanged.parameters(), train(x)[0].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


COMBINED = {
    "cosine": {"lr_schedule": SCHEDULES["cosine"]},
    "warm restarts": {"lr_schedule": SCHEDULES["warm restarts"], "average": 0.9},
    "several steps": {"lr_schedule": SCHEDULES["several steps"], "lr_warmup": 2.6},
    "one-cycle": {"lr_schedule": SCHEDULES["one-cycle"], "clip": 0.3},
    "plateau": {"lr_schedule": SCHEDULES["plateau"], "lr_warmup": 0.5, "average": 0.8},
    "ladder": {"lr_schedule": BurdaLR, "average": 0.95, "clip": 0.2},
}
RESUMED = [
    *((name, "eager", stop_at) for name in COMBINED for stop_at in (2, 9)),
    ("ladder", "recorded", 9),
    *(pytest.param(name, "recorded", 2, marks=pytest.mark.slow) for name in COMBINED),
    *(pytest.param(name, "compiled", 9, marks=pytest.mark.slow) for name in COMBINED),
]


@pytest.mark.parametrize(("name", "execution", "stop_at"), RESUMED)
@pytest.mark.thin(1)
def test_a_run_resumed_in_the_middle_of_an_epoch_is_bit_identical(x, name, execution, stop_at):
    make = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)
    options = {**COMBINED[name], "execution": execution, "optimizer": make}
    straight, history = train(x, **options)
    states, taken = [], []
    with pytest.raises(StoppedError):
        train(
            x,
            commit=lambda state: states.append(copy.deepcopy(state)),
            should_stop=lambda: taken.append(1) or len(taken) == stop_at,
            **options,
        )
    resumed, again = train(x, resume=states[-1], **options)
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    for column in ("learning_rate", "validation_elbo", "train_objective"):
        assert history[column] == again[column]


@pytest.mark.parametrize("name", ["one-cycle", "ladder"])
@pytest.mark.thin(1)
def test_recorded_steps_train_as_eager_ones(x, name):
    eager, recorded = (train(x, execution=how, **COMBINED[name])[0] for how in ("eager", "recorded"))
    for one, other in zip(eager.parameters(), recorded.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_history_has_the_rate_that_the_optimizer_lowers_by_itself(x):
    decaying = pyro.optim.ClippedAdam({"lr": 0.01, "lrd": 0.9})
    states = []
    _, history = train(x, optimizer=decaying, commit=lambda state: states.append(copy.deepcopy(state)))
    expected = [0.01 * 0.9 ** (STEPS * epoch) for epoch in range(1, EPOCHS + 1)]
    assert history["learning_rate"] == pytest.approx(expected, rel=1e-9)
    _, again = train(x, optimizer=decaying, resume=states[1])
    assert again["learning_rate"] == history["learning_rate"]


def test_an_optimizer_without_a_rate_has_none_in_the_history(x):
    _, history = train(x, optimizer=pyro.optim.AdagradRMSProp({"eta": 0.1}))
    assert history["learning_rate"] == [None] * EPOCHS


@pytest.mark.parametrize("options", [{"lr_schedule": SCHEDULES["step"]}, {"lr_warmup": 0.5}])
@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (pyro.optim.ClippedAdam({"lrd": 0.9}), "ClippedAdam with lrd=0.9 lowers its learning rate in each step"),
        (pyro.optim.AdagradRMSProp({"eta": 0.1}), "but AdagradRMSProp has none"),
    ],
    ids=["lrd", "no rate"],
)
def test_a_schedule_of_a_rate_that_it_cannot_set_is_refused(x, options, optimizer, words):
    with pytest.raises(ValueError, match=words):
        train(x, optimizer=optimizer, **options)


def test_a_schedule_sets_the_rate_of_clipped_adam_without_decay(x):
    _, history = train(x, optimizer=pyro.optim.ClippedAdam({"lr": 0.01}), lr_schedule=SCHEDULES["step"])
    assert history["learning_rate"] == rates_of_torch(SCHEDULES["step"], [0] * EPOCHS, False)[STEPS - 1 :: STEPS]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr_schedule": torchs.StepLR(torch.optim.Adam([torch.zeros(1)]), 2)}, "a function .*, got StepLR; write"),
        ({"lr_schedule": lambda optimizer: optimizer}, "must return a scheduler of torch, got Recording; write"),
        (
            {"lr_schedule": lambda _: torchs.StepLR(torch.optim.Adam([torch.zeros(1)]), 2)},
            "must schedule the optimizer that it receives",
        ),
        (
            {"lr_schedule": partial(torchs.OneCycleLR, max_lr=0.1, total_steps=10)},
            "OneCycleLR ends after 10 steps, but the training has up to 24; give total_steps=24",
        ),
        ({"lr_warmup": -1.0}, "lr_warmup must be a finite number of epochs, at least 0, got -1.0"),
        ({"lr_warmup": math.nan}, "lr_warmup must be"),
        ({"lr_warmup": math.inf}, "lr_warmup must be"),
        ({"average": 1.0}, "average must be at least 0 and below 1, got 1.0"),
        ({"average": math.nan}, "average must be"),
        ({"clip": 0.0}, "clip must be above 0, got 0.0"),
        ({"clip": math.nan}, "clip must be above 0, got nan"),
    ],
)
def test_values_out_of_range_are_refused(x, options, words):
    with pytest.raises(ValueError, match=words):
        train(x, **options)


@pytest.mark.parametrize(
    ("saved", "options", "words"),
    [
        ({"lr_schedule": SCHEDULES["cosine"]}, {}, "another .*schedule"),
        ({}, {"lr_schedule": SCHEDULES["cosine"]}, "another .*schedule"),
        ({"lr_schedule": SCHEDULES["step"]}, {"lr_schedule": SCHEDULES["cosine"]}, "another .*schedule"),
        ({"average": 0.9}, {}, "has an average of the weights"),
        ({}, {"average": 0.9}, "has no average of the weights"),
    ],
)
def test_a_state_of_another_schedule_or_average_is_refused(x, saved, options, words):
    states = []
    adam = partial(torch.optim.Adam, lr=0.01)
    train(x, epochs=1, optimizer=adam, commit=lambda state: states.append(copy.deepcopy(state)), **saved)
    with pytest.raises(ValueError, match=words):
        train(x, resume=states[0], optimizer=adam, **options)


@pytest.mark.parametrize(("name", "value"), [("last_epoch", "text"), ("T_max", [1]), ("base_lrs", 0.1)])
def test_a_state_whose_schedule_has_another_kind_of_value_is_refused(x, name, value):
    states = []
    options = {"lr_schedule": SCHEDULES["cosine"], "optimizer": torch.optim.Adam}
    train(x, epochs=1, commit=lambda state: states.append(copy.deepcopy(state)), **options)
    states[0]["learning_rate"]["scheduler"][name] = value
    with pytest.raises(ValueError, match=f"entry {name} of the learning rate schedule is of type"):
        train(x, resume=states[0], **options)
