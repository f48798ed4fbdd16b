"""Tests of encoders: densities, draws and gradients, on real vectors and on the simplex; and every prior with each."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import (
    ENCODERS,
    PAIRS,
    PRIORS,
    REAL_ENCODERS,
    SIMPLEX,
    C,
    D,
    Z,
    matching_encoder,
    network,
    perturbed,
    smallest,
)
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from quadrature import SCORE, log_integral, moment_scores, plane, simplex
from torch import nn

from pyrovae import (
    MLP,
    VAE,
    BernoulliLikelihood,
    CategoricalEncoder,
    CategoricalPrior,
    ConstrainedEncoder,
    DirichletPrior,
    ExemplarPrior,
    FlowEncoder,
    FlowPrior,
    FullCovarianceNormalEncoder,
    LogisticNormalPrior,
    LowRankNormalEncoder,
    MixtureEncoder,
    MixturePrior,
    NormalEncoder,
    NormalLikelihood,
    StandardNormalPrior,
    StudentTEncoder,
    VampPrior,
    log_joint,
    log_marginal,
    log_weights,
)
from pyrovae.densities import evaluating
from pyrovae.encoders.mixture import MixtureOfNormals


def at_two(name, dim, constrained=False):
    """q(z|x) at two data, in double precision, and a quadrature of its space."""
    encoder = perturbed(ENCODERS[name](dim))
    size = 4000 if dim == 1 else 250
    points, weights = simplex(dim + 1, size) if constrained else plane(dim, size)
    if constrained:
        encoder = ConstrainedEncoder(encoder, constraints.simplex)
    return encoder(torch.randn(2, D, dtype=torch.float64)), points, weights


@pytest.mark.parametrize(("name", "dim"), [(n, d) for n in REAL_ENCODERS for d in (1, 2) if d >= smallest(n)])
@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.thin(2)
def test_densities_integrate_to_one(name, dim, constrained):
    q, points, weights = at_two(name, dim, constrained)
    with torch.no_grad():
        total = log_integral(q.log_prob(points[:, None]), weights).exp()
    # Splines have a jump in their second derivative at every knot.
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", REAL_ENCODERS)
@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.thin(3)
def test_draws_match_densities(name, constrained):
    q, points, weights = at_two(name, 2, constrained)
    with torch.no_grad():
        draws, log_q = q.expand((20_000, 2)).sample(), q.log_prob(points[:, None])
    assert bool(q.support.check(draws).all())
    for n in range(2):
        assert moment_scores(draws[:, n], points, log_q[:, n], weights).abs().max() < SCORE
    # The test has power: the draws of the one datum do not pass for the other's.
    assert moment_scores(draws[:, 0], points, log_q[:, 1], weights).abs().max() > 6


def test_categories_sum_to_one():
    q = CategoricalEncoder(network(4)).double()(torch.randn(5, D, dtype=torch.float64))
    total = q.log_prob(torch.eye(4, dtype=torch.float64)[:, None]).exp().sum(0)
    torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize("name", REAL_ENCODERS)
@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.thin(3)
def test_gradients_through_draws_are_those_of_the_expectation(name, constrained):
    # d/dparameter E[g(z)], by draws, against the same by quadrature.
    pyro.set_rng_seed(3)
    encoder = perturbed(ENCODERS[name](2))
    points, weights = simplex(3, 250) if constrained else plane(2, 250)
    encoder = ConstrainedEncoder(encoder, constraints.simplex) if constrained else encoder
    x = torch.randn(1, D, dtype=torch.float64)
    bias = [p for name, p in encoder.named_parameters() if name.endswith("network.layers.2.bias")]
    # g is bounded, so that the gradients of heavy tails have a variance.
    g = lambda z: torch.tanh(z[..., 0]) * torch.cos(1 + z[..., 1])  # noqa: E731
    exact = torch.autograd.grad((encoder(x).log_prob(points[:, None])[:, 0].exp() * weights * g(points)).sum(), bias)[0]
    blocks = []
    for _ in range(40):
        value = g(encoder(x).expand((1000, 1)).rsample()).mean()
        blocks.append(torch.autograd.grad(value, bias)[0])
    blocks = torch.stack(blocks)
    error = blocks.std(0) / len(blocks) ** 0.5
    # At most 15 numbers by 18 tests, each a t statistic of 39 degrees: one beyond 5.5 has probability 7e-4, once.
    assert ((blocks.mean(0) - exact).abs() < 5.5 * error + 1e-4).all()
    # The test has power: the gradient is seen to differ from half of itself.
    assert ((blocks.mean(0) - 0.5 * exact).abs() > 5.5 * error).any()


class TestMixture:
    @staticmethod
    def q(batch, dim, components=3, dtype=torch.float64):
        logits, loc, scale = (
            torch.randn(batch, components, dtype=dtype, requires_grad=True),
            torch.randn(batch, components, dim, dtype=dtype, requires_grad=True),
            (0.3 + torch.rand(batch, components, dim, dtype=dtype)).requires_grad_(),
        )
        q = MixtureOfNormals(dist.Categorical(logits=logits), dist.Normal(loc, scale).to_event(1))
        return q, (logits, loc, scale)

    def test_mixture_gradients_keep_the_distribution_functions_of_a_draw(self):
        # By hand at one draw: F(z_1) and F(z_2 | z_1) after a small step of the parameters, z moved along.
        q, (logits, loc, scale) = self.q(1, 2)
        pyro.set_rng_seed(1)
        z = q.rsample()
        direction = [torch.randn_like(each) for each in (logits, loc, scale)]
        dz = []
        for d in range(2):
            gradients = torch.autograd.grad(z[0, d], (logits, loc, scale), retain_graph=True)
            dz.append(sum((g * v).sum() for g, v in zip(gradients, direction, strict=True)))
        dz = torch.stack(dz)

        def uniforms(step):
            a, m, s = (p.detach() + step * v for p, v in zip((logits, loc, scale), direction, strict=True))
            at = z[0].detach() + step * dz
            normal = torch.distributions.Normal(m[0], s[0])
            w, cdf = a[0].softmax(-1), normal.cdf(at)
            first = (w * cdf[:, 0]).sum()
            given = w * normal.log_prob(at)[:, 0].exp()
            return torch.stack([first, (given * cdf[:, 1]).sum() / given.sum()])

        moved = (uniforms(1e-5) - uniforms(-1e-5)) / 2e-5
        torch.testing.assert_close(moved, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-8)

    def test_mixture_gradients_are_finite_in_many_dimensions(self):
        q, parameters = self.q(50, 200, dtype=torch.float32)
        for gradient in torch.autograd.grad(q.rsample().square().sum(), parameters):
            assert bool(torch.isfinite(gradient).all())

    def test_mixture_of_one_component_is_a_normal(self):
        q, (_, loc, scale) = self.q(4, 3, components=1)
        z = q.rsample()
        gradients = torch.autograd.grad(z.sum(), (loc, scale))
        torch.testing.assert_close(gradients[0], torch.ones_like(loc))
        torch.testing.assert_close(gradients[1], ((z[:, None] - loc) / scale).detach())

    def test_mixture_draws_without_gradients_equal_samples(self):
        with torch.no_grad():
            assert not self.q(2, 3)[0].rsample((5,)).requires_grad


def test_covariance_is_that_of_the_network_outputs():
    outputs = torch.randn(4, 9, dtype=torch.float64)
    q = FullCovarianceNormalEncoder(nn.Identity())(outputs)
    unit = torch.eye(3, dtype=torch.float64)
    unit[1, 0], unit[2, 0], unit[2, 1] = outputs[1, 6:]
    tril = outputs[1, 3:6].exp().diag() @ unit
    torch.testing.assert_close(q.covariance_matrix[1], tril @ tril.T)
    outputs = torch.randn(4, 12, dtype=torch.float64)
    q = LowRankNormalEncoder(nn.Identity(), rank=2)(outputs)
    factor, scale = outputs[1, 6:].reshape(3, 2), outputs[1, 3:6].exp().diag()
    within = factor @ factor.T + torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(q.covariance_matrix[1], scale @ within @ scale)


@pytest.mark.parametrize("kind", ["maf", "nsf"])
def test_the_features_of_the_network_change_the_flow_of_an_encoder(kind):
    # With loc and log_scale held, the density follows h, and the scale is that of the network.
    encoder = FlowEncoder(nn.Linear(9, 9), kind=kind, num_features=5).double()
    encoder.network = nn.Identity()
    outputs = 0.3 * torch.randn(2, 9, dtype=torch.float64)  # z lies where the splines bend
    outputs[1, :4] = outputs[0, :4]
    z = 0.3 * torch.randn(2, dtype=torch.float64)
    assert encoder(outputs).log_prob(z).diff().abs() > 1e-3
    moved = outputs + torch.tensor([1.0, 2, 0, 0, 0, 0, 0, 0, 0])
    torch.testing.assert_close(encoder(moved).log_prob(z + torch.tensor([1.0, 2])), encoder(outputs).log_prob(z))


@pytest.mark.parametrize("constrained", [False, True])
def test_flow_scores_its_own_draws_without_another_pass(constrained):
    encoder = FlowEncoder(network(2 * 2 + 4), num_features=4)
    passes = []
    for part in encoder.transform.modules():
        if type(part).__name__ == "MaskedMLP":
            part.register_forward_hook(lambda *given: passes.append(1))
    q = (ConstrainedEncoder(encoder, constraints.simplex) if constrained else encoder)(torch.randn(3, D))
    q = q.expand((5, 3))
    z = q.rsample()
    drawn = len(passes)
    q.log_prob(z)
    assert len(passes) == drawn > 0
    q.log_prob(z.clone())
    assert len(passes) > drawn


def test_student_t_tails_bound_the_weights():
    # log N - log t at 10 and 20 standard deviations: falling for the t, rising for a narrower normal.
    z = torch.tensor([[10.0], [20.0]])
    p = dist.Normal(torch.zeros(1), 1.0).to_event(1)
    outputs = torch.tensor([0.0, math.log(0.8)])
    for encoder, falls in ((StudentTEncoder(nn.Identity()), True), (NormalEncoder(nn.Identity()), False)):
        log_w = p.log_prob(z) - encoder(outputs).log_prob(z)
        assert bool(log_w[1] < log_w[0]) is falls


@pytest.mark.parametrize("name", REAL_ENCODERS)
def test_constrained_density_includes_the_jacobian(name):
    # By the change of variables as autograd finds it, at the draw's own pre-image.
    encoder = perturbed(ENCODERS[name](2))
    x = torch.randn(3, D, dtype=torch.float64)
    q = ConstrainedEncoder(encoder, constraints.simplex)(x)
    z = q.sample()
    f = torch.distributions.biject_to(constraints.simplex)
    y = f.inv(z)
    for n in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda v: f(v)[:-1], y[n])
        expected = encoder(x).log_prob(y)[n] - torch.linalg.slogdet(jacobian)[1]
        torch.testing.assert_close(q.log_prob(z)[n], expected)


@pytest.mark.parametrize("support", [constraints.positive, constraints.unit_interval])
def test_encoders_are_constrained_to_other_supports_than_the_simplex(support):
    class Bounded(StandardNormalPrior):
        def forward(self, covariates=None):
            if self.support is constraints.positive:
                return dist.Gamma(self.scale, self.scale).to_event(1)
            return dist.Beta(self.scale, self.scale).to_event(1)

    Bounded.support = support
    prior = Bounded(Z)
    assert prior.encoder_dim == Z
    vae = VAE(prior, BernoulliLikelihood(network(D, Z)), matching_encoder(prior))
    x = torch.bernoulli(torch.full((4, D), 0.5))
    assert bool(torch.isfinite(log_weights(vae.model, vae.guide, x, num_particles=3)).all())


def pair(prior, encoder, latent_dim=3, seed=0):
    """A VAE of this prior and encoder in double precision, data, and covariates where the prior takes them."""
    pyro.set_rng_seed(seed)
    p_z = PRIORS[prior](latent_dim)
    conditional = prior == "conditional"
    likelihood = BernoulliLikelihood(network(D, latent_dim + C * conditional))
    if prior.startswith("vamp"):  # shared, as it is meant
        q_z = ENCODERS[encoder](latent_dim)
        p_z.attach(q_z, torch.rand(7, D))
    else:
        q_z = matching_encoder(p_z, encoder)
    x = torch.bernoulli(torch.full((6, D), 0.3)).double()
    kwargs = {"covariates": torch.randn(6, C).double()} if conditional else {}
    return VAE(p_z, likelihood, q_z).double(), x, kwargs


@pytest.mark.parametrize(("prior", "encoder"), PAIRS)
@pytest.mark.thin(8)
def test_every_prior_and_encoder_pair_gives_weights_and_trains(prior, encoder):
    vae, x, kwargs = pair(prior, encoder)
    log_w = log_weights(vae.model, vae.guide, x, num_particles=3, **kwargs)
    assert log_w.shape == (3, 6)
    assert bool(torch.isfinite(log_w).all())
    elbo = TraceEnum_ELBO(max_plate_nesting=1) if prior == "categorical" else Trace_ELBO()

    def loss():
        pyro.set_rng_seed(7)
        with evaluating(vae.model, vae.guide):
            return -log_weights(vae.model, vae.guide, x, num_particles=50, **kwargs).mean()

    before, values = loss(), copy.deepcopy(vae.state_dict())
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    for _ in range(20):
        svi.step(x, **kwargs)
    assert loss() < before
    trained = [name for name, _ in vae.named_parameters()]
    assert [name for name in trained if torch.equal(vae.state_dict()[name], values[name])] == []
    again = copy.deepcopy(vae)
    pyro.set_rng_seed(1)
    one = log_weights(vae.model, vae.guide, x, **kwargs)
    pyro.set_rng_seed(1)
    torch.testing.assert_close(log_weights(again.model, again.guide, x, **kwargs), one)


# Where torch has the divergence in closed form, so that TraceMeanField_ELBO takes it.
CLOSED = [("standard", "normal"), ("normal", "normal"), ("laplace", "normal"), ("conditional", "normal")]
CLOSED += [("logistic normal", "normal"), ("categorical", "categorical")]


@pytest.mark.parametrize(("prior", "encoder"), PAIRS)
@pytest.mark.thin(48)
def test_closed_form_kl_agrees_with_draws(prior, encoder):
    vae, x, kwargs = pair(prior, encoder)
    p, q = vae.model.prior(*kwargs.values()), vae.guide.encoder(x, *kwargs.values())
    if (prior, encoder) not in CLOSED:
        with pytest.raises(NotImplementedError):
            torch.distributions.kl_divergence(q, p)
        return
    z = q.sample((4000,))
    drawn = q.log_prob(z) - p.log_prob(z)
    gap = torch.distributions.kl_divergence(q, p) - drawn.mean(0)
    assert (gap.abs() < 5 * drawn.std(0) / len(z) ** 0.5).all()  # 6 data by 6 pairs: 2e-5


@pytest.mark.parametrize(("prior", "encoder"), [each for each in PAIRS if each[0] != "categorical"])
@pytest.mark.thin(48)
def test_every_prior_and_encoder_pair_trains_with_the_default_objective(prior, encoder):
    vae, x, kwargs = pair(prior, encoder)
    assert math.isfinite(TraceMeanField_ELBO().loss_and_grads(vae.model, vae.guide, x, **kwargs))


def test_a_categorical_latent_is_summed_out_exactly():
    vae, x, _ = pair("categorical", "categorical", latent_dim=4)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    prior, q = vae.model.prior(), vae.guide.encoder(x)
    each = torch.eye(4, dtype=torch.float64)[:, None].expand(4, 6, 4)
    log_p = log_joint(vae.model, {"z": each}, x)
    exact = (q.probs.T * (log_p - q.logits.T)).sum()
    assert -elbo.loss(vae.model, vae.guide, x) == pytest.approx(exact.item(), abs=1e-9)
    estimate = log_marginal(vae.model, vae.guide, x, num_particles=4000)
    assert ((estimate.value - log_p.logsumexp(0)).abs() < SCORE * estimate.std_error + 1e-9).all()  # 6 data: 4e-5
    assert prior.event_shape == (4,)


QUADRATURE = {
    "mixture and mixture": (lambda: MixturePrior(2, 3), "mixture"),
    "vamp and low rank": (lambda: VampPrior(2, 4), "low rank"),
    "splines and student-t": (lambda: FlowPrior(2, hidden=[8]), "student-t"),
    "standard and splines": (lambda: StandardNormalPrior(2), "flow, nsf"),
    "dirichlet and normal": (lambda: DirichletPrior(3, 2.0), "normal"),
    "logistic normal and student-t": (lambda: LogisticNormalPrior(3), "student-t"),
    "dirichlet and flow": (lambda: DirichletPrior(3, 2.0), "flow, maf"),
}


SLOW = ("splines and student-t",)  # 20 s


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in QUADRATURE]
)
@pytest.mark.thin(1)
def test_log_marginal_agrees_with_quadrature(name):
    make, encoder = QUADRATURE[name]
    prior = make()
    q_z = ENCODERS[encoder](2)
    prior.attach(q_z, torch.rand(7, D))
    vae = VAE(prior, NormalLikelihood(network(D, prior.latent_dim), scale=1.0), q_z).double()
    x = 0.5 * torch.randn(4, D, dtype=torch.float64)
    optimizer = torch.optim.Adam(vae.guide.parameters(), lr=0.05)
    for _ in range(40):  # towards a guide that covers the posterior, so that the weights have a small variance
        q = vae.guide.encoder(x)
        z = q.sample((50,))
        log_q = q.log_prob(z)
        w = (log_joint(vae.model, {"z": z}, x) - log_q).softmax(0).detach()
        optimizer.zero_grad()
        (-(w * log_q).sum()).backward()
        optimizer.step()
    points, weights = plane(2, 400) if prior.latent_dim == 2 else simplex(3, 300)
    with torch.no_grad():
        density = log_joint(vae.model, {"z": points[:, None].expand(-1, 4, -1)}, x)
    exact = log_integral(density, weights)
    estimate = log_marginal(vae.model, vae.guide, x, num_particles=20_000)
    assert estimate.std_error.max() < 0.02
    # Four data by seven pairs: one beyond has probability 2e-4; the quadrature's own error is below 1e-3.
    assert ((estimate.value - exact).abs() < SCORE * estimate.std_error + 1e-3).all()


@pytest.mark.parametrize(
    ("name", "latent_dim"), [(n, size) for n in ENCODERS for size in (1, 3, 10) if size >= smallest(n)]
)
def test_num_outputs_is_the_number_that_forward_needs(name, latent_dim):
    q = ENCODERS[name](latent_dim)(torch.zeros(2, D))
    assert q.event_shape == (latent_dim,)
    assert bool(torch.isfinite(q.log_prob(q.sample())).all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LowRankNormalEncoder(network(8), rank=0), "rank must be at least 1, got 0; use NormalEncoder"),
        (lambda: LowRankNormalEncoder(network(7))(torch.zeros(1, D)), r"must have Z \(2 \+ rank\)"),
        (lambda: FullCovarianceNormalEncoder(network(6))(torch.zeros(1, D)), r"must have Z \(Z \+ 3\) / 2"),
        (lambda: MixtureEncoder(network(9), num_components=0), "num_components must be at least 1"),
        (lambda: MixtureEncoder(network(9))(torch.zeros(1, D)), r"must have C \(2 Z \+ 1\), C = 4"),
        (lambda: FlowEncoder(network(16)), "must have 2 Z"),
        (lambda: FlowEncoder(network(20), num_features=0), "num_features must be at least 1"),
        (lambda: FlowEncoder(network(20), kind="iaf"), "kind must be one of 'nsf', 'maf'"),
        (lambda: FlowEncoder(nn.Identity()), "number of outputs of Identity is unknown"),
        (lambda: StudentTEncoder(network(4), df=0.0), "df must be a positive number"),
        (lambda: ConstrainedEncoder(nn.Identity(), constraints.one_hot), "needs a bijection"),
    ],
)
def test_encoders_reject_invalid_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class TestPairsThatCannotMatch:
    @pytest.mark.parametrize("name", REAL_ENCODERS)
    def test_a_discrete_prior_refuses_a_continuous_encoder(self, name):
        message = "prior is a distribution of one-hot vectors, .* real vectors.*CategoricalEncoder for CategoricalPrior"
        with pytest.raises(ValueError, match=message):
            VAE(CategoricalPrior(3), BernoulliLikelihood(MLP(3, D)), ENCODERS[name](3))

    @pytest.mark.parametrize("name", [name for name in PRIORS if name != "categorical"])
    def test_a_continuous_prior_refuses_a_discrete_encoder(self, name):
        with pytest.raises(ValueError, match="CategoricalEncoder is one of one-hot vectors"):
            VAE(PRIORS[name](3), BernoulliLikelihood(MLP(3, D)), CategoricalEncoder(network(3)))

    @pytest.mark.parametrize(("prior", "outputs"), [("standard", 1), ("standard", 3), ("dirichlet", 3)])
    def test_wrong_sizes_are_rejected_before_a_parameter_moves(self, prior, outputs):
        # A latent of one number would broadcast over the prior's three.
        vae = VAE(PRIORS[prior](3), BernoulliLikelihood(MLP(3, D)), NormalEncoder(network(2 * outputs)))
        x = torch.zeros(4, D)
        if prior == "standard" and outputs == 3:
            log_weights(vae.model, vae.guide, x)
            return
        with pytest.raises(ValueError, match=r"one latent of the prior has shape \(3,\)"):
            log_weights(vae.model, vae.guide, x)
        with pytest.raises(ValueError, match="one latent of the prior has shape"):
            SVI(vae.model, vae.guide, pyro.optim.Adam({}), Trace_ELBO()).step(x)

    def test_constrained_encoder_is_not_constrained_twice(self):
        encoder = ConstrainedEncoder(NormalEncoder(network(4)), constraints.simplex)
        vae = VAE(DirichletPrior(3), BernoulliLikelihood(MLP(3, D)), encoder)
        assert vae.guide.encoder is encoder
        with pytest.raises(ValueError, match="cannot be mapped to it"):
            VAE(StandardNormalPrior(3), BernoulliLikelihood(MLP(3, D)), encoder)

    def test_exemplar_prior_needs_an_encoder_with_a_mean(self):
        encoder = ENCODERS["flow, nsf"](2)
        vae = VAE(ExemplarPrior(2).attach(encoder, torch.rand(5, D)), BernoulliLikelihood(MLP(2, D)), encoder)
        with pytest.raises(ValueError, match="FlowDistribution has none"):
            log_weights(vae.model, vae.guide, torch.zeros(3, D))


def test_encoder_of_a_real_prior_is_not_constrained():
    encoder = NormalEncoder(network(4))
    assert VAE(StandardNormalPrior(2), BernoulliLikelihood(MLP(2, D)), encoder).guide.encoder is encoder
    assert [name for name in PRIORS if PRIORS[name](2).encoder_dim == 1] == SIMPLEX


def test_covariates_pass_through_a_constrained_encoder():
    encoder = ConstrainedEncoder(NormalEncoder(network(4, D + C)), constraints.simplex)
    q = encoder(torch.zeros(5, D), torch.zeros(5, C))
    assert (q.batch_shape, q.event_shape) == ((5,), (3,))
