"""What a Pyro user passes to `fit` first: optimizers of pyro.optim, loaders, dict and tuple batches, Pyro's objectives."""

import warnings

import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceGraph_ELBO
from pyro.infer.autoguide import AutoNormal
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, TensorDataset

from pyrovae import Blueprint, ImportanceWeightedELBO, fit, log_marginal
from tests.small_programs import make_vae

STEPS = 6


@pytest.fixture
def x():
    pyro.set_rng_seed(3)
    return torch.bernoulli(torch.full((24, 6), 0.4))


def parameters_of(vae):
    return torch.cat([parameter.detach().flatten() for parameter in vae.parameters()])


def trained(vae, data, seed=7, **options):
    pyro.set_rng_seed(seed)
    options = {"elbo": Trace_ELBO(), "epochs": 2, "batch_size": 8, "execution": "eager"} | options
    history = fit(vae.model, vae.guide, data, **options)
    return parameters_of(vae), history


def one_line(error):
    message = str(error.value)
    assert "\n" not in message and "Trace Shapes" not in message
    return message


class TestOptimizers:
    @pytest.mark.parametrize(
        ("of_pyro", "of_torch"),
        [
            (lambda: pyro.optim.Adam({"lr": 0.02, "betas": (0.8, 0.99)}), lambda p: torch.optim.Adam(p, 0.02, (0.8, 0.99))),
            (lambda: pyro.optim.SGD({"lr": 0.02, "momentum": 0.5}), lambda p: torch.optim.SGD(p, 0.02, 0.5)),
        ],
    )
    def test_pyro_optimizers_train_as_those_of_torch(self, x, of_pyro, of_torch):
        expected, _ = trained(make_vae(), x, optimizer=of_torch)
        found, _ = trained(make_vae(), x, optimizer=of_pyro())
        assert torch.equal(found, expected)

    @pytest.mark.parametrize(
        "make",
        [
            lambda: pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.9, "clip_norm": 0.1}),
            lambda: pyro.optim.Adam({"lr": 0.02}, {"clip_norm": 0.05}),
            lambda: pyro.optim.SGD({"lr": 0.2}, {"clip_value": 0.01}),
            lambda: pyro.optim.Adam(lambda name: {"lr": 0.05 if "likelihood" in name else 0.001}),
            lambda: pyro.optim.Adam(lambda module, name: {"lr": 0.05 if "weight" in name else 0.001}),
            lambda: pyro.optim.SGD(
                lambda name: {"lr": 0.1, "momentum": 0.9} if "encoder" in name else {"lr": 0.01},
                lambda module, name: {"clip_norm": 0.1},
            ),
        ],
        ids=["decay", "clip_norm", "clip_value", "by name", "by module and name", "all by name"],
    )
    def test_pyro_optimizers_take_the_steps_of_svi(self, x, make):
        """SVI and `fit` take one step per epoch on all data, so that their draws are the same."""
        expected = make_vae()
        svi = SVI(expected.model, expected.guide, make(), Trace_ELBO())
        vae = make_vae()
        order = fit(vae.model, vae.guide, x, elbo=Trace_ELBO(), epochs=1, batch_size=24).rows  # settles the batches
        assert len(order) == 1
        vae = make_vae()
        pyro.set_rng_seed(7)
        for _ in range(STEPS):
            svi.step(x)
        pyro.set_rng_seed(7)
        loader = DataLoader(TensorDataset(x), batch_size=None, sampler=[slice(None)])
        fit(vae.model, vae.guide, x[:24], elbo=Trace_ELBO(), epochs=1, batch_size=24, execution="eager")
        del loader
        vae = make_vae()
        pyro.set_rng_seed(7)
        whole = DataLoader(x, batch_size=24, collate_fn=torch.stack, generator=torch.Generator())
        fit(
            vae.model,
            vae.guide,
            whole,
            elbo=Trace_ELBO(),
            epochs=STEPS,
            optimizer=make(),
            execution="eager",
        )
        torch.testing.assert_close(parameters_of(vae), parameters_of(expected), rtol=1e-5, atol=1e-6)
