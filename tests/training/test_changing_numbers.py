"""Numbers of the programs that change in training: records do not keep the old ones."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from pyrovae import ImportanceWeightedELBO, fit
from pyrovae.execution import NotRecordedWarning


class Tempered(nn.Module):
    """A guide whose scale is a number that training may change, and that may count its calls."""

    def __init__(self, *, counts=False):
        super().__init__()
        self.loc, self.scale, self.counts, self.calls = nn.Parameter(torch.tensor(0.0)), 1.0, counts, 0

    def forward(self, x):
        self.calls += self.counts
        scale = max(0.25, 1 - 1e-5 * self.calls) if self.counts else self.scale
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, scale))


class Multiplied(ImportanceWeightedELBO):
    """An objective with a factor that training may change."""

    factor = 1.0

    def differentiable_loss(self, *args, **kwargs):
        return self.factor * super().differentiable_loss(*args, **kwargs)


def tempered_model(x):
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)


@pytest.mark.parametrize("batch_size", [10, 40])
@pytest.mark.parametrize("where", ["guide", "objective", "counter"])
def test_numbers_that_change_in_training_are_not_replayed_as_they_were(where, batch_size):
    values = torch.randn(40, generator=torch.Generator().manual_seed(0)) + 1

    def losses(execution):
        pyro.set_rng_seed(0)
        guide = Tempered(counts=where == "counter")
        elbo = Trace_ELBO() if guide.counts else Multiplied(num_particles=2)

        def anneal(row):
            guide.scale = 0.25 if where == "guide" else 1.0
            elbo.factor = 3.0 if where == "objective" else 1.0

        options = {"elbo": elbo, "epochs": 30, "batch_size": batch_size, "optimizer": partial(torch.optim.SGD, lr=0.0)}
        history = fit(tempered_model, guide, values, execution=execution, on_epoch=anneal, **options)
        return torch.tensor(history["train_objective"])

    expected = losses("eager")
    with pytest.warns(NotRecordedWarning, match="training runs eagerly.*(numbers that the programs read|replay)"):
        found = losses("recorded")
    if where == "counter":  # the comparison of the first steps counts too
        assert (found[-1] - expected[-1]).abs() < 0.05
    else:
        assert torch.allclose(found, expected, rtol=1e-5)
