"""Annealed importance sampling against closed forms and quadrature."""

import math
import sys
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import HandWritten, LinearGaussian, counted, normal_near
from quadrature import log_integral, plane, simplex
from torch import nn

from pyrovae import (
    MLP,
    VAE,
    BernoulliLikelihood,
    Blueprint,
    CategoricalEncoder,
    CategoricalPrior,
    DirichletPrior,
    NormalEncoder,
    NormalLikelihood,
    PoissonLikelihood,
    Prior,
    StandardNormalPrior,
    TwoLayerVAE,
    adaptive_schedule,
    ais,
    linear_schedule,
    log_joint,
    log_weights,
    sigmoidal_schedule,
)
from pyrovae.evidence import LatentSpace
from pyrovae.evidence.annealing import execution_of
from pyrovae.execution import NotRecordedWarning
from pyrovae.runs import read_state, write_state
from pyrovae.stats import summarize_log_weights

F64 = torch.float64
QUICK = {"num_leapfrog": 2, "acceptance": 0.9, "num_tuning": 50}


def check(estimate, exact, *, worst=0.3):
    """The estimate of p(x) is unbiased, that of log p(x) never high, both by the errors that the data show.

    Each mean over N data is off by more than four standard errors once in 16,000, and the seed is fixed. Errors are
    demanded to be small, so that a weak test does not pass: worst, in nats, bounds that of the mean times sqrt(N).
    """
    off = estimate.value - exact.double()
    assert off.std() < worst
    root = len(off) ** 0.5
    assert off.mean() < 4 * off.std() / root
    ratio = off.exp()
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / root
    assert (off.abs() < 6 * estimate.std_error + 1e-9).all()  # K is small, so that their tails are heavier than normal


class TestLinearGaussian:
    oracle = LinearGaussian()

    @pytest.mark.parametrize(("start", "worst"), [("prior", 0.2), ("guide", 0.2), ("normal", 0.05)])
    @pytest.mark.thin(1)
    def test_ais_is_within_its_standard_error(self, start, worst):
        x, vae = self.oracle.data(300), self.oracle.vae(sd_factor=0.6, shift=1.0)
        given = {"guide": {"guide": vae.guide}, "normal": {"start": normal_near(self.oracle, x)}}.get(start, {})
        estimate = ais(vae.model, x, num_particles=24, betas=sigmoidal_schedule(30), **QUICK, **given)
        check(estimate, self.oracle.log_marginal(x), worst=worst)
        # The errors stated are those seen: their ratio is known to 1 / sqrt(600) = 4 %, less what K = 24 adds.
        stated = estimate.std_error.square().mean().sqrt()
        assert 0.8 < (estimate.value - self.oracle.log_marginal(x)).std() / stated < 1.25

    def test_ais_with_one_temperature_is_importance_sampling(self):
        x, vae = self.oracle.data(5), self.oracle.vae(sd_factor=1.3)
        pyro.set_rng_seed(1)
        annealed = ais(vae.model, x, guide=vae.guide, num_particles=50, betas=torch.tensor([0.0, 1.0]))
        exact = ais(vae.model, x, guide=self.oracle.vae().guide, num_particles=3, betas=linear_schedule(4), **QUICK)
        torch.testing.assert_close(exact.value, self.oracle.log_marginal(x), rtol=0, atol=1e-9)  # at rest all the way
        assert ((annealed.value - self.oracle.log_marginal(x)).abs() < 4 * annealed.std_error).all()

    @pytest.mark.slow
    def test_more_temperatures_reduce_the_error_of_ais(self):
        x, model = self.oracle.data(100), self.oracle.vae().model
        few, many = (ais(model, x, num_particles=10, betas=linear_schedule(t), **QUICK).std_error for t in (2, 40))
        assert few.mean() > 2 * many.mean()

    @pytest.mark.slow
    def test_ais_integrates_masked_entries_out(self):
        x, vae = self.oracle.data(100), self.oracle.vae()
        mask = torch.rand(100, 5) > 0.4
        mask[:, 0] = True
        exact = self.oracle.log_marginal(x, mask)
        x = torch.where(mask, x, torch.nan)
        estimate = ais(vae.model, x, mask=mask, num_particles=16, betas=linear_schedule(30), **QUICK)
        check(estimate, exact, worst=0.3)

    def test_ais_is_accurate_for_any_chunk_size(self):
        x, vae = self.oracle.data(40), self.oracle.vae()
        settings = {"num_particles": 4, "betas": linear_schedule(6), **QUICK}
        start = normal_near(self.oracle, x)
        for size, chunk_size in ((2, 1), (40, 200), (40, None)):
            here = (start[0][:size], start[1][:size])
            estimate = ais(vae.model, x[:size], start=here, chunk_size=chunk_size, **settings)
            off = estimate.value - self.oracle.log_marginal(x[:size])
            assert off.square().mean().sqrt() < 0.2  # 0.1 over many seeds, but single data may be off by 0.5

    def test_ais_is_accurate_in_single_precision(self):
        oracle = LinearGaussian(dtype=torch.float32)
        x, vae = oracle.data(60), oracle.vae()
        estimate = ais(vae.model, x, num_particles=16, betas=sigmoidal_schedule(30), **QUICK)
        assert estimate.value.dtype == torch.float64
        check(estimate, oracle.log_marginal(x), worst=0.3)

    def test_ais_passes_covariates_to_every_part(self):
        class Shifted(Prior):
            def forward(self, covariates=None):
                return dist.Normal(covariates, 1.0).to_event(1)

        covariates = torch.randn(60, 2, dtype=torch.float64)
        decoder = nn.Linear(4, 5, dtype=torch.float64)  # of z and c
        with torch.no_grad():
            decoder.weight.copy_(torch.cat([self.oracle.weight, 2 * self.oracle.weight], 1))
            decoder.bias.copy_(self.oracle.bias)
        vae = VAE(Shifted(2), NormalLikelihood(decoder, scale=self.oracle.scale).double(), nn.Identity())
        x = vae.model(covariates=covariates).detach()
        estimate = ais(
            vae.model,
            x,
            covariates=covariates,
            num_particles=16,
            betas=sigmoidal_schedule(20),
            chunk_size=500,
            **QUICK,
        )
        check(estimate, self.oracle.log_marginal(x - 3 * covariates @ self.oracle.weight.T), worst=0.3)

    @pytest.mark.parametrize(
        ("start", "execution", "chunk_size"),
        [
            ("prior", "recorded", 9),
            pytest.param("guide", "recorded", 9, marks=pytest.mark.slow),
            pytest.param("normal", "recorded", 9, marks=pytest.mark.slow),
            pytest.param("guide", "compiled", None, marks=[pytest.mark.compiles, pytest.mark.slow]),
        ],
    )
    def test_ais_with_recorded_gradients_equals_eager_ais(self, monkeypatch, start, execution, chunk_size):
        calls = counted(monkeypatch, "record", "compile_graph")
        x, vae = self.oracle.data(5), self.oracle.vae(sd_factor=0.6)
        given = {"guide": {"guide": vae.guide}, "normal": {"start": normal_near(self.oracle, x)}}.get(start, {})
        found = []
        for how in ("eager", execution):
            pyro.set_rng_seed(5)
            settings = {"num_particles": 3, "betas": linear_schedule(5), "execution": how, **QUICK}
            found.append(ais(vae.model, x, chunk_size=chunk_size, **settings, **given))
        torch.testing.assert_close(found[0].value, found[1].value, rtol=0, atol=1e-8)
        torch.testing.assert_close(found[0].std_error, found[1].std_error, rtol=0, atol=1e-8)
        # The preliminary run and the run itself, in each of the blocks.
        assert calls == (["record"] * 4 if execution == "recorded" else ["record", "compile_graph"] * 2)

    def test_ais_chooses_its_execution_by_the_number_of_gradients(self):
        chosen = [execution_of(linear_schedule(count - 1), 10, 50) for count in (29, 30, 329, 330)]
        assert chosen == ["eager", "recorded", "recorded", "compiled"]
        assert execution_of(linear_schedule(5), 10, 50, "compiled") == "compiled"

    def test_a_model_that_cannot_be_recorded_is_annealed_eagerly(self):
        def model(x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1))
                scale = 1.0 if z.sum() > -1e9 else 2.0
                pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=x)

        x, settings = torch.zeros(3, 2, dtype=F64), {"num_particles": 3, "betas": linear_schedule(4), **QUICK}
        pyro.set_rng_seed(5)
        eager = ais(model, x, **settings, execution="eager")
        pyro.set_rng_seed(5)
        with pytest.warns(NotRecordedWarning, match="the path's gradient runs eagerly.*value of a tensor"):
            recorded = ais(model, x, **settings, execution="recorded")
        assert torch.equal(eager.value, recorded.value)
        with pytest.raises(ValueError, match="execution must be"):
            ais(model, x, **settings, execution="fast")

    @pytest.mark.parametrize("execution", ["eager", pytest.param("recorded", marks=pytest.mark.slow)])
    def test_an_interrupted_ais_run_resumes_to_the_same_numbers(self, tmp_path, monkeypatch, execution):
        monkeypatch.setattr(sys.modules["pyrovae.evidence.ais"], "_COMMIT_EVERY", 3)
        x, vae = self.oracle.data(5), self.oracle.vae(sd_factor=0.8)
        settings = {"guide": vae.guide, "num_particles": 4, "betas": linear_schedule(8), "chunk_size": 12, **QUICK}
        settings["execution"] = execution
        pyro.set_rng_seed(5)
        whole = ais(vae.model, x, **settings)
        saved = []
        pyro.set_rng_seed(5)
        ais(vae.model, x, **settings, commit=saved.append)
        assert [(s["block"], s["temperature"]) for s in saved] == [(0, 3), (0, 6), (1, 0), (1, 3), (1, 6), (2, 0)]
        for index, state in enumerate(saved[1:3]):
            write_state(tmp_path / f"{index}", state)
            pyro.set_rng_seed(index)
            resumed = ais(vae.model, x, **settings, resume=read_state(tmp_path / f"{index}"))
            for one, other in zip(whole, resumed, strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=0)
        for other in ({"num_particles": 5}, {"guide": None}, {"num_leapfrog": 3}, {"num_tuning": 60}):
            with pytest.raises(ValueError, match="the state to resume is of another run"):
                ais(vae.model, x, **{**settings, **other}, resume=saved[0])
        # With 12 or 16 chains at once there are two blocks, of three data or of four.
        for other, named in ((x, "data_at_once"), (x + 1, "data_at_once, inputs")):
            with pytest.raises(ValueError, match=f"the state to resume is of another run, with other {named};"):
                ais(vae.model, other, **{**settings, "chunk_size": 16}, resume=saved[2])
        saved[0]["run"]["format"] -= 1
        with pytest.raises(ValueError, match="another version of pyrovae saved the state to resume; start anew"):
            ais(vae.model, x, **settings, resume=saved[0])


class Squares(nn.Module):
    """A decoder that cannot tell z from -z."""

    def forward(self, z):
        return z.square().expand(*z.shape[:-1], 3)


class PositiveRoot(nn.Module):
    """The guide of one of its two modes, right there."""

    def forward(self, x):
        root = x.mean(-1, keepdim=True).clamp(min=0.1).sqrt()
        return dist.Normal(root, 0.15 / root).to_event(1)


def test_ais_from_the_prior_finds_the_mode_that_the_guide_misses():
    # p(z|x) has modes near +sqrt(x) and -sqrt(x), the guide has the first. Importance sampling from it with K = 2000
    # draws is log 2 = 0.693 nats short of the quadrature for every datum, says that its error is below 0.02, and its
    # k-hat sees nothing. Annealing from the prior is within its error.
    vae = VAE(StandardNormalPrior(1), NormalLikelihood(Squares(), scale=0.3), PositiveRoot())
    x = torch.tensor([0.8, 1.0, 1.3, 1.6, 2.0, 2.5])[:, None] + 0.3 * torch.randn(6, 3)
    points, weights = plane(1, 4000)
    exact = log_integral(log_joint(vae.model, {"z": points.float()[:, None, :].expand(-1, 6, 1)}, x).double(), weights)
    importance = summarize_log_weights(log_weights(vae.model, vae.guide, x, num_particles=2000).detach())
    assert ((exact - importance.value - math.log(2)).abs() < 0.1).all()
    assert importance.std_error.max() < 0.05
    annealed = ais(vae.model, x, num_particles=200, betas=sigmoidal_schedule(40), **QUICK)
    assert annealed.std_error.max() < 0.15
    assert ((annealed.value - exact).abs() < 4 * annealed.std_error).all()


@pytest.mark.parametrize(
    ("kind", "start"),
    [("bernoulli", "prior"), ("bernoulli", "guide"), ("poisson", "prior"), ("poisson", "normal")]
    + [("simplex", start) for start in ("prior", "guide", "normal")],
)
@pytest.mark.thin(1)
def test_ais_agrees_with_quadrature(kind, start):
    pyro.set_rng_seed(2)
    latent_dim = 3 if kind == "simplex" else 2
    network = MLP(latent_dim, 5, hidden=[8], activation="tanh")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(8 if kind == "simplex" else 3)
    likelihood = PoissonLikelihood(network) if kind == "poisson" else BernoulliLikelihood(network)
    prior = DirichletPrior(3, concentration=1.5) if kind == "simplex" else StandardNormalPrior(2)
    vae = VAE(prior, likelihood, NormalEncoder(MLP(5, 4, hidden=[]))).double()
    x = vae.model(size=60).detach()
    points, weights = simplex(3, 100) if kind == "simplex" else plane(2, 120)
    density = torch.cat(
        [log_joint(vae.model, {"z": part[:, None].expand(-1, 60, -1)}, x) for part in points.split(2000)]
    )
    exact = log_integral(density.detach(), weights)
    normal = (torch.zeros(60, 2), 1.3 * torch.eye(2).expand(60, 2, 2))
    given = {"prior": {}, "guide": {"guide": vae.guide}, "normal": {"start": normal}}[start]
    estimate = ais(vae.model, x, num_particles=40, betas=sigmoidal_schedule(25), **QUICK, **given)
    check(estimate, exact, worst=0.2)


def test_ais_with_two_latent_sites_agrees_with_quadrature():
    pyro.set_rng_seed(3)
    vae = TwoLayerVAE(Blueprint(4, 1, network=_tanh), top_dim=1, hidden=[6]).double()
    with torch.no_grad():
        for parameter in vae.model.likelihood.parameters():
            parameter.mul_(4)
    x = vae.model(size=50).detach()
    points, weights = plane(2, 150)
    sites = {name: points[:, None, i : i + 1].expand(-1, 50, 1) for i, name in enumerate(("z2", "z1"))}
    exact = log_integral(log_joint(vae.model, sites, x).detach(), weights)
    settings = {"num_particles": 16, "betas": sigmoidal_schedule(25), **QUICK}
    check(ais(vae.model, x, guide=vae.guide, **settings), exact, worst=0.25)


def _tanh(num_inputs, num_outputs):
    return MLP(num_inputs, num_outputs, hidden=[6], activation="tanh")


def test_ais_is_accurate_for_hand_written_programs():
    hand = HandWritten()
    x = torch.randn(80, 4)
    settings = {"num_particles": 16, "betas": linear_schedule(15), **QUICK}
    check(ais(hand.model, x, guide=hand.guide, **settings), hand.log_marginal(x), worst=0.25)
    assert all(p.grad is None for net in (hand.decoder, hand.encoder) for p in net.parameters())


def test_ais_runs_modules_in_evaluation_mode_without_gradients_of_parameters():
    seen = []

    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.9), nn.Linear(4, 3))

        def forward(self, z):
            seen.append(self.training)
            return self.layers(z)

    vae = VAE(StandardNormalPrior(2), NormalLikelihood(Dropping()), NormalEncoder(MLP(3, 4)))
    with torch.no_grad():  # as a caller might
        ais(vae.model, torch.randn(4, 3), num_particles=2, betas=linear_schedule(3), num_leapfrog=1, num_tuning=1)
    assert not any(seen)
    assert vae.model.likelihood.network.training
    assert all(p.grad is None and p.requires_grad for p in vae.parameters())


def test_ais_can_start_from_a_function_of_the_latent_space():
    oracle = LinearGaussian()
    x, vae = oracle.data(50), oracle.vae(sd_factor=0.5)
    seen = []

    def find(space):
        seen.append(space.num_data)
        return normal_near(oracle, space.args[0])

    estimate = ais(
        vae.model,
        x,
        guide=vae.guide,
        start=find,
        num_particles=10,
        betas=linear_schedule(8),
        chunk_size=300,
        **QUICK,
    )
    assert seen == [30, 20]
    check(estimate, oracle.log_marginal(x), worst=0.1)


class TestSchedules:
    def test_schedules_increase_from_0_to_1(self):
        for betas in (linear_schedule(7), sigmoidal_schedule(7), sigmoidal_schedule(1)):
            assert betas[0] == 0
            assert betas[-1] == 1
            assert (betas.diff() > 0).all()
        torch.testing.assert_close(sigmoidal_schedule(6)[3].item(), 0.5)
        torch.testing.assert_close(sigmoidal_schedule(2, steepness=1e-4), linear_schedule(2))

    def test_adaptive_schedule_has_steps_of_equal_sample_size(self):
        # z ~ N(0, 1), x | z ~ N(z, s^2): f_b is normal, and 1 - CESS of a step follows by quadrature.
        oracle = LinearGaussian(data_dim=1, latent_dim=1, scale=0.05)
        x, model = oracle.data(30), oracle.vae().model
        adaptive = adaptive_schedule(40, model, x, num_leapfrog=2)
        z, weights = plane(1, 8000)
        log_prior = -z.square() / 2
        log_lik = -(x.T - oracle.weight.item() * z - oracle.bias.item()).square() / (2 * oracle.scale**2)

        def losses(betas):
            found = []
            for one, other in pairwise(betas):
                p = (log_prior + one * log_lik + weights.log()[:, None]).softmax(0)
                v = ((other - one) * log_lik).exp()
                found.append((1 - (p * v).sum(0) ** 2 / (p * v**2).sum(0)).mean().item())
            return found

        assert adaptive.shape == (41,)
        assert max(losses(adaptive)) < 0.12 < 0.5 < max(losses(linear_schedule(40)))


class TestRefusals:
    oracle = LinearGaussian()

    @pytest.mark.parametrize(
        "betas", [[0, 0.5], [0.1, 1], [0, 0.6, 0.4, 1], [0, 0.5, 0.5, 1], [1.0], [[0.0, 1.0]], [0, torch.nan, 1]]
    )
    def test_ais_refuses_betas_that_do_not_increase_from_0_to_1(self, betas):
        with pytest.raises(ValueError, match="betas must increase strictly from 0 to 1"):
            ais(self.oracle.vae().model, self.oracle.data(2), num_particles=2, betas=torch.tensor(betas))

    @pytest.mark.parametrize("name", ["num_particles", "num_leapfrog", "num_tuning", "chunk_size"])
    def test_ais_refuses_counts_below_one_and_wrong_acceptance(self, name):
        settings = {"num_particles": 2, "betas": linear_schedule(2), name: 0}
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            ais(self.oracle.vae().model, self.oracle.data(2), **settings)
        with pytest.raises(ValueError, match="num_temperatures must be at least 1"):
            linear_schedule(0)
        with pytest.raises(ValueError, match="acceptance must lie between 0 and 1, got 1"):
            ais(self.oracle.vae().model, self.oracle.data(2), num_particles=2, betas=linear_schedule(2), acceptance=1)

    def test_ais_refuses_discrete_latents(self):
        vae = VAE(CategoricalPrior(3), BernoulliLikelihood(MLP(3, 4)), CategoricalEncoder(MLP(4, 3)))
        with pytest.raises(ValueError, match=r"latent 'z' \(.*\) is discrete.*needs gradients"):
            ais(vae.model, torch.zeros(2, 4), num_particles=2, betas=linear_schedule(2))

    def test_ais_refuses_a_start_of_another_shape(self):
        start = (torch.zeros(2, 3), torch.eye(3).expand(2, 3, 3))
        with pytest.raises(ValueError, match=r"expected \(2, 2\) and \(2, 2, 2\), for 2 data with 2 coordinates"):
            ais(self.oracle.vae().model, self.oracle.data(2), num_particles=2, betas=linear_schedule(2), start=start)

    def test_ais_refuses_data_outside_the_support_and_models_without_latents(self):
        vae = VAE(StandardNormalPrior(2), BernoulliLikelihood(MLP(2, 3)), NormalEncoder(MLP(3, 4)))
        x = torch.zeros(4, 3)
        x[1, 2] = 0.5
        with pytest.raises(ValueError, match=r"0\.5 at datum 1, entry 2"):
            ais(vae.model, x, num_particles=2, betas=linear_schedule(2))

        def model(x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1), obs=x)

        with pytest.raises(ValueError, match="the model has no latent site"):
            ais(model, x, num_particles=2, betas=linear_schedule(2))

    def test_ais_refuses_to_start_from_a_missing_guide(self):
        space = LatentSpace(self.oracle.vae().model, None, self.oracle.data(2))
        with pytest.raises(ValueError, match="needs a guide, got None"):
            space.from_guide(3)
