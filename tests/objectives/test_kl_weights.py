"""Parts of the ELBO and KL weights: closed forms, Pyro's ELBOs, constraints, resumed runs."""

import copy
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearGaussian
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from small_programs import loss_and_gradients, make_vae, two_layers
from torch import nn

from pyrovae import (
    GECO,
    MLP,
    VAE,
    BernoulliLikelihood,
    Beta,
    Blueprint,
    Capacity,
    CyclicalWarmup,
    FreeBits,
    FullCovarianceNormalEncoder,
    ImportanceWeightedELBO,
    KLConstraint,
    MixtureVAE,
    NormalEncoder,
    NormalLikelihood,
    StandardNormalPrior,
    WeightedELBO,
    elbo_parts,
    evidence_lower_bound,
    fit,
    temper,
)
from pyrovae.densities import isolated_rng
from pyrovae.training import StoppedError
from pyrovae.training.validation import _SEED, VALIDATION_PARTICLES, validate


@pytest.fixture
def x():
    return torch.bernoulli(torch.full((30, 6), 0.4))


def assert_same(one, other):
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("make", [make_vae, two_layers, partial(two_layers, "top-down")])
@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_weighted_elbo_with_weights_one_agrees_with_pyro(make, draws, weight, x):
    program = make()
    vectorized = {"num_particles": draws, "vectorize_particles": True, "max_plate_nesting": 1}
    sampled, analytic = Trace_ELBO(**vectorized), TraceMeanField_ELBO(**vectorized)
    with temper(latent=weight):
        theirs = loss_and_gradients(sampled, program, x)
        assert_same(loss_and_gradients(WeightedELBO(num_particles=draws, analytic=False), program, x), theirs)
        if make is not two_layers:
            theirs = loss_and_gradients(analytic, program, x)
        # The bottom-up guide does not draw in the model's order, so closed forms of single latents do not apply.
        assert_same(loss_and_gradients(WeightedELBO(num_particles=draws), program, x), theirs)


def test_elbo_parts_agree_with_closed_forms():
    oracle = LinearGaussian()
    vae, x = oracle.vae(sd_factor=0.8, shift=0.5), oracle.data(6)
    q = vae.guide.encoder(x).base_dist
    by_dimension = (q.variance + q.mean**2 - 1 - q.variance.log()) / 2
    parts = elbo_parts(vae.model, vae.guide, x, num_particles=3, per="dimension")
    torch.testing.assert_close(parts.divergences["z"], by_dimension.expand(3, -1, -1))
    parts = elbo_parts(vae.model, vae.guide, x)
    torch.testing.assert_close(parts.divergences["z"], by_dimension.sum(-1)[None])
    kl_only = WeightedELBO(reconstruction=0.0)
    assert kl_only.loss(vae.model, vae.guide, x) == pytest.approx(by_dimension.sum().item())
    both, alone = (
        partial(elbo_parts, vae.model, vae.guide, x, num_particles=20_000, per=per, analytic=False)
        for per in ("dimension", "site")
    )
    for draw, expected in ((both, by_dimension), (alone, by_dimension.sum(-1))):
        sampled = draw().divergences["z"]
        error = sampled.std(0) / len(sampled) ** 0.5
        assert ((sampled.mean(0) - expected).abs() < 5.5 * error).all()  # 18 of them
        assert (5.5 * error < 0.1).all()
    pyro.set_rng_seed(1)
    reconstruction = WeightedELBO(kl=0.0).loss(vae.model, vae.guide, x)
    with temper(latent=0.0):
        pyro.set_rng_seed(1)
        assert reconstruction == pytest.approx(Trace_ELBO().loss(vae.model, vae.guide, x))


def test_weighted_elbo_trains_under_svi(x):
    vae = make_vae()
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), WeightedELBO(kl=0.0))
    losses = [svi.step(x) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])


def test_masked_data_have_no_divergence():
    def program(x, scored):
        with pyro.plate("rows", len(x), dim=-1), pyro.poutine.mask(mask=torch.tensor([True, False])):
            pyro.sample("z", dist.Normal(torch.zeros(2, 3), 2.0 if scored else 1.0).to_event(1))

    for per, analytic in (("site", True), ("site", False), ("dimension", True), ("dimension", False)):
        parts = elbo_parts(
            lambda x: program(x, True), lambda x: program(x, False), torch.ones(2), per=per, analytic=analytic
        )
        kl = parts.divergences["z"][0]
        assert bool((kl[0] != 0).all())
        assert bool((kl[1] == 0).all())


def test_schedules_are_their_formulas():
    assert [Beta(3.0)(t) for t in (0, 10)] == [3.0, 3.0]
    cyclical = CyclicalWarmup(epochs=4, cycles=2, rise=0.25)
    assert [cyclical(t) for t in (0, 0.5, 1, 3, 4, 4.5, 8, 9)] == [0, 0.5, 1, 1, 0, 0.5, 1, 1]
    capacity = Capacity(final=20, epochs=10, gamma=7)
    assert [capacity.target_at(t) for t in (0, 5, 10, 30)] == [0, 10, 20, 20]
    assert capacity(3) == 7


def objective_in(vae, x, kl_weight, elbo=None):
    """Return the history of one step of `fit` with all data, and its gradient from the change of the parameters."""
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    pyro.set_rng_seed(1)
    history = fit(
        vae.model,
        vae.guide,
        x,
        elbo=elbo or TraceMeanField_ELBO(),
        epochs=1,
        batch_size=len(x),
        optimizer=partial(torch.optim.SGD, lr=1e-3),
        kl_weight=kl_weight,
    )
    gradients = {name: (before[name] - p.detach()) / 1e-3 for name, p in vae.named_parameters()}
    with torch.no_grad():
        for name, p in vae.named_parameters():
            p.copy_(before[name])
    return history, gradients


def by_hand(vae, x, of):
    """Compute the loss -reconstruction + of(mean KL by dimension), and its gradient."""
    from pyrovae.training.batches import epoch_order

    x = x[epoch_order(len(x), epoch=0, seed=0)]
    pyro.set_rng_seed(1)
    q = vae.guide.encoder(x)
    z = q.rsample()
    kl = torch.distributions.kl_divergence(q.base_dist, torch.distributions.Normal(0.0, 1.0)).mean(0)
    loss = -vae.model.likelihood(z).log_prob(x).mean() + of(kl)
    return -loss.item(), dict(
        zip(
            (name for name, _ in vae.named_parameters()),
            torch.autograd.grad(loss * len(x), list(vae.parameters())),
            strict=True,
        )
    )


@pytest.mark.parametrize(
    ("kl_weight", "of"),
    [
        (Capacity(final=3.0, epochs=1e-9, gamma=5.0), lambda kl: 5 * (kl.sum() - 0).abs()),
        (FreeBits(0.6), lambda kl: kl.clamp_min(0.6).sum()),
        (FreeBits(0.6, per="site"), lambda kl: kl.sum().clamp_min(0.6)),
        (FreeBits(100.0, per="total"), lambda kl: kl.sum().clamp_min(100)),
        (Beta(2.5), lambda kl: 2.5 * kl.sum()),
    ],
)
def test_kl_penalties_are_their_formulas(kl_weight, of, x):
    vae = make_vae()
    with torch.no_grad():  # one dimension above 0.6 nats, one below
        bias = next(m for m in reversed(list(vae.guide.modules())) if isinstance(m, nn.Linear)).bias
        bias.copy_(torch.tensor([2.0, 0.1, -1.0, 0.0]))
    history, gradients = objective_in(vae, x, kl_weight)
    objective, expected = by_hand(vae, x, of)
    assert history["train_objective"] == [pytest.approx(objective, rel=1e-5)]
    assert history["train_elbo"] == [None]
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=2e-3, atol=2e-3, msg=name)


def test_free_bits_per_site_apply_to_each_of_two_latents(x):
    program = two_layers()
    parts = elbo_parts(program.model, program.guide, x, num_particles=50)
    assert list(parts.divergences) == ["z1", "z2"] or len(parts.divergences) == 2
    history, _ = objective_in(program, x, FreeBits(1000.0, per="site"), Trace_ELBO())
    reconstruction = parts.reconstruction.mean().item()
    assert history["train_objective"][0] == pytest.approx(reconstruction - 2000, abs=1)


class Fixed(nn.Module):
    def __init__(self, oracle):
        super().__init__()
        self.register_buffer("weight", oracle.weight)
        self.register_buffer("bias", oracle.bias)

    def forward(self, z):
        return z @ self.weight.T + self.bias


class OneLatent:
    """One-dimensional z, a fixed linear-Gaussian decoder, and a guide that contains the optimum for every beta."""

    def __init__(self, size=64):
        self.oracle = LinearGaussian(data_dim=4, latent_dim=1, scale=0.7)
        self.x = self.oracle.data(size)
        encoder = nn.Linear(4, 2).double()
        nn.init.zeros_(encoder.weight)
        nn.init.zeros_(encoder.bias)
        likelihood = NormalLikelihood(Fixed(self.oracle), scale=0.7).double()
        self.vae = VAE(StandardNormalPrior(1).double(), likelihood, NormalEncoder(encoder))

    def at(self, beta):
        """Compute reconstruction and KL per datum of the optimal guide N(m, v), 1/v = 1 + w'w / (beta s^2)."""
        w, b, s = self.oracle.weight[:, 0], self.oracle.bias, self.oracle.scale
        v = 1 / (1 + w @ w / (beta * s**2))
        m = v / (beta * s**2) * (self.x - b) @ w
        error = (self.x - b - m[:, None] * w).square().sum(-1) + v * w @ w
        log_lik = -(4 * math.log(2 * math.pi * s**2) + error / s**2) / 2
        return log_lik.mean().item(), ((v + m**2 - 1 - v.log()) / 2).mean().item()

    def train(self, kl_weight, epochs=100):
        """Train with ten steps per epoch."""
        optimizer = partial(torch.optim.Adam, lr=2e-2)
        arguments = {"epochs": epochs, "batch_size": 128, "validation": self.x, "execution": "recorded"}
        return fit(
            self.vae.model,
            self.vae.guide,
            self.x.repeat(20, 1),
            elbo=TraceMeanField_ELBO(num_particles=8),
            optimizer=optimizer,
            kl_weight=kl_weight,
            **arguments,
        )


@pytest.mark.parametrize(
    ("kind", "beta"),
    [
        (KLConstraint, 3.0),
        (GECO, 0.5),
        pytest.param(KLConstraint, 0.5, marks=pytest.mark.slow),
        pytest.param(GECO, 3.0, marks=pytest.mark.slow),
    ],
)
@pytest.mark.thin(1)
def test_constraints_are_met_and_the_multiplier_is_the_beta_of_the_kkt_conditions(kind, beta):
    problem = OneLatent()
    reconstruction, kl = problem.at(beta)
    kl_weight = kind(kl, rate=0.05) if kind is KLConstraint else kind(-reconstruction, rate=0.05)
    history = problem.train(kl_weight)
    learned = history["kl_weight"]
    # With 64 data and 8 draws each, the multiplier fluctuates about its limit.
    late = torch.tensor(learned[-30:])
    assert late.mean().item() == pytest.approx(beta, rel=0.05)
    assert late.std().item() < 0.1 * beta
    met = torch.tensor(history["validation_kl" if kind is KLConstraint else "validation_reconstruction"][-30:])
    target = kl if kind is KLConstraint else reconstruction
    # Validation uses 4 fixed draws of 64 data, so its mean has a constant error.
    q = elbo_parts(problem.vae.model, problem.vae.guide, problem.x, num_particles=2000)
    exact = q.divergences["z"].mean().item() if kind is KLConstraint else q.reconstruction.mean().item()
    assert exact == pytest.approx(target, abs=0.05)
    assert history.best_epoch == len(history)  # constrained runs keep the last epoch
    assert met.std() < 0.1
    assert all(value is None for value in history["train_elbo"])


def test_the_divergence_reaches_its_capacity():
    problem = OneLatent()
    _, most = problem.at(1.0)
    history = problem.train(Capacity(final=0.5 * most, epochs=40), epochs=80)
    found = elbo_parts(problem.vae.model, problem.vae.guide, problem.x).divergences["z"].mean().item()
    assert found == pytest.approx(0.5 * most, abs=0.05)
    assert history["kl_target"][19] == pytest.approx(0.5 * most * 19.9 / 40)
    assert history["kl_target"][-1] == 0.5 * most
    assert history["kl_weight"][0] == 100


@pytest.mark.parametrize("make", [lambda: KLConstraint(0.5, rate=0.2), lambda: Capacity(2.0, epochs=3), FreeBits])
@pytest.mark.thin(1)
def test_recorded_steps_with_kl_weights_equal_eager_steps(make, x):
    rows, ends = [], []
    for execution in ("eager", "recorded"):
        pyro.clear_param_store()
        vae = make_vae()
        pyro.set_rng_seed(4)
        given = {"epochs": 4, "batch_size": 10, "execution": execution, "kl_weight": make()}
        history = fit(
            vae.model, vae.guide, x, elbo=TraceMeanField_ELBO(), optimizer=partial(torch.optim.SGD, lr=1e-3), **given
        )
        rows.append(history["kl_weight"])
        ends.append(vae.state_dict())
    assert rows[0] == pytest.approx(rows[1], rel=1e-5)
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_learned_weight_changes_by_its_rate():
    weight = KLConstraint(5.0, rate=0.1, smoothing=0.5, lowest=0.5, highest=2.0)
    seen = []
    for kl in (4.8, 5.9, *[90.0] * 12):
        weight.learn(torch.tensor(-3.0), torch.tensor(kl))
        seen.append(weight(0))
    assert seen[0] == pytest.approx(math.exp(-0.1 * 0.1))
    assert seen[1] == pytest.approx(seen[0] * math.exp(0.1 * 0.4))
    assert seen[-1] == 2.0
    geco = GECO(80.0, rate=0.1, smoothing=0.0)
    geco.learn(torch.tensor(-80.5), torch.tensor(1.0))
    assert geco(0) == pytest.approx(math.exp(-0.05))


@pytest.mark.parametrize("weight", [KLConstraint(0.5, rate=0.2), GECO(2.0, rate=0.2)])
def test_a_learned_weight_starts_each_fit_anew(x, weight):
    rows = []
    for _ in range(2):
        vae = make_vae()
        pyro.set_rng_seed(4)
        history = fit(vae.model, vae.guide, x, elbo=TraceMeanField_ELBO(), epochs=2, batch_size=10, kl_weight=weight)
        rows.append(history["kl_weight"])
        assert weight(0) == history["kl_weight"][-1] != 1
    assert rows[0] == rows[1]


@pytest.mark.parametrize("stop_at", [2, 4, 7])
@pytest.mark.parametrize("make", [lambda: KLConstraint(0.2, rate=0.3), lambda: Capacity(2.0, epochs=3)])
@pytest.mark.thin(3)
def test_a_resumed_run_with_a_kl_weight_equals_an_uninterrupted_run(x, stop_at, make):
    def run(vae, seed=8, **given):
        pyro.set_rng_seed(seed)
        arguments = {"elbo": TraceMeanField_ELBO(), "epochs": 3, "batch_size": 10, "kl_weight": make(), **given}
        return fit(vae.model, vae.guide, x, validation=x[:9], **arguments)

    straight, broken, fresh, states = make_vae(), make_vae(), make_vae(seed=77), []
    history = run(straight)
    steps = iter(range(1, 100))
    with pytest.raises(StoppedError):
        run(
            broken,
            commit=lambda state: states.append(copy.deepcopy(state)),
            should_stop=lambda: next(steps) == stop_at,
        )
    again = run(fresh, seed=1234, resume=states[-1])
    for name, value in straight.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name
    for key in set(history.rows[0]) - {"seconds"}:
        assert history[key] == again[key], key


def test_the_history_reports_the_elbo_with_weight_one_and_its_parts(x):
    vae = make_vae()
    states = []
    given = {"epochs": 2, "batch_size": 10, "validation": x[:9], "optimizer": partial(torch.optim.SGD, lr=0.0)}
    history = fit(
        vae.model, vae.guide, x, elbo=ImportanceWeightedELBO(8), kl_weight=Beta(3.0), commit=states.append, **given
    )
    row = history.rows[0]
    assert row["validation_elbo"] == pytest.approx(row["validation_reconstruction"] - row["validation_kl"])
    found = validate(vae.model, vae.guide, x[:9])
    assert tuple(found) == tuple(row[f"validation_{name}"] for name in ("elbo", "reconstruction", "kl"))
    with isolated_rng(_SEED):
        bound = evidence_lower_bound(vae.model, vae.guide, x[:9], num_particles=VALIDATION_PARTICLES)
    assert row["validation_elbo"] == bound.value.mean().item()
    exact = torch.distributions.kl_divergence(vae.guide.encoder(x[:9]).base_dist, dist.Normal(0.0, 1.0)).sum(-1).mean()
    assert row["validation_kl"] == pytest.approx(exact.item(), abs=0.6)  # 36 draws
    assert (row["kl_weight"], row["kl_target"], row["train_elbo"]) == (3.0, None, None)
    # Objective of the training data: the bound of eight draws with weight 3.
    assert row["train_objective"] < row["validation_elbo"] + 5
    assert states[-1]["rows"] == history.rows
    plain = fit(vae.model, vae.guide, x, elbo=TraceMeanField_ELBO(), **{**given, "validation": None})
    assert plain["train_elbo"] == plain["train_objective"]
    assert plain["validation_kl"] == [None, None]
    bound = fit(vae.model, vae.guide, x, elbo=ImportanceWeightedELBO(8), **given)
    assert bound["train_elbo"] == [None, None]
    assert bound["validation_objective"][0] > bound["validation_elbo"][0]
    assert bound["train_objective"][0] > plain["train_elbo"][0]


@pytest.mark.parametrize("elbo", [TraceMeanField_ELBO(), ImportanceWeightedELBO(4)])
@pytest.mark.parametrize("weight", [1.0, 8.0])
@pytest.mark.thin(2)
def test_the_best_epoch_has_the_best_validation_objective(elbo, weight, x):
    vae = make_vae()
    optimizer = partial(torch.optim.Adam, lr=3e-2)
    given = {"epochs": 12, "batch_size": 10, "validation": x, "kl_weight": Beta(weight), "optimizer": optimizer}
    history = fit(vae.model, vae.guide, x, elbo=elbo, **given)
    values = history["validation_objective"]
    assert history.best_epoch == 1 + values.index(max(values))
    found = validate(vae.model, vae.guide, x)
    by_parts = found.reconstruction - weight * found.kl
    if isinstance(elbo, TraceMeanField_ELBO):
        assert max(values) == by_parts
    else:  # under the weight, the bound of four draws
        with temper(latent=weight), isolated_rng(_SEED):
            assert max(values) == pytest.approx(-elbo.loss(vae.model, vae.guide, x) / len(x), rel=1e-6)
        assert max(values) > by_parts


class TestRefusals:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: Beta(-1.0), "beta must be at least 0, got -1.0"),
            (lambda: CyclicalWarmup(rise=0.0), "rise must be above 0 and at most 1"),
            (lambda: CyclicalWarmup(cycles=0), "cycles must be positive"),
            (lambda: Capacity(gamma=-1.0), "gamma must be at least 0"),
            (lambda: Capacity(epochs=0), "epochs must be positive"),
            (lambda: FreeBits(-0.1), "nats must be at least 0"),
            (lambda: FreeBits(0.1, per="pixel"), 'per must be "dimension", "site" or "total"'),
            (lambda: KLConstraint(-1.0), "limit must be at least 0"),
            (lambda: KLConstraint(smoothing=1.0), "smoothing must be at least 0 and below 1"),
            (lambda: GECO(1.0, rate=0.0), "rate must be positive"),
            (lambda: GECO(1.0, lowest=2.0), "must enclose the initial weight 1, got 2.0 and .*; give lowest"),
            (lambda: WeightedELBO(num_particles=0), "num_particles must be at least 1"),
        ],
    )
    def test_kl_weights_refuse_invalid_arguments(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()

    def test_kl_penalties_refuse_objectives_without_parts(self, x):
        vae = make_vae()
        with pytest.raises(ValueError, match=r"Capacity needs an objective split.*Importance"):
            fit(vae.model, vae.guide, x, elbo=ImportanceWeightedELBO(2), epochs=1, kl_weight=Capacity())
        mixture = MixtureVAE(Blueprint(6, 2, network=partial(MLP, hidden=[8])), num_classes=3)
        with pytest.raises(ValueError, match="KLConstraint needs an objective split"):
            fit(mixture.model, mixture.guide, x, elbo=TraceEnum_ELBO(), epochs=1, kl_weight=KLConstraint())
        with pytest.raises(ValueError, match=r"latent 'y' \(\w+\) has none"):
            WeightedELBO().loss(mixture.model, mixture.guide, x)

    def test_elbo_parts_per_dimension_refuse_dependent_dimensions(self, x):
        encoder = FullCovarianceNormalEncoder(MLP(6, FullCovarianceNormalEncoder.num_outputs(2)))
        vae = VAE(StandardNormalPrior(2), BernoulliLikelihood(MLP(2, 6)), encoder)
        with pytest.raises(ValueError, match="independent over the dimensions of latent 'z'"):
            elbo_parts(vae.model, vae.guide, x, per="dimension")
