"""Training with matrix products in bfloat16."""

import pyro
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import nn

from pyrovae import MLP, VAE, BernoulliLikelihood, NormalEncoder, StandardNormalPrior, fit, log_marginal
from pyrovae.execution import products_in
from pyrovae.training.validation import validate


def trained(precision, execution="eager", epochs=3):
    pyro.set_rng_seed(0)
    x = torch.bernoulli(torch.rand(1, 30).expand(200, 30))
    vae = VAE(StandardNormalPrior(2), BernoulliLikelihood(MLP(2, 30)), NormalEncoder(MLP(30, 4)))
    history = fit(
        vae.model,
        vae.guide,
        x,
        elbo=TraceMeanField_ELBO(),
        epochs=epochs,
        batch_size=50,
        validation=x[:50],
        precision=precision,
        execution=execution,
    )
    return vae, history, x


def test_bfloat16_rounds_the_operands_of_linear_layers_and_returns_float32():
    layer, x = nn.Linear(64, 8), torch.randn(5, 64)
    with products_in("bfloat16"):
        found = layer(x)
    assert found.dtype == torch.float32
    rounded = (x.bfloat16().double() @ layer.weight.bfloat16().double().T) + layer.bias.bfloat16().double()
    torch.testing.assert_close(found.double(), rounded, rtol=2**-7, atol=2**-7)
    assert not torch.equal(found, layer(x))
    assert torch.equal(found, found.bfloat16().float())  # the sum is rounded once more
    with products_in("full"):
        assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(3, 4, 3)])
def test_bfloat16_rounds_the_operands_of_convolutions(layer):
    x = torch.randn(2, 3, 8, 8)
    with products_in("bfloat16"):
        found = layer(x)
    assert found.dtype == torch.float32
    assert not torch.equal(found, layer(x))
    torch.testing.assert_close(found, layer(x), rtol=0.05, atol=0.05)


def test_bfloat16_does_not_round_double_precision():
    layer, x = nn.Linear(4, 3).double(), torch.randn(5, 4, dtype=torch.float64)
    with products_in("bfloat16"):
        assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_bfloat16_training_keeps_float32_parameters_and_ends_near_full_precision():
    (full, full_history, x), (rounded, history, _) = trained("full"), trained("bfloat16")
    assert {parameter.dtype for parameter in rounded.parameters()} == {torch.float32}
    assert history["train_elbo"] != full_history["train_elbo"]
    assert history["validation_elbo"][-1] == pytest.approx(full_history["validation_elbo"][-1], abs=0.3)
    values = [log_marginal(vae.model, vae.guide, x[:50], num_particles=500).value.mean() for vae in (full, rounded)]
    assert abs(values[0] - values[1]) < 0.3


def test_validation_runs_in_full_precision():
    vae, history, x = trained("bfloat16", epochs=1)
    assert history["validation_elbo"] == [validate(vae.model, vae.guide, x[:50]).elbo]
    with products_in("bfloat16"):
        assert history["validation_elbo"] != [validate(vae.model, vae.guide, x[:50]).elbo]


def test_recorded_steps_round_as_eager_steps():
    (eager, _, _), (recorded, _, _) = trained("bfloat16"), trained("bfloat16", "recorded")
    for one, other in zip(eager.parameters(), recorded.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3)
