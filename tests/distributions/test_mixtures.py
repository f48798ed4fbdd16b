"""Tests of mixtures of many components at many values."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrovae import log_marginal
from pyrovae.distributions import BlockwiseMixture, mixtures

M, Z = 50, 3


def make(kind, batch_shape=()):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*batch_shape, M, *shape, generator=generator)

    if kind == "scalar":
        components = dist.Normal(draw(), draw().exp())
    elif kind == "diagonal":
        components = dist.Normal(draw(Z), draw(Z).exp()).to_event(1)
    else:
        components = dist.MultivariateNormal(draw(Z), scale_tril=torch.eye(Z).expand(*batch_shape, M, Z, Z))
    return dist.Categorical(logits=draw()), components


@pytest.mark.parametrize("kind", ["scalar", "diagonal", "full"])
@pytest.mark.parametrize("expanded", [False, True])
def test_blocks_give_the_densities_of_the_mixture_in_bounded_memory(kind, expanded, monkeypatch):
    monkeypatch.setattr(mixtures, "_BLOCK", 20 * M * Z)
    plain, blockwise = dist.MixtureSameFamily(*make(kind)), BlockwiseMixture(*make(kind))
    if expanded:
        plain, blockwise = plain.expand([30]), blockwise.expand([1]).expand([30])
        assert type(blockwise) is BlockwiseMixture
    sizes = []
    inner = type(blockwise.component_distribution).log_prob

    def log_prob(self, value):
        found = inner(self, value)
        sizes.append(found.numel())
        return found

    monkeypatch.setattr(type(blockwise.component_distribution), "log_prob", log_prob)
    for shape in ((7, 30), (7, 1), (30,)):
        value = torch.randn(*shape, *plain.event_shape)
        expected = plain.log_prob(value)
        sizes.clear()
        with torch.no_grad():
            found = blockwise.log_prob(value)
        torch.testing.assert_close(found, expected)
        assert kind == "full" or torch.equal(found, expected)
        assert max(sizes) <= 20 * M * Z
        assert len(sizes) > 1 or value.numel() * M <= 20 * M * Z


def test_mixtures_with_a_batch_shape_of_their_own_and_gradients_are_as_ever(monkeypatch):
    monkeypatch.setattr(mixtures, "_BLOCK", 10)
    parts = make("diagonal", (5,))
    value = torch.randn(4, 5, Z, requires_grad=True)
    expected = dist.MixtureSameFamily(*parts).log_prob(value)
    with torch.no_grad():
        assert torch.equal(BlockwiseMixture(*parts).log_prob(value), expected)
    found = BlockwiseMixture(*make("diagonal")).expand([5]).log_prob(value)
    (gradient,) = torch.autograd.grad(found.sum(), value)
    (of_plain,) = torch.autograd.grad(dist.MixtureSameFamily(*make("diagonal")).log_prob(value).sum(), value)
    assert torch.equal(gradient, of_plain)


def test_values_outside_the_support_are_refused_in_blocks_too(monkeypatch):
    monkeypatch.setattr(mixtures, "_BLOCK", 10)
    mixture = BlockwiseMixture(*make("diagonal"), validate_args=True)
    with torch.no_grad(), pytest.raises(ValueError, match="within the support"):
        mixture.log_prob(torch.full((9, Z), torch.nan))


@pytest.mark.parametrize("execution", ["eager", "recorded"])
def test_log_p_of_a_model_is_that_of_the_plain_mixture(execution, monkeypatch):
    monkeypatch.setattr(mixtures, "_BLOCK", 100)
    x, parts = torch.randn(6, Z), make("diagonal")

    def estimate(kind):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", kind(*parts))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x / 2, 1.0).to_event(1))

        pyro.set_rng_seed(0)
        return log_marginal(model, guide, x, num_particles=100, execution=execution).value

    assert torch.equal(estimate(BlockwiseMixture), estimate(dist.MixtureSameFamily))
