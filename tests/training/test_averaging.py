"""The exponential average of the weights against its formula, step by step."""

from contextlib import suppress
from functools import partial

import pytest
import torch
from pyro.infer import Trace_ELBO
from small_programs import make_vae
from torch import nn

from pyrovae import VAE, BernoulliLikelihood, NormalEncoder, StandardNormalPrior, fit
from pyrovae.training.averaging import WeightAverage
from pyrovae.training.validation import validate


class Keeping(torch.optim.Adam):
    """Adam that keeps the values after each step."""

    def __init__(self, parameters, seen, **options):
        self.seen = seen
        super().__init__(parameters, **options)

    def step(self, closure=None):
        super().step(closure)
        self.seen.append([p.detach().double() for p in self.param_groups[0]["params"]])


EAGER = {"execution": "eager"}  # whose steps call the optimizer in Python


@pytest.fixture(scope="module")
def x():
    return torch.rand(60, 6, generator=torch.Generator().manual_seed(0)).round()


def train(x, seen, *, vae=None, **options):
    vae = vae or make_vae()
    make = partial(Keeping, seen=seen, lr=0.02)
    history = fit(
        vae.model, vae.guide, x, elbo=Trace_ELBO(), epochs=5, batch_size=20, optimizer=make, **EAGER, **options
    )
    return vae, history


def averages(seen, decay):
    """The average after each step: the first values, then e <- d e + (1 - d) v with d = min(decay, t / (t + 9))."""
    found = [seen[0]]
    for step, values in enumerate(seen[1:], start=2):
        d = min(decay, step / (step + 9))
        found.append([d * old + (1 - d) * new for old, new in zip(found[-1], values, strict=True)])
    return found


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.95])
def test_the_programs_end_with_the_average(x, decay):
    seen = []
    vae, _ = train(x, seen, average=decay)
    for found, expected in zip(vae.parameters(), averages(seen, decay)[-1], strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_average_is_validated_and_the_best_epochs_average_is_kept(x):
    seen, held_out = [], x[:7]
    vae, history = train(x, seen, average=0.4, validation=held_out)
    of_epochs = averages(seen, 0.4)[2::3]
    other = make_vae()
    for epoch, values in enumerate(of_epochs):
        with torch.no_grad():
            for parameter, value in zip(other.parameters(), values, strict=True):
                parameter.copy_(value)
        expected = validate(other.model, other.guide, held_out).elbo
        assert history["validation_elbo"][epoch] == pytest.approx(expected, rel=1e-5)
    best = max(range(5), key=lambda epoch: history["validation_elbo"][epoch])
    assert history.best_epoch == best + 1
    for found, expected in zip(vae.parameters(), of_epochs[best], strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_average_changes_no_step(x):
    free, averaged = [], []
    train(x, free, validation=x[:7])
    train(x, averaged, validation=x[:7], average=0.9)
    for one, other in zip(free, averaged, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_running_means_are_averaged_and_counters_are_copied(x):
    norm = nn.BatchNorm1d(4)
    encoder = NormalEncoder(nn.Sequential(nn.Linear(6, 4), norm))
    vae = VAE(StandardNormalPrior(2), BernoulliLikelihood(nn.Linear(2, 6)), encoder)
    train(x, [], vae=vae, average=0.5)
    assert norm.num_batches_tracked == 15
    assert bool(norm.running_mean.isfinite().all())


def test_applied_restores_the_values_also_after_an_error():
    value = torch.tensor([1.0, 2.0])
    average = WeightAverage(0.5, {"value": value})
    average.update(1)
    value += 1
    average.update(50)
    inside = []
    with suppress(KeyError), average.applied():
        inside = value.tolist()
        raise KeyError
    assert inside == [1.5, 2.5]
    assert value.tolist() == [2.0, 3.0]
