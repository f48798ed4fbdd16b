"""Tests of priors: densities, draws, `attach`, flows, and errors."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
import yaml
from catalogue import PRIORS, REAL_PRIORS, SIMPLEX, C, D, attached, call, network, perturbed, smallest
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from quadrature import SCORE, log_integral, moment_scores, plane, simplex
from script_helpers import run
from torch import nn

from pyrovae import (
    VAE,
    BernoulliLikelihood,
    CategoricalEncoder,
    ConditionalNormalPrior,
    ConstrainedEncoder,
    DirichletPrior,
    ExemplarPrior,
    FlowEncoder,
    FlowPrior,
    LogisticNormalPrior,
    NormalEncoder,
    Prior,
    StandardNormalPrior,
    StudentTPrior,
    VampPrior,
    fit,
    log_marginal,
    log_weights,
)
from pyrovae.bijections import bijection
from pyrovae.bijections.supports import StickBreaking
from pyrovae.data import load_data
from pyrovae.distributions import FlowDistribution
from pyrovae.runs import build_vae, check_contract, check_reparameterised, parse_training, resolve
from pyrovae.runs.parse import config_to_yaml, parse_config
from pyrovae.runs.registry import known_parts


@pytest.mark.parametrize(
    ("name", "dim"),
    [
        pytest.param(n, d, marks=pytest.mark.slow) if (n, d) == ("flow, nsf", 2) else (n, d)  # takes 5 s
        for n in REAL_PRIORS
        for d in (1, 2)
        if d >= smallest(n)
    ],
)
def test_densities_integrate_to_one(name, dim):
    p = call(perturbed(PRIORS[name](dim)), (1,), torch.float64)
    points, weights = plane(dim, 20_000 if dim == 1 else 600 if "nsf" in name else 800)
    with torch.no_grad():
        total = log_integral(p.log_prob(points), weights).exp()
    # Splines have a jump in their second derivative at every knot, a Laplace one in its first.
    assert total.item() == pytest.approx(1, abs=1e-4 if dim == 2 else 1e-5)


@pytest.mark.parametrize("name", SIMPLEX)
@pytest.mark.parametrize("entries", [2, 3])
def test_densities_on_the_simplex_integrate_to_one(name, entries):
    p = perturbed(PRIORS[name](entries))()
    points, weights = simplex(entries, 4000 if entries == 2 else 400)
    assert log_integral(p.log_prob(points), weights).exp().item() == pytest.approx(1, abs=1e-8)


def test_categories_sum_to_one():
    p = perturbed(PRIORS["categorical"](4))()
    assert p.log_prob(torch.eye(4, dtype=torch.float64)).exp().sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.thin(8)
def test_draws_match_densities(name):
    dim = 2 if name in REAL_PRIORS else 3
    p = call(perturbed(PRIORS[name](dim)), (1,), torch.float64)
    points, weights = plane(2, 600) if name in REAL_PRIORS else simplex(3, 300)
    if name == "categorical":
        points, weights = torch.eye(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    with torch.no_grad():
        draws, log_p = p.expand([20_000]).sample(), p.log_prob(points)
    scores = moment_scores(draws, points, log_p, weights)
    assert scores.abs().max() < SCORE
    # The test has power: draws a tenth too wide, or too near the middle of the simplex, fail by a wide margin.
    wrong = 1.1 * draws if name in REAL_PRIORS else 0.9 * draws + 0.1 / 3
    assert moment_scores(wrong, points, log_p, weights).abs().max() > 6


@pytest.mark.parametrize("name", PRIORS)
def test_draws_of_priors_lie_in_the_declared_support(name):
    prior = PRIORS[name](3)
    p = call(prior, (1,))
    z = p.expand([50]).sample()
    assert bool(prior.support.check(z).all())
    assert bool(p.support.check(z).all())
    assert prior.encoder_dim == (2 if name in SIMPLEX else 3)
    if name not in REAL_PRIORS:
        assert not bool(p.support.check(torch.randn(50, 3)).any())


@pytest.mark.parametrize("make", [lambda: DirichletPrior(3, 0.7), lambda: PRIORS["logistic normal"](3)])
def test_simplex_draws_are_reparameterised(make):
    # d/da E[z_1^2] by draws, against a difference of closed forms or of a fine quadrature.
    prior = make().double()
    parameter = torch.zeros(3 if isinstance(prior, DirichletPrior) else 2, dtype=torch.float64, requires_grad=True)
    points, weights = simplex(3, 600)

    def p(at):
        if isinstance(prior, DirichletPrior):
            return dist.Dirichlet(prior.concentration * at.exp())
        normal = dist.Normal(at, prior.log_scale.exp()).to_event(1)
        return dist.TransformedDistribution(normal, bijection(constraints.simplex))

    exact = torch.autograd.grad((p(parameter).log_prob(points).exp() * weights * points[:, 0] ** 2).sum(), parameter)[0]
    at = parameter.detach().expand(100_000, -1).clone().requires_grad_()
    each = torch.autograd.grad((p(at).rsample()[:, 0] ** 2).sum(), at)[0]
    error = each.std(0) / len(each) ** 0.5
    assert p(parameter).has_rsample
    assert ((each.mean(0) - exact).abs() < 4.5 * error + 1e-6).all()  # 3 numbers: 2e-5


def test_student_t_prior_starts_at_the_given_df():
    p = StudentTPrior(2, df=7.5)()
    torch.testing.assert_close(p.base_dist.df, torch.full((2,), 7.5))
    torch.testing.assert_close(p.variance, torch.full((2,), 7.5 / 5.5))


def test_conditional_prior_is_the_normal_its_network_gives():
    prior = ConditionalNormalPrior(2, network=nn.Linear(C, 4))
    covariates = torch.randn(5, C)
    p = prior(covariates)
    loc, log_scale = prior.network(covariates).chunk(2, -1)
    torch.testing.assert_close(p.mean, loc)
    torch.testing.assert_close(p.stddev, log_scale.exp())
    assert ConditionalNormalPrior(2)(torch.zeros(5, 1)).batch_shape == (5,)


class TestStickBreaking:
    def test_stick_breaking_agrees_with_torch(self):
        ours, theirs = StickBreaking(), torch.distributions.StickBreakingTransform()
        y = torch.randn(10, 4, dtype=torch.float64)
        z = theirs(y)
        torch.testing.assert_close(ours(y), z)
        torch.testing.assert_close(ours.inv(z), y)
        torch.testing.assert_close(ours.log_abs_det_jacobian(y, z), theirs.log_abs_det_jacobian(y, z))
        assert ours == theirs
        assert bijection(constraints.simplex) == theirs

    @pytest.mark.parametrize(("dtype", "far"), [(torch.float32, 40.0), (torch.float64, 300.0)])
    def test_stick_breaking_is_exact_near_the_boundary(self, dtype, far):
        # Torch's own comes back from 16 (36 in double precision) at best.
        f = StickBreaking()
        y = torch.tensor([[far, -far], [-far, far], [far, far], [-far, -far]], dtype=dtype)
        torch.testing.assert_close(f.inv(f(y)), y, rtol=1e-5, atol=0)
        assert bool(constraints.simplex.check(f(y)).all())
        exact = torch.stack([torch.linalg.slogdet(_jacobian(row))[1] for row in y.double() / 10])
        torch.testing.assert_close(f.log_abs_det_jacobian(y / 10, f(y / 10)), exact.to(dtype))

    def test_sparse_entries_keep_their_density_in_single_precision(self):
        # With concentration 0.1, every third draw has an entry below 1e-7.
        prior = DirichletPrior(5, concentration=0.1)
        encoder = ConstrainedEncoder(NormalEncoder(nn.Identity()), constraints.simplex)
        outputs = torch.cat([torch.randn(200, 4), torch.full((200, 4), 2.0)], -1)
        z = encoder(outputs).sample()
        assert bool((z < 1e-7).any())
        for p, again in ((prior(), prior.double()()), (encoder(outputs), encoder(outputs.double()))):
            torch.testing.assert_close(p.log_prob(z).double(), again.log_prob(z.double()), rtol=1e-4, atol=1e-3)


def _jacobian(y):
    return torch.autograd.functional.jacobian(lambda v: StickBreaking()(v)[:-1], y)


class TestFlows:
    def test_flows_leave_the_validation_setting_of_torch_unchanged(self, tmp_path):
        # In a process that has made no flow yet; tests/test_rooms.py says that importing pyrovae changes nothing.
        (tmp_path / "flows.py").write_text("""
import pyrovae, torch
from torch.distributions import Distribution
for validated in (False, True):
    Distribution.set_default_validate_args(validated)
    pyrovae.FlowPrior(2)().log_prob(torch.zeros(2))
    pyrovae.FlowEncoder(torch.nn.Linear(3, 20))(torch.zeros(4, 3)).rsample()
    assert Distribution._validate_args is validated
""")
        run(tmp_path / "flows", cwd=tmp_path)

    def test_cached_log_density_equals_the_recomputed_one(self):
        part = FlowEncoder(network(2 * 3 + 4), num_features=4).double()
        x = torch.randn(6, D, dtype=torch.float64)
        q = part(x).expand((5, 6))
        z = q.rsample()
        kept, anew = q.log_prob(z), q.log_prob(z.clone())
        assert q.log_prob(z) is kept
        torch.testing.assert_close(kept, anew)
        parameters = list(part.parameters())
        gradients = [torch.autograd.grad(each.sum(), parameters, retain_graph=True) for each in (kept, anew)]
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other)

    def test_log_density_cached_without_gradients_is_recomputed_with_them(self):
        q = FlowEncoder(network(2 * 3 + 4), num_features=4)(torch.randn(6, D))
        with torch.no_grad():
            z = q.rsample()
            assert not q.log_prob(z).requires_grad
        assert q.log_prob(z).requires_grad
        assert not q.sample().requires_grad

    @pytest.mark.parametrize("kind", ["nsf", "maf"])
    def test_flow_density_follows_the_change_of_variables(self, kind):
        # log p by the Jacobian's determinant, computed by autograd.
        prior = perturbed(FlowPrior(3, kind=kind, hidden=[8]))
        z = prior().sample((4,))
        f = prior.transform()
        for row in z:
            jacobian = torch.autograd.functional.jacobian(lambda v: f(v[None])[0], row)
            expected = dist.Normal(0.0, 1.0).log_prob(f(row[None])[0]).sum() + torch.linalg.slogdet(jacobian)[1]
            torch.testing.assert_close(prior().log_prob(row), expected)

    def test_autoregressive_prior_is_normal_given_the_preceding_dimensions(self):
        prior = perturbed(PRIORS["autoregressive"](3))
        z = torch.randn(3, dtype=torch.float64)
        f = prior.transform()
        jacobian = torch.autograd.functional.jacobian(lambda v: f(v[None])[0], z)
        assert bool((jacobian.triu(1) == 0).all())
        assert bool((jacobian.diag() > 0).all())
        # Affine in the last entry: its derivative does not move with it.
        moved = z + torch.tensor([0, 0, 2.0])
        again = torch.autograd.functional.jacobian(lambda v: f(v[None])[0], moved)
        torch.testing.assert_close(jacobian[2, 2], again[2, 2])

    def test_a_flow_takes_a_mask_and_a_plate(self):
        p = FlowPrior(2, hidden=[8])()
        with pyro.plate("k", 4, dim=-2), pyro.plate("data", 3, dim=-1):
            z = pyro.sample("z", p.mask(torch.tensor([True, False, True])))
        assert z.shape == (4, 3, 2)
        assert isinstance(p.expand([3]), FlowDistribution)


class Dropping(nn.Module):
    """A network that is another one in training mode."""

    def __init__(self, num_outputs=4):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(D, 16), nn.Dropout(0.5), nn.Linear(16, num_outputs))
        self.modes = []

    def forward(self, x):
        self.modes.append(self.training)
        return self.layers(x)


class TestVampPrior:
    def test_vamp_prior_is_the_mean_of_the_posteriors_at_its_inputs(self):
        encoder = NormalEncoder(network(4))
        prior = attached(VampPrior(2, num_components=5), encoder)
        z = torch.randn(3, 6, 2)
        by_hand = torch.stack([encoder(u).log_prob(z) for u in prior.inputs]).logsumexp(0) - math.log(5)
        torch.testing.assert_close(prior().log_prob(z), by_hand)

    def test_vamp_inputs_start_at_distinct_data(self):
        x = torch.rand(20, D)
        prior = VampPrior(2, num_components=20).attach(NormalEncoder(network(4)), x)
        torch.testing.assert_close(prior.inputs.detach().sort(0).values, x.sort(0).values, rtol=0, atol=0)
        assert not torch.equal(prior.inputs, x)
        few = VampPrior(2, num_components=9).attach(NormalEncoder(network(4)), x[:4])
        counts = (few.inputs[:, None] == x[None, :4]).all(-1).sum(0)
        assert sorted(counts.tolist()) == [2, 2, 2, 3]
        x.zero_()
        assert bool((prior.inputs != 0).any())

    def test_a_vamp_prior_runs_its_encoder_in_evaluation_mode(self):
        encoder = NormalEncoder(Dropping())
        prior = attached(VampPrior(2, num_components=4), encoder)
        prior.train()
        z = torch.randn(3, 2)
        torch.testing.assert_close(prior().log_prob(z), prior().log_prob(z), rtol=0, atol=0)
        assert encoder.network.modes == [False, False]
        assert all(part.training for part in encoder.modules())
        encoder.network.layers[1].eval()  # one that stays in evaluation mode is left there
        prior()
        assert [part.training for part in encoder.network.layers] == [True, False, True]
        with pytest.raises(RuntimeError, match="shapes"):
            prior.attach(encoder, torch.zeros(3, D + 1))()
        assert encoder.training

    def test_gradients_reach_the_encoder_and_inputs_of_a_vamp_prior(self):
        encoder = NormalEncoder(network(4))
        prior = attached(VampPrior(2, num_components=4, learn_weights=True), encoder)
        prior().log_prob(torch.randn(10, 2)).sum().backward()
        for name, parameter in prior.named_parameters():
            assert bool((parameter.grad != 0).any()), name
        assert dict(prior.named_parameters()).keys() >= {"inputs", "logits", "encoder.network.layers.0.weight"}

    def test_vamp_prior_passes_covariates_to_its_encoder(self):
        encoder = NormalEncoder(network(4, D + C))
        prior = attached(VampPrior(2, num_components=4), encoder)
        covariates, z = torch.randn(5, C), torch.randn(3, 5, 2)
        log_p = prior(covariates).log_prob(z)
        for n in range(5):
            posteriors = encoder(prior.inputs, covariates[n].expand(4, C))
            by_hand = posteriors.log_prob(z[:, n, None]).logsumexp(-1) - math.log(4)
            torch.testing.assert_close(log_p[:, n], by_hand)

    @staticmethod
    def vae(seed=0, **arguments):
        pyro.set_rng_seed(seed)
        encoder = NormalEncoder(network(4))
        prior = attached(VampPrior(2, num_components=4, **arguments), encoder)
        return VAE(prior, BernoulliLikelihood(network(D, 2)), encoder)

    def test_svi_steps_the_shared_encoder_once(self):
        # The store knows the shared parameters under two names; a step moves them as torch's own does.
        x = torch.bernoulli(torch.full((8, D), 0.5))
        ours, theirs = self.vae(), self.vae()
        svi = SVI(ours.model, ours.guide, pyro.optim.SGD({"lr": 0.1}), Trace_ELBO())
        optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
        for step in range(3):
            pyro.set_rng_seed(step)
            svi.step(x)
            pyro.set_rng_seed(step)
            optimizer.zero_grad()
            Trace_ELBO().differentiable_loss(theirs.model, theirs.guide, x).backward()
            optimizer.step()
        start = self.vae().state_dict()
        for (name, one), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            torch.testing.assert_close(one, other)
            assert not torch.equal(one, start[name]), name
        assert ours.model.prior.encoder is ours.guide.encoder

    def test_fit_trains_every_parameter_of_a_vamp_vae(self):
        vae, x = self.vae(), torch.bernoulli(torch.full((30, D), 0.5))
        before = copy.deepcopy(vae.state_dict())
        history = fit(
            vae.model, vae.guide, x, elbo=Trace_ELBO(), epochs=3, batch_size=10, validation=x, optimizer=_adam(1e-2)
        )
        assert len(history) == 3
        assert all(not torch.equal(value, before[name]) for name, value in vae.state_dict().items())

    def test_copied_vae_shares_one_encoder_of_its_own(self):
        vae = self.vae()
        twin = copy.deepcopy(vae)
        assert twin.model.prior.encoder is twin.guide.encoder
        assert twin.guide.encoder is not vae.guide.encoder
        assert len(list(twin.parameters())) == len(list(vae.parameters()))

    def test_vamp_state_dict_loads_after_attaching_zeros(self):
        vae = self.vae()
        encoder = NormalEncoder(network(4))
        prior = VampPrior(2, num_components=4).attach(encoder, torch.zeros(1, D))
        again = VAE(prior, BernoulliLikelihood(network(D, 2)), encoder)
        again.load_state_dict(vae.state_dict())
        z = torch.randn(5, 2)
        torch.testing.assert_close(prior().log_prob(z), vae.model.prior().log_prob(z), rtol=0, atol=0)
        assert prior.encoder is again.guide.encoder

    def test_vamp_prior_changes_dtype_with_its_encoder(self):
        vae = self.vae().double()
        x = torch.bernoulli(torch.full((3, D), 0.5, dtype=torch.float64))
        assert log_marginal(vae.model, vae.guide, x, num_particles=4).value.dtype == torch.float64
        assert vae.model.prior().log_prob(torch.zeros(2, dtype=torch.float64)).dtype == torch.float64


def _adam(lr):
    return lambda parameters: torch.optim.Adam(parameters, lr=lr)


def test_exemplar_prior_is_a_mixture_of_normals_around_encoded_data():
    encoder, x = NormalEncoder(network(4)), torch.rand(9, D)
    prior = ExemplarPrior(2, num_components=9).attach(encoder, x)
    z = torch.randn(5, 2)
    by_hand = dist.Normal(encoder(x).mean, 1.0).to_event(1).log_prob(z[:, None]).logsumexp(-1) - math.log(9)
    torch.testing.assert_close(prior().log_prob(z), by_hand)
    assert "inputs" in dict(prior.named_buffers())


def test_priors_without_attach_return_themselves():
    prior = StandardNormalPrior(2)
    assert prior.attach(nn.Identity(), torch.zeros(3, D)) is prior


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StudentTPrior(2, df=2.0), "df must be a number above 2"),
        (lambda: VampPrior(2, num_components=0), "num_components must be at least 1"),
        (lambda: VampPrior(2)(), r"call VampPrior.attach\(encoder, x\) first"),
        (lambda: ExemplarPrior(2)(), r"call ExemplarPrior.attach\(encoder, x\) first"),
        (lambda: VampPrior(2).attach(NormalEncoder(network(4)), torch.zeros(0, D)), "x is empty"),
        (lambda: attached(VampPrior(3), NormalEncoder(network(4)))(), r"latents of shape \(3,\), got \(2,\)"),
        (lambda: attached(ExemplarPrior(2), FlowEncoder(network(4 + 16)))(), "FlowDistribution has none"),
        (lambda: FlowPrior(2, kind="realnvp"), "kind must be one of 'nsf', 'maf', got 'realnvp'"),
        (lambda: FlowPrior(2, transforms=0), "transforms must be at least 1"),
        (lambda: DirichletPrior(1), "latent_dim must be at least 2"),
        (lambda: LogisticNormalPrior(1), "latent_dim must be at least 2"),
        (lambda: DirichletPrior(3, concentration=0.0), "concentration must be a positive number"),
        (lambda: ConditionalNormalPrior(2)(), "give covariates"),
    ],
)
def test_priors_reject_invalid_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_vamp_prior_adopts_the_support_of_its_encoder():
    prior = attached(VampPrior(3, num_components=4), CategoricalEncoder(network(3)))
    assert prior.support.is_discrete
    p = prior()
    assert p.log_prob(torch.eye(3)).exp().sum().item() == pytest.approx(1, abs=1e-6)
    assert Prior.support is not prior.support


@pytest.mark.parametrize(
    "flags",
    [
        *(["--prior", name] for name in known_parts("prior") if name != "CategoricalPrior"),
        *(["--encoder", name] for name in known_parts("encoder") if name != "CategoricalEncoder"),
        ["--prior", "CategoricalPrior", "--encoder", "CategoricalEncoder", "--elbo", "TraceEnum_ELBO"],
        ["--prior", "VampPrior", "--prior.num_components", "30", "--prior.learn_weights", "true"],
        ["--prior", "FlowPrior", "--prior.kind", "maf", "--prior.hidden", "[4]"],
        [
            "--prior",
            "DirichletPrior",
            "--prior.learned",
            "true",
            "--encoder",
            "LowRankNormalEncoder",
            "--encoder.rank=1",
        ],
        ["--encoder", "FlowEncoder", "--encoder.kind", "nsf", "--encoder.num_features", "3"],
        ["--encoder", "MixtureEncoder", "--encoder.num_components", "2"],
        ["--prior", "VampPrior", "--encoder", "FlowEncoder"],
    ],
    ids=" ".join,
)
@pytest.mark.thin(9)
def test_every_part_is_built_from_flags_and_loaded(flags):
    # Built from training data; then without them, as a loaded run is, and given the weights.
    data = load_data("digits")
    config = parse_training([*flags, "--latent_dim", "3", "--network.hidden", "[5]"])
    config = resolve(config, data)
    kwargs = {"covariates": torch.rand(5, C)} if "ConditionalNormalPrior" in flags else {}
    vae = build_vae(config, 64, C * len(kwargs), data.train)
    source = "config.yaml"
    again = parse_config(yaml.safe_load(config_to_yaml(config)), source=source, trust_imports=[])
    loaded = build_vae(again, 64, C * len(kwargs))
    loaded.load_state_dict(vae.state_dict())
    x = data.test[:5]
    check_contract(vae.model, vae.guide, x, **kwargs)
    values = []
    for each in (vae, loaded):
        pyro.set_rng_seed(0)
        values.append(log_weights(each.model, each.guide, x, num_particles=2, **kwargs))
    torch.testing.assert_close(*values)
    assert values[0].shape == (2, 5)
    if "CategoricalPrior" in flags:
        with pytest.raises(ValueError, match="use --elbo TraceEnum_ELBO"):
            check_reparameterised(vae.guide, x)
    if "VampPrior" in flags:  # starts at training data
        inputs = vae.model.prior.inputs
        assert bool((inputs[:, None] == data.train[None]).all(-1).any(1).all())
