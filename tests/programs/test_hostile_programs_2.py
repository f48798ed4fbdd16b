"""Programs with state, guides with a narrow support, samplers that differ from their density, and sums alone."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from zoo.integrals import line, log_integral
from zoo.parts import log_normal, noise

from pyrovae import (
    GuideProposal,
    PriorProposal,
    ais,
    exact_log_marginal,
    fit,
    ladder,
    linear_schedule,
    log_evidence,
    log_marginal,
    log_weights,
    weighted_draws,
)

N = 20
X = 2 * noise(33, N) + 0.2 * torch.arange(N)  # whose first rows have another mean
SHORT = noise(34, 6)


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    yield
    torch.set_default_dtype(torch.float32)


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.3 * x, 1.1))


def log_p(x, loc=0.0, scale=0.8):
    return log_normal(x, loc, math.sqrt(1 + scale**2))


def check(found, expected):
    assert ((found.value - expected).abs() < 4.5 * found.std_error + 1e-6).all(), (found.value, expected)


def observe(x, loc):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + loc, 0.8), obs=x)


class CachedMean:
    """A program that keeps the mean of the first data that it sees."""

    def __init__(self):
        self.mean = None

    def model(self, x):
        if self.mean is None:
            self.mean = x.mean()
        observe(x, self.mean)


class CachedInDict(CachedMean):
    """A program with a dict of what it has computed."""

    def __init__(self):
        self.cache = {}

    def model(self, x):
        observe(x, self.cache.setdefault("mean", x.mean()))


class Shift(torch.nn.Module):
    """A layer that centres the first data that it sees, such as an activation normalisation."""

    def __init__(self):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros(()))
        self.register_buffer("ready", torch.tensor(False))

    def forward(self, z, x):
        if not self.ready:
            self.loc.data = x.mean()
            self.ready.fill_(True)
        return z + self.loc


def centring_layer():
    layer = Shift()
    return lambda x: observe(x, layer(torch.zeros(()), x))


def parameter_from_data():
    return lambda x: observe(x, pyro.param("mean", lambda: x.mean()))


def variable_of_an_enclosing_function():
    mean = None

    def model(x):
        nonlocal mean
        if mean is None:
            mean = x.mean()
        observe(x, mean)

    return model


STATEFUL = [
    lambda: CachedMean().model,
    lambda: CachedInDict().model,
    centring_layer,
    parameter_from_data,
    variable_of_an_enclosing_function,
]


@pytest.mark.parametrize("make", STATEFUL)
def test_state_that_the_first_run_sets_up_comes_from_all_data(make):
    model = make()
    check(log_marginal(model, guide, X, num_particles=3000), log_p(X, X.mean()))
    torch.testing.assert_close(exact_log_marginal(make(), X).value, log_p(X, X.mean()))


def test_a_parameter_from_data_stays_that_of_all_data_without_gradient_steps():
    exact_log_marginal(parameter_from_data(), X)
    assert pyro.param("mean").item() == pytest.approx(X.mean().item())


def test_a_cache_of_all_rows_does_not_keep_those_of_the_check():
    class Cached:
        rows = None

        def model(self, x):
            self.rows = 2 * x if self.rows is None else self.rows
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 0.8), obs=self.rows)

    program = Cached()
    check(log_marginal(program.model, guide, SHORT, num_particles=3000), log_p(2 * SHORT))
    assert torch.equal(program.rows, 2 * SHORT)


def narrow(make):
    def narrow_guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", make(torch.ones(len(x))))

    return narrow_guide


NARROW = [lambda one: dist.Uniform(0 * one, one), dist.HalfNormal, lambda one: dist.LogNormal(0 * one, one)]


def standard(x):
    observe(x, 0.0)


@pytest.mark.parametrize("make", NARROW)
def test_a_guide_that_never_draws_a_part_of_the_posterior_is_told_of(make):
    with pytest.warns(UserWarning, match="never draws values of latent 'z'"):
        found = log_marginal(standard, narrow(make), SHORT, num_particles=2000, proposal=GuideProposal())
    assert (found.value < log_p(SHORT) - 5 * found.std_error).any()
    for estimate in (log_weights, weighted_draws):
        with pytest.warns(UserWarning, match="never draws"), torch.no_grad():
            estimate(standard, narrow(make), SHORT)
    with pytest.warns(UserWarning, match="never draws"):
        log_evidence(standard, narrow(make), SHORT, num_particles=100, proposal=GuideProposal())
    with pytest.raises(ValueError, match=r"never draws.*; use guide=None"):
        ais(standard, SHORT, guide=narrow(make), num_particles=10, betas=linear_schedule(5))
    check(log_marginal(standard, narrow(make), SHORT, num_particles=3000), log_p(SHORT))


def test_a_guide_may_exclude_what_the_data_exclude():
    counts = torch.tensor([0.0, 2, 1, 4, 3, 1])

    def model(x):
        with pyro.plate("data", len(x)):
            total = pyro.sample("total", dist.Poisson(3.0))
            pyro.sample("x", dist.Binomial(total, 0.4), obs=x)

    def shifted(x):
        with pyro.plate("data", len(x)):
            more = dist.Poisson(torch.full((len(x),), 1.8))
            pyro.sample("total", dist.TransformedDistribution(more, dist.transforms.AffineTransform(x, 1.0)))

    expected = torch.distributions.Poisson(1.2).log_prob(counts)
    with warnings.catch_warnings(), pyro.validation_enabled(False):
        warnings.simplefilter("error")
        check(log_marginal(model, shifted, counts, num_particles=500, proposal=GuideProposal()), expected)


def log_p_of_correlations(x, concentration):
    """Integrate over correlation matrices that are uniform in their three entries, with weights |R|^(c - 1)."""
    points = torch.linspace(-1, 1, 162)[1:-1:2]
    r = torch.cartesian_prod(points, points, points)
    matrix = torch.eye(3).repeat(len(r), 1, 1)
    for entry, (i, j) in enumerate(((0, 1), (0, 2), (1, 2))):
        matrix[:, i, j] = matrix[:, j, i] = r[:, entry]
    matrix = matrix[torch.linalg.eigvalsh(matrix)[:, 0] > 1e-9]
    log_w = (concentration - 1) * torch.linalg.slogdet(matrix).logabsdet
    normal = torch.distributions.MultivariateNormal(torch.zeros(3), matrix + 0.2 * torch.eye(3))
    return torch.stack([(log_w + normal.log_prob(row)).logsumexp(0) for row in x]) - log_w.logsumexp(0)


def test_draws_of_correlation_matrices_follow_their_density():
    x = torch.cat([noise(5, 4, 3), torch.tensor([[2.0, 0.0, 2.0], [1.0, 2.0, -2.0]])])

    def model(x):
        with pyro.plate("data", len(x)):
            factor = pyro.sample("L", dist.LKJCholesky(3, 1.5))
            covariance = factor @ factor.mT + 0.2 * torch.eye(3)
            pyro.sample("x", dist.MultivariateNormal(torch.zeros(3), covariance), obs=x)

    def factor_guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("L", dist.LKJCholesky(3, torch.tensor(1.2)))

    expected = log_p_of_correlations(x, 1.5)
    for proposal in (GuideProposal(), PriorProposal(), None):
        pyro.set_rng_seed(1)
        found = log_marginal(model, factor_guide, x, num_particles=5000, proposal=proposal)
        assert ((found.value - expected).abs() < 4.5 * found.std_error + 4e-3).all()
        assert (found.std_error < 0.04).all()


def components(x):
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(torch.tensor([-0.5, 1.0])[k], 0.8), obs=x)


def nothing(x):
    pass


def test_a_model_whose_latents_are_all_summed_out_has_an_exact_evidence():
    one, other = (math.log(share) + log_normal(SHORT, loc, 0.8) for share, loc in ((0.3, -0.5), (0.7, 1.0)))
    expected = torch.logaddexp(one, other)
    for proposal in (None, GuideProposal(), PriorProposal()):
        found = log_marginal(components, nothing, SHORT, num_particles=10, proposal=proposal)
        torch.testing.assert_close(found.value, expected)
        whole = log_evidence(components, nothing, SHORT, num_particles=10, proposal=proposal)
        torch.testing.assert_close(whole.value, expected.sum())
    with pytest.raises(ValueError, match="summed out; use log_marginal"):
        ais(components, SHORT, guide=nothing, num_particles=10, betas=linear_schedule(5))


def test_a_discrete_global_latent_is_summed_out_of_the_evidence():
    def model(x):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(torch.tensor([-0.5, 1.0])[k], 0.8), obs=x)

    terms = [math.log(share) + log_normal(SHORT, loc, 0.8).sum() for share, loc in ((0.3, -0.5), (0.7, 1.0))]
    found = log_evidence(model, nothing, SHORT, num_particles=10)
    torch.testing.assert_close(found.value, torch.logaddexp(*terms))


def test_counts_of_unequal_totals_cannot_be_summed_out_but_drawn():
    total = torch.tensor([1.0, 2, 3, 4, 5, 2])

    def model(x, total):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Binomial(total, 0.4))
            pyro.sample("x", dist.Normal(k, 0.8), obs=x)

    for estimate in (log_marginal, log_evidence):
        with pytest.raises(ValueError, match="; let the guide draw"):
            estimate(model, lambda x, total: None, SHORT, total, num_particles=10)
    with pytest.raises(ValueError, match="; use log_marginal"):
        exact_log_marginal(model, SHORT, total)


def test_a_subsampling_plate_is_named_by_the_evidence():
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=3) as rows:
            pyro.sample("x", dist.Normal(mean, 0.8), obs=x[rows])

    with pytest.raises(ValueError, match=r"draws 3 of 6 rows.*; remove subsample_size"):
        log_evidence(model, lambda x: pyro.sample("mean", dist.Normal(0.0, 1.0)), SHORT, num_particles=10)


def test_training_without_a_parameter_in_the_objective_is_refused():
    def idle(x):
        pyro.param("unused", torch.tensor(0.1))
        guide(x)

    with pytest.raises(ValueError, match="depends on no parameter"):
        fit(standard, idle, SHORT, elbo=Trace_ELBO(), epochs=1)


def test_conditioned_and_masked_programs_keep_their_number():
    def joint(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with poutine.mask(mask=False):
                pyro.sample("ignored", dist.Normal(z, 1.0), obs=x)
            pyro.sample("x", dist.Normal(z, 0.8))

    expected = log_integral(lambda x, z: log_normal(z, 0, 1) + log_normal(x, z, 0.8), (line(),), SHORT)
    check(
        log_marginal(lambda x: poutine.condition(joint, data={"x": x})(x), guide, SHORT, num_particles=3000), expected
    )


def test_the_evidence_tells_of_shapes_in_one_line():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 1.0))
            pyro.sample("x", dist.Normal(z, 0.8), obs=x)

    def wide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    with pytest.raises(ValueError, match="Shape mismatch") as caught:
        log_evidence(model, wide, noise(2, 6, 3), num_particles=10)
    assert "\n" not in str(caught.value)


def test_draws_of_correlated_angles_are_refused_and_their_density_is_taken_for_data():
    one, two = torch.tensor(0.0), torch.tensor(2.0)

    def model(x):
        with pyro.plate("data", len(x)):
            angles = pyro.sample(
                "angles", dist.SineBivariateVonMises(one, one, two, two, correlation=torch.tensor(0.7))
            )
            pyro.sample("x", dist.Normal(angles.cos().sum(-1), 1.0), obs=x)

    with pytest.raises(ValueError, match=r"SineBivariateVonMises.*do not follow its density"):
        log_marginal(model, model, torch.zeros(3), num_particles=10)

    def observed(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            angles = dist.SineBivariateVonMises(z, z, two, two, correlation=torch.tensor(0.7))
            pyro.sample("x", angles, obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    x = torch.tensor([[0.3, -0.2], [2.0, 1.0]])
    z = torch.linspace(-8, 8, 2001, dtype=torch.float64)
    away = x.double() - z[:, None, None]
    grid = torch.linspace(-math.pi, math.pi, 201, dtype=torch.float64)[:-1]
    log_norm = sine_kernel(grid.unsqueeze(-1), grid).flatten().logsumexp(0) + 2 * math.log(2 * math.pi / 200)
    inner = sine_kernel(away[..., 0], away[..., 1]) - log_norm
    expected = (inner + log_normal(z.unsqueeze(-1), 0.0, 1.0)).logsumexp(0) + math.log(16 / 2000)
    found = log_marginal(observed, guide, x, num_particles=1000, proposal=GuideProposal())
    assert ((found.value - expected).abs() < 5 * found.std_error + 1e-4).all()


def sine_kernel(a, b):
    """Evaluate the log density of two angles with concentrations 2 and correlation 0.7, up to its norm."""
    return 2 * a.cos() + 2 * b.cos() + 0.7 * a.sin() * b.sin()


class WithoutSupport(dist.Normal):
    """Normal distribution that does not declare its support."""

    @property
    def support(self):
        raise NotImplementedError


@pytest.mark.parametrize("prior", [dist.Normal, WithoutSupport])
def test_a_narrow_guide_is_told_for_a_prior_without_a_support_too(prior):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior(torch.tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.HalfNormal(torch.tensor(1.0)))

    with pytest.warns(UserWarning, match="the guide's HalfNormal never draws values of latent 'z'"):
        log_marginal(model, guide, torch.zeros(3), num_particles=10, proposal=GuideProposal())


class WithoutDraws(dist.Normal):
    """Normal distribution that has a density only."""

    def rsample(self, sample_shape=None):
        raise NotImplementedError

    sample = rsample


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        (lambda: dist.ImproperUniform(dist.constraints.real, (), ()), "ImproperUniform .* up to a constant only"),
        (lambda: WithoutDraws(0.0, 1.0), "WithoutDraws cannot be drawn from; give it a distribution that can"),
    ],
    ids=["improper", "no draws"],
)
def test_a_prior_without_draws_is_named_and_the_guide_can_draw_alone(prior, words):
    x = torch.tensor([0.3, -1.0])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.5))

    def whole():
        pyro.sample("z", prior())

    calls = [
        lambda: log_marginal(model, guide, x, num_particles=10),
        lambda: log_marginal(model, guide, x, num_particles=10, proposal=PriorProposal()),
        lambda: ladder(model, guide, x, num_particles=10),
        lambda: exact_log_marginal(model, x),
        lambda: ais(model, x, num_particles=4, betas=linear_schedule(3)),
        lambda: log_evidence(whole, lambda: None, num_particles=10),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f"draws site 'z', whose distribution {words}") as raised:
            call()
        assert "\n" not in str(raised.value)
    found = log_marginal(model, guide, x, num_particles=4000, proposal=GuideProposal())
    expected = log_normal(x, 0.0, 2.0**0.5) if isinstance(prior(), WithoutDraws) else torch.zeros(2)
    assert ((found.value - expected).abs() < 5 * found.std_error).all()


def test_a_program_that_leaves_torch_is_told_and_the_guide_can_draw_alone():
    x = torch.tensor([0.3, -1.0])

    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(torch.as_tensor(mu.numpy()), 1.0), obs=x)

    def guide(x):
        pyro.sample("mu", dist.Normal(x.mean(), 1.0))

    with pytest.raises(ValueError, match=r"turns a tensor that has a gradient into numpy"):
        log_evidence(model, guide, x, num_particles=10)
    found = log_evidence(model, guide, x, num_particles=4000, proposal=GuideProposal())
    covariance = torch.eye(2) + 1
    expected = dist.MultivariateNormal(torch.zeros(2), covariance).log_prob(x)
    assert (found.value - expected).abs() < 5 * found.std_error
