"""Steps fall back to slower kinds with one warning, and an epoch's batches follow its order."""

import sys
from functools import partial

import pyro
import pytest
import torch
from oracles import stepper_of
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from small_programs import make_vae

from pyrovae.execution import NotRecordedError, NotRecordedWarning
from pyrovae.training import Batches

SGD = partial(torch.optim.SGD, lr=1e-2)


def losses(stepper, sizes, steps=4):
    pyro.set_rng_seed(3)
    batches = [torch.bernoulli(torch.full((size, 6), 0.3)) for size in sizes]
    return torch.stack([stepper(len(x), (x,), {}).clone() for _ in range(steps) for x in batches])


def test_failed_captures_warn_once_and_leave_recorded_steps(monkeypatch):
    def failing(*args):
        raise RuntimeError("no graphs today")

    recorded = losses(stepper_of(make_vae(), TraceMeanField_ELBO(), SGD, "recorded", {20: 9, 7: 9}), (20, 7))
    monkeypatch.setattr(sys.modules["pyrovae.training.stepper"], "on_gpu", lambda values: True)
    monkeypatch.setattr(sys.modules["pyrovae.training.graphed_steps"], "CapturedStep", failing)
    stepper = stepper_of(make_vae(), TraceMeanField_ELBO(), SGD, "recorded", {20: 9, 7: 9})
    with pytest.warns(NotRecordedWarning, match="kernel by kernel, .* one graph: no graphs today") as caught:
        found = losses(stepper, (20, 7))
    assert len(caught) == 1
    assert stepper.refused is None
    assert torch.equal(found, recorded)


def test_an_eager_step_that_fails_has_nothing_to_fall_back_to():
    class Failing(Trace_ELBO):
        def differentiable_loss(self, model, guide, *args, **kwargs):
            raise NotRecordedError("never")

    stepper = stepper_of(make_vae(), Failing(), SGD, "eager", {20: 9})
    with pytest.raises(NotRecordedError, match="never"):  # and no warning, which would be an error here
        losses(stepper, (20,))


def test_batches_of_an_epoch_are_disjoint_and_resume_at_a_step():
    x = torch.arange(10.0)[:, None]
    batches = Batches((x,), {}, batch_size=4, transform=lambda x: x + 100, seed=1)
    batches.start_epoch(2)
    found = [batches.batch(step)[0][0] for step in range(batches.steps)]
    assert [len(batch) for batch in found] == [4, 4, 2]
    assert torch.equal(torch.cat(found).sort(0).values, x + 100)
    batches.start_epoch(2, step=1)
    assert torch.equal(batches.batch(1)[0][0], found[1])
