"""Imputations by models with discrete latents, by models that run on tiled rows, and by distributions of a user."""

from typing import ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

from pyrovae.evidence import impute

PRIOR = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
LOGITS = torch.tensor([[2.0, -1.0, 0.5], [-2.0, 1.5, 0.0], [0.0, 0.3, -2.5]], dtype=torch.float64)  # (class, column)


def classes(x, mask):
    """Latent classes of three binary columns."""
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(PRIOR))
        pyro.sample("x", dist.Bernoulli(logits=LOGITS[y]).mask(mask).to_event(1), obs=torch.where(mask, x, 0.0))


def guess(x, mask):
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)))


def test_latent_classes_agree_with_enumeration():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 1]]).bool()
    x = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 1, 0]], dtype=torch.float64)
    p = dist.Bernoulli(logits=LOGITS)
    log_joint = PRIOR.log() + torch.where(mask.unsqueeze(1), p.log_prob(x.unsqueeze(1)), 0.0).sum(-1)
    share = log_joint.softmax(-1) @ p.probs  # P(x_d = 1 | x_obs)
    found = impute(classes, guess, x, mask=mask, num_particles=20_000, num_draws=2000)
    torch.testing.assert_close(found.log_marginal.value, log_joint.logsumexp(-1), rtol=0, atol=0.02)
    assert found.log_marginal.value[2] == 0
    assert found.centre == ("mode",) * 3
    missing = ~mask
    assert bool((found.value == (share > 0.5))[missing].all())
    torch.testing.assert_close(found.probability[missing], share.maximum(1 - share)[missing], rtol=0, atol=0.01)
    torch.testing.assert_close(found.draws.mean(0)[missing], share[missing], rtol=0, atol=0.05)
    means = impute(classes, guess, x, mask=mask, num_particles=20_000, num_draws=0, centre="mean")
    assert bool(((means.value - share).abs()[missing] < 4.5 * means.std_error[missing]).all())


def tiled(x, mask):
    """The latents have as many rows as the data, so that draws can only be further rows."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 1), 1.0).to_event(1))
        p = dist.LogNormal(z.reshape(len(x), 1).expand(len(x), 2), 0.5)
        pyro.sample("x", p.mask(mask).to_event(1), obs=torch.where(mask, x, 1.0))


def tiled_guide(x, mask):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.new_zeros(len(x), 1), 1.0).to_event(1))


@pytest.mark.filterwarnings("ignore:the programs use dimensions by their position")
def test_programs_that_run_on_tiled_rows_are_imputed():
    x = torch.tensor([[0.5, 1.0], [2.0, 1.0], [4.0, 1.0]], dtype=torch.float64)
    mask = torch.tensor([True, False]).expand(3, 2)
    loc, variance = x[:, 0].log() / 1.25, torch.tensor(0.25 / 1.25 + 0.25).double()  # of log x_2 given x_1
    medians = impute(tiled, tiled_guide, x, mask=mask, num_particles=4000, num_draws=0, centre="median")
    torch.testing.assert_close(medians.value[:, 1], loc.exp(), rtol=0.06, atol=0)
    means = impute(tiled, tiled_guide, x, mask=mask, num_particles=4000, num_draws=2000)
    exact = (loc + variance / 2).exp()
    assert bool(((means.value[:, 1] - exact).abs() < 4.5 * means.std_error[:, 1]).all())
    torch.testing.assert_close(means.draws[..., 1].log().std(0), variance.sqrt().expand(3), rtol=0.08, atol=0)


class Triangle(dist.TorchDistribution):
    """Sum of two uniform numbers, without a mean, a distribution function or a support of its own."""

    arg_constraints: ClassVar[dict] = {}
    support = constraints.real
    natural_centre = "median"

    def __init__(self, loc):
        self.loc = loc
        super().__init__(loc.shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return Triangle(self.loc.expand(batch_shape))

    def log_prob(self, value):
        return (1 - (value - self.loc - 1).abs()).clamp(min=1e-9).log()

    def sample(self, sample_shape=()):
        shape = self._extended_shape(sample_shape)
        return self.loc + torch.rand(shape, dtype=self.loc.dtype) + torch.rand(shape, dtype=self.loc.dtype)


@pytest.mark.parametrize("centre", ["auto", "mean"])
def test_a_distribution_with_nothing_but_draws_has_medians(centre):
    def model(x, mask):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 0.1).to_event(1))
            pyro.sample("x", Triangle(z + 3.0).mask(mask).to_event(1), obs=torch.where(mask, x, 4.0))

    def guide(x, mask):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(1), 0.1).to_event(1))

    x = torch.zeros(2, 1, dtype=torch.float64)
    arguments = {"mask": torch.zeros(2, 1, dtype=torch.bool), "num_particles": 500, "num_draws": 0, "centre": centre}
    if centre == "mean":
        with pytest.warns(UserWarning, match="mean of column 0 does not exist"):
            found = impute(model, guide, x, **arguments)
    else:
        found = impute(model, guide, x, **arguments)
    assert found.centre == ("median",)
    torch.testing.assert_close(found.value, torch.full((2, 1), 4.0, dtype=torch.float64), rtol=0, atol=0.06)


def test_centres_need_one_word_per_column():
    x, mask = torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.bool)
    for wrong in (["mean"], ["mean", "mode", "middle"], "middle"):
        with pytest.raises(ValueError, match=r"one of them for each of the 3 columns"):
            impute(classes, guess, x, mask=mask, centre=wrong)
