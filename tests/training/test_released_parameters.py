"""What fits leave behind in the process: nothing of models that are unreachable, and all that the caller made."""

import gc
import weakref
from copy import deepcopy
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule
from torch import nn

from pyrovae import (
    MLP,
    VAE,
    BernoulliLikelihood,
    BetaTCELBO,
    Blueprint,
    FactorVAEELBO,
    ImportanceWeightedELBO,
    MixtureVAE,
    NormalEncoder,
    StandardNormalPrior,
    TwoLayerVAE,
    fit,
    log_marginal,
)
from pyrovae.programs import ProgramPair

X = torch.bernoulli(torch.full((16, 6), 0.5), generator=torch.Generator().manual_seed(0))


def make_vae(**given):
    return VAE(StandardNormalPrior(2), BernoulliLikelihood(MLP(2, 6)), NormalEncoder(MLP(6, 4)), **given)


def train(model, guide, elbo=None, **given):
    standard = TraceEnum_ELBO() if "Mixture" in type(model).__name__ else Trace_ELBO()
    return fit(model, guide, X, elbo=elbo or standard, epochs=2, batch_size=8, **given)


def live_bytes():
    gc.collect()
    return sum(thing.nbytes for thing in gc.get_objects() if type(thing) in (torch.Tensor, nn.Parameter))


def dead(references):
    gc.collect()
    return all(reference() is None for reference in references)


PAIRS = {
    "VAE": make_vae,
    "TwoLayerVAE": lambda: TwoLayerVAE(Blueprint(6, 2)),
    "MixtureVAE": lambda: MixtureVAE(Blueprint(6, 2), num_classes=2),
}
USES = {
    "a call": lambda pair: pair.model(size=2),
    "fit, eager": lambda pair: train(pair.model, pair.guide, execution="eager", validation=X),
    "fit, recorded": lambda pair: train(pair.model, pair.guide, execution="recorded"),
    "fit, resumed": lambda pair: train(pair.model, pair.guide, commit=lambda state: None, patience=1, validation=X),
    "log_marginal": lambda pair: log_marginal(pair.model, pair.guide, X, num_particles=5),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.thin(3)
def test_the_parameters_of_an_unreachable_pair_are_released(kind, use):
    pair = PAIRS[kind]()
    USES[use](pair)
    assert len(pyro.get_param_store()) > 0
    references = [weakref.ref(pair), *map(weakref.ref, pair.parameters())]
    del pair
    assert dead(references)
    assert not list(pyro.get_param_store())


@pytest.mark.parametrize(
    "elbo", [partial(FactorVAEELBO, 2), partial(BetaTCELBO, 16), partial(ImportanceWeightedELBO, 3)]
)
@pytest.mark.thin(1)
def test_an_objective_is_released(elbo):
    vae, objective = make_vae(), elbo()
    train(vae.model, vae.guide, objective)
    references = [weakref.ref(objective), *map(weakref.ref, vae.parameters())]
    references += map(weakref.ref, objective.parameters() if isinstance(objective, nn.Module) else ())
    del vae, objective
    assert dead(references)
    assert not list(pyro.get_param_store())


def test_three_fits_leave_as_many_bytes_as_one():
    def one():
        vae = make_vae()
        train(vae.model, vae.guide, TraceMeanField_ELBO(), validation=X, execution="recorded")

    one()
    before = live_bytes()
    for _ in range(2):
        one()
    assert live_bytes() <= before


def test_a_loop_over_the_store_may_run_while_parameters_leave_it():
    pairs = [make_vae(), make_vae()]
    assert [tuple(pair.model(size=1).shape) for pair in pairs] == [(1, 6)] * 2
    seen = []
    for name in pyro.get_param_store():
        pairs.clear()
        seen.append(name)
    assert len(seen) == 12
    assert not list(pyro.get_param_store())


def test_parameters_that_a_program_makes_itself_stay():
    class Pair(ProgramPair):
        def __init__(self):
            super().__init__()
            self.model, self.guide = PyroModule(f"{self.name}.model"), PyroModule(f"{self.name}.guide")
            self.model.forward, self.guide.forward = self.generate, self.draw
            self.guide.scale = nn.Parameter(torch.zeros(2))

        @staticmethod
        def generate(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1).to_event(1))
                logits = z.sum(-1, keepdim=True) + pyro.param("vae.model.intercept", torch.zeros(6))
                pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

        def draw(self, x):
            loc = pyro.param("mine", torch.zeros(2))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(loc, self.guide.scale.exp()).to_event(1))

    pair = Pair()
    assert pair.name == "vae"
    train(pair.model, pair.guide)
    trained = {name: pyro.param(name).detach().clone() for name in ("mine", "vae.model.intercept")}
    assert "vae.guide.scale" in pyro.get_param_store()
    del pair
    gc.collect()
    assert set(pyro.get_param_store()) == set(trained)
    for name, value in trained.items():
        assert bool((value != 0).any())
        assert torch.equal(pyro.param(name), value)


def test_the_store_of_the_caller_stays():
    layer = nn.Linear(3, 3)
    pyro.module("layer", layer)
    pyro.param("vaes", torch.ones(2))
    before = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    del layer
    for _ in range(3):
        vae = make_vae()
        train(vae.model, vae.guide)
        del vae
    gc.collect()
    after = dict(pyro.get_param_store().items())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_parameters_leave_a_store_that_was_hidden_by_a_scope_with_the_next_pair():
    vae = make_vae()
    vae.model(size=1)
    with pyro.get_param_store().scope():
        del vae
        gc.collect()
    assert len(pyro.get_param_store()) == 6
    vae = make_vae()
    assert not list(pyro.get_param_store())
    assert vae.name == "vae"


def programs_without_their_pair():
    vae = make_vae()
    return vae.model, vae.guide


def test_programs_that_outlive_their_pair_keep_its_name():
    """Two pairs of one name would share their parameters in Pyro's store, so that only the first is trained."""
    first, second = programs_without_their_pair(), programs_without_their_pair()
    before = [parameter.detach().clone() for program in second for parameter in program.parameters()]
    train(*first)
    train(*second)
    after = [parameter for program in second for parameter in program.parameters()]
    assert not any(map(torch.equal, before, after))
    prior = first[0].likelihood
    del first
    gc.collect()
    assert len(pyro.get_param_store()) == 12
    del second, prior, after
    gc.collect()
    assert not list(pyro.get_param_store())


def test_a_copy_keeps_its_parameters_when_the_original_goes():
    vae = make_vae()
    vae.model(size=1)
    copy = deepcopy(vae)
    copy.model(size=1)
    assert (vae.name, copy.name) == ("vae", "vae_2")
    del vae
    gc.collect()
    assert {name.partition(".")[0] for name in pyro.get_param_store()} == {"vae_2"}
    assert make_vae().name == "vae"
    del copy
    gc.collect()
    assert not list(pyro.get_param_store())


@pytest.mark.slow
def test_a_hundred_fits_leave_no_more_memory_than_one():
    def resident():
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

    def one():
        wide = partial(MLP, hidden=[1000, 1000])  # 8 MB of parameters
        vae = VAE(StandardNormalPrior(2), BernoulliLikelihood(wide(2, 6)), NormalEncoder(wide(6, 4)))
        train(vae.model, vae.guide, TraceMeanField_ELBO(), execution="eager")

    for _ in range(3):
        one()
    before = resident()
    for _ in range(97):
        one()
    assert resident() < before + 50
