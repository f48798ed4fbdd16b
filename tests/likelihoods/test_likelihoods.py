"""Tests of likelihoods: normalisation, draws, support and extreme outputs. The contract test covers shapes."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import LIKELIHOODS, D, Z
from goodness import LEAST_P_VALUE, NUM_SAMPLES, p_value_of_counts, p_value_of_uniform
from pyro import poutine
from torch import nn

from pyrovae import (
    MLP,
    BetaBinomialLikelihood,
    BinomialLikelihood,
    CategoricalLikelihood,
    DiscretizedLogisticMixtureLikelihood,
    LaplaceLikelihood,
    Likelihood,
    Model,
    MultinomialLikelihood,
    NegativeBinomialLikelihood,
    NormalLikelihood,
    OrderedLogisticLikelihood,
    RoundedNormalLikelihood,
    RoundedStudentTLikelihood,
    StandardNormalPrior,
    StudentTLikelihood,
    TruncatedNormalLikelihood,
    ZeroInflatedNegativeBinomialLikelihood,
)
from pyrovae.densities import check_support
from pyrovae.densities.masks import fill_masked
from pyrovae.distributions import FloatCategorical, TruncatedNormal
from pyrovae.evidence.evaluation import base_measure
from pyrovae.nn import bounded_exp
from pyrovae.runs import build_vae, parse_training
from pyrovae.runs.registry import known_parts
from pyrovae.runs.resolve import fitting_likelihoods

# The space of one entry: the values from 0 on that carry the mass, or the interval; and values outside.
SPACES = {
    "bernoulli": (2, [0.5, -1, 2]),
    "continuous bernoulli": ((0, 1), [-0.01, 1.01]),
    "beta": ((0, 1), [0, 1, -0.5]),
    "beta, network": ((0, 1), [0, 1, 1.5]),
    "truncated normal": ((0, 1), [-0.01, 1.01]),
    "truncated normal, network": ((-1, 3), [-1.01, 3.01]),
    **dict.fromkeys(
        (name for name in LIKELIHOODS if name.startswith(("normal", "laplace", "student"))),
        ((-math.inf, math.inf), [math.nan]),
    ),
    "log-normal": ((0, math.inf), [0, -1]),
    "log-normal, network": ((0, math.inf), [0, -1]),
    "gamma": ((0, math.inf), [0, -1]),
    "gamma, network": ((0, math.inf), [0, -1]),
    "binomial": (5, [5, -1, 0.5]),
    "beta-binomial": (5, [5, -1, 0.5]),
    "beta-binomial, network": (5, [5, -1, 0.5]),
    "poisson": (400, [-1, 0.5]),
    "negative binomial": (400, [-1, 0.5]),
    "negative binomial, network": (400, [-1, 0.5]),
    "zero-inflated poisson": (400, [-1, 0.5]),
    "zero-inflated negative binomial": (400, [-1, 0.5]),
    "categorical": (5, [5, -1, 0.5]),
    "ordered logistic": (5, [5, -1, 0.5]),
    "ordered logistic, two levels": (2, [2, -1, 0.5]),
    "logistic mixture": (5, [5, -1, 0.5]),
}
# Values outside the support of those whose sums and draws are tested elsewhere: multinomial below, the others in
# test_mixed and test_rounded.
OUTSIDE = {
    "multinomial": [0.5, -1, 5],
    **{name: [-1, math.nan] for name in LIKELIHOODS if name.startswith("hurdle")},
    **{name: [-0.01, 1.01, math.nan] for name in LIKELIHOODS if name.startswith("zero-one")},
    **{name: [0.3, math.nan] for name in LIKELIHOODS if name.startswith("rounded")},
}
MEASURES = {"hurdle": "lebesgue with mass at 0", "zero-one": "lebesgue with mass at 0, 1"}
INDEPENDENT = sorted(SPACES)
CONTINUOUS = [name for name in INDEPENDENT if isinstance(SPACES[name][0], tuple)]
COUNTED = [name for name in INDEPENDENT if name not in CONTINUOUS]


@torch.no_grad()
def entries(name):
    """The distributions of one datum's D entries, in float64, at one z."""
    p = LIKELIHOODS[name]().double()(torch.randn(Z, dtype=torch.float64))
    assert isinstance(p, dist.Independent)
    return p.base_dist


def points(name):
    """Values of one entry with their weights in a sum or integral, with shape (S, 1): log p is asked for there."""
    space = SPACES[name][0]
    if isinstance(space, int):
        x = torch.arange(space, dtype=torch.float64)
        return x[:, None], torch.ones(space, 1, dtype=torch.float64)
    u = torch.linspace(-25, 25, 100_001, dtype=torch.float64)[:, None]
    low, high = space
    if math.isinf(low):
        x, slope = u.sinh(), u.cosh()
    elif math.isinf(high):
        x, slope = u.exp(), u.exp()
    else:
        x, slope = low + (high - low) * u.sigmoid(), (high - low) * u.sigmoid() * (-u).sigmoid()
    return x, slope * (u[1] - u[0])


def masses(name, p):
    """The points of an entry's space, and the mass at each, with shape (S, D)."""
    x, weight = points(name)
    return x, p.log_prob(x.expand(-1, D)).exp() * weight


def goodness_of_fit(name, p, draws):
    """P-values of a chi-squared test of draws, with shape (S, D), against the density of p, one for each entry."""
    x, mass = masses(name, p)
    below = mass.cumsum(0)
    found = []
    for d in range(D):
        if name in CONTINUOUS:  # through the distribution function, draws are uniform
            cell = torch.searchsorted(x[:, 0].contiguous(), draws[:, d].contiguous()).clamp(1, len(x) - 1)
            x0, x1, low, high = x[cell - 1, 0], x[cell, 0], below[cell - 1, d], below[cell, d]
            u = low + (high - low) * ((draws[:, d] - x0) / (x1 - x0))
            found.append(p_value_of_uniform(u.clamp(0, 1)))
        else:
            counts = torch.bincount(draws[:, d].long(), minlength=len(x)).double()
            assert len(counts) == len(x)
            found.append(p_value_of_counts(mass[:, d], counts))
    return torch.tensor(found)


def test_every_likelihood_of_the_library_is_in_these_tests():
    assert set(SPACES) == set(LIKELIHOODS) - set(OUTSIDE)


@pytest.mark.parametrize("name", INDEPENDENT)
def test_likelihoods_sum_to_one_and_have_their_mean(name):
    p = entries(name)
    x, mass = masses(name, p)
    torch.testing.assert_close(mass.sum(0), torch.ones(D, dtype=torch.float64), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close((mass * x).sum(0), p.mean.expand(D), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", INDEPENDENT)
def test_draws_match_the_density_and_the_mean(name):
    p = entries(name)
    draws = p.sample((NUM_SAMPLES,))
    assert draws.shape == (NUM_SAMPLES, D)
    assert goodness_of_fit(name, p, draws).min() > LEAST_P_VALUE
    error = draws.std(0) / NUM_SAMPLES**0.5
    assert bool(((draws.mean(0) - p.mean).abs() < 5.5 * error).all())  # 4e-8 for each of 160


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("normal, global", lambda p: dist.Normal(p.loc, 0.92 * p.scale)),
        ("poisson", lambda p: dist.Poisson(1.15 * p.rate)),
        ("truncated normal", lambda p: TruncatedNormal(p.loc + 0.5, p.scale)),
        ("categorical", lambda p: FloatCategorical(logits=1.5 * p.logits)),
    ],
)
def test_goodness_of_fit_test_detects_a_wrong_density(name, wrong):
    p = entries(name)
    assert goodness_of_fit(name, wrong(p), p.sample((NUM_SAMPLES,))).min() < LEAST_P_VALUE


@torch.no_grad()
def test_multinomial_sums_to_one_and_draws_match():
    p = LIKELIHOODS["multinomial"]().double()(torch.randn(Z, dtype=torch.float64))
    x = torch.tensor([v for v in itertools.product(range(5), repeat=D) if sum(v) == 4], dtype=torch.float64)
    mass = p.log_prob(x).exp()
    torch.testing.assert_close(mass.sum(), torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(mass @ x, p.mean)
    draws = p.sample((NUM_SAMPLES,))
    counts = (draws[:, None] == x).all(-1).sum(0).double()
    assert p_value_of_counts(mass, counts) > LEAST_P_VALUE


@pytest.mark.parametrize("name", sorted(LIKELIHOODS))
def test_values_outside_the_support_are_rejected(name):
    model = Model(StandardNormalPrior(Z), LIKELIHOODS[name]())
    x = model(size=3).detach()
    check_support(model, x)
    outside = SPACES[name][1] if name in SPACES else OUTSIDE[name]
    for value in outside:
        bad = x.clone()
        bad[1, 2] = value
        with pytest.raises(ValueError, match=r"(?s)site 'x': 1 of .* outside the support of .* datum 1"):
            check_support(model, bad)
        with pyro.validation_enabled(), pytest.raises(ValueError, match="within the support"):
            model.likelihood(torch.zeros(3, Z)).log_prob(bad)


def test_a_multinomial_accepts_only_its_total_count_and_no_mask():
    likelihood = MultinomialLikelihood(MLP(Z, D), total_count=4)
    p = likelihood(torch.zeros(Z))
    rows = torch.tensor([[4.0, 0, 0, 0, 0, 0], [3, 0, 0, 0, 0, 0], [5, 0, 0, 0, 0, 0], [1.5, 2.5, 0, 0, 0, 0]])
    assert p.support.check(rows).tolist() == [True, False, False, False]
    mask = torch.tensor([True] * 5 + [False]).expand(4, D)
    with pytest.raises(ValueError, match="independent over the entries of x, got WholeMultinomial"):
        Model(StandardNormalPrior(Z), likelihood)(rows, mask=mask)


@pytest.mark.parametrize("name", sorted(set(LIKELIHOODS) - {"multinomial"}))
@pytest.mark.parametrize("particles", [(), (3,)])
def test_likelihoods_leave_out_missing_entries(name, particles):
    model = Model(StandardNormalPrior(Z), LIKELIHOODS[name]())
    x = model(size=4).detach()
    mask = torch.rand(4, D) < 0.6
    seen = torch.where(mask, x, math.nan)
    z = torch.randn(*particles, 4, Z)
    conditioned = poutine.condition(model, data={"z": z})
    with pyro.plate("particles", 3, dim=-2):
        trace = poutine.trace(conditioned).get_trace(seen, mask=mask)
    log_p = trace.nodes["x"]["fn"].log_prob(trace.nodes["x"]["value"])
    exact = (model.likelihood(z).base_dist.log_prob(x) * mask).sum(-1)
    torch.testing.assert_close(log_p, exact.expand_as(log_p))


@pytest.mark.parametrize("name", sorted(set(LIKELIHOODS) - {"multinomial"}))
def test_gradients_survive_missing_entries_of_a_program_by_hand(name):
    part = LIKELIHOODS[name]()
    x = part(torch.zeros(3, Z)).sample()
    mask = torch.ones(3, D, dtype=torch.bool)
    mask[0, 0] = False
    p = part(torch.zeros(3, Z)).base_dist.mask(mask).to_event(1)
    p.log_prob(fill_masked(p, torch.where(mask, x, math.nan), mask)).sum().backward()
    for parameter in part.parameters():
        assert bool(parameter.grad.isfinite().all())


class Given(nn.Module):
    """A network whose numbers are parameters."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = nn.Parameter(outputs)

    def forward(self, z):
        return self.outputs.expand(*z.shape[:-1], -1)


EXTREMES = [torch.full((60,), 50.0), torch.full((60,), -50.0)]
EXTREMES += [50.0 * (2 * torch.randint(0, 2, (60,), generator=torch.Generator().manual_seed(s)) - 1) for s in range(8)]


@pytest.mark.parametrize("name", sorted(LIKELIHOODS))
def test_likelihoods_are_finite_at_extreme_outputs_in_float32(name):
    x = LIKELIHOODS[name]()(torch.zeros(6, Z)).sample()
    space = SPACES[name][0] if name in SPACES else 0
    if isinstance(space, tuple):
        ends = [min(max(end, -100), 100) for end in space]
        tiny = 1e-6 if name.startswith(("beta", "log-normal", "gamma")) else 0  # the end itself lies outside
        x[0], x[1] = ends[0] + tiny, ends[1] - tiny
    elif space:
        x[0], x[1] = 0, space - 1
    for outputs in EXTREMES:
        part = LIKELIHOODS[name]()
        size = part.network(torch.zeros(1, Z)).shape[-1]
        part.network = Given(outputs[:size])
        log_p = part(torch.zeros(6, Z)).log_prob(x)
        log_p.sum().backward()
        assert bool(log_p.isfinite().all())
        for parameter in part.parameters():
            assert bool(parameter.grad.isfinite().all())
        assert bool(part(torch.zeros(6, Z)).mean.isfinite().all()) or "log-normal" in name


# Positive numbers beside the network

POSITIVES = {
    "scale": (lambda network, choice: NormalLikelihood(network, scale=choice), 1, 1e-6, 1e6),
    "df": (lambda network, choice: StudentTLikelihood(network, scale=2.0, df=choice), 10, 1.1, 1000),
    "concentration": (lambda network, choice: BetaBinomialLikelihood(network, 4, choice), 10, 1e-3, 1e3),
    "total_count": (lambda network, choice: ZeroInflatedNegativeBinomialLikelihood(network, choice), 1, 1e-3, 1e4),
}


@pytest.mark.parametrize("name", POSITIVES)
def test_positive_has_the_requested_shape_and_start(name):
    make, start, low, high = POSITIVES[name]
    for choice, shape in (("global", ()), ("dimension", (D,)), ("network", None), (0.7, None)):
        blocks = make(nn.Identity(), 1.0).num_outputs(1, **{name: choice})
        network = MLP(Z, D * blocks)
        part = make(nn.Sequential(network), choice).double()
        parameters = {key: value for key, value in part.named_parameters() if not key.startswith("network")}
        assert {key: value.shape for key, value in parameters.items()} == (
            {f"{name}.raw": shape} if shape is not None else {}
        )
        with torch.no_grad():
            network.layers[-1].weight.zero_()
            network.layers[-1].bias.zero_()
        value = torch.as_tensor(part.get_submodule(name)(iter([torch.zeros((), dtype=torch.float64)])))
        assert value.flatten().tolist() == pytest.approx([0.7 if choice == 0.7 else start] * value.numel(), rel=1e-7)
        p = part(torch.zeros(4, Z, dtype=torch.float64))
        assert p.event_shape == (D,)
        assert p.log_prob(p.sample()).dtype == torch.float64
    positive = make(MLP(Z, 2 * D), "global").get_submodule(name)
    for raw, end in ((-1e4, low), (1e4, high)):
        with torch.no_grad():
            positive.raw.fill_(raw)
        assert positive(iter([])).item() == pytest.approx(end, rel=1e-5)
    assert repr(positive) == f"Positive('global', low={low:g}, high={high:g})"


@pytest.mark.parametrize("name", POSITIVES)
@pytest.mark.parametrize("choice", [0.0, -1.0, "globl", float("nan"), float("inf"), None])
def test_positive_rejects_invalid_choices(name, choice):
    with pytest.raises(ValueError, match=f"{name} must be a positive number"):
        POSITIVES[name][0](MLP(Z, D), choice)


def test_a_scale_stays_between_its_bounds():
    raw = torch.linspace(-50, 50, 1001, dtype=torch.float64, requires_grad=True)
    scale = bounded_exp(raw, start=1.0, low=0.01, high=2.0)
    assert 0.01 <= scale.min() < scale.max() <= 2
    assert bool((scale.diff() >= 0).all())
    assert scale[500].item() == pytest.approx(1)
    for low in (1e-3, 1e-8):  # a bound far from the values changes nothing
        far = bounded_exp(raw, start=1.0, low=low, high=1e6)
        assert torch.equal(far[460:590], raw[460:590].exp())
    slope = torch.autograd.grad(bounded_exp(raw, start=1.0, low=1e-3, high=1e3).log().sum(), raw)[0]
    assert slope.diff().abs().max() < 0.05  # smooth at the edges too
    assert bounded_exp(torch.zeros(()), start=1.0, low=0.01, high=0.04).item() == pytest.approx(0.02)
    part = LIKELIHOODS["normal, bounded"]()
    part.network = Given(torch.cat([torch.zeros(D), torch.full((D,), -50.0)]))
    torch.testing.assert_close(part(torch.zeros(2, Z)).stddev, torch.full((2, D), 0.01))


@pytest.mark.parametrize("bounds", [(1.0, 1.0), (2.0, 1.0), (0.0, 1.0), (1.0, math.inf), (math.nan, 1.0)])
def test_positive_rejects_invalid_bounds(bounds):
    with pytest.raises(ValueError, match="scale_bounds must be positive numbers low < high"):
        LaplaceLikelihood(MLP(Z, D), scale_bounds=bounds)


def test_scale_per_dimension_needs_a_network_of_known_size():
    assert not list(NormalLikelihood(nn.Identity(), scale=2).parameters())
    with pytest.raises(ValueError, match="number of outputs of Identity is unknown"):
        NormalLikelihood(nn.Identity(), scale="dimension")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BinomialLikelihood(MLP(Z, D), 0), "total_count must be at least 1"),
        (lambda: BetaBinomialLikelihood(MLP(Z, D), 0), "total_count must be at least 1"),
        (lambda: MultinomialLikelihood(MLP(Z, D), 0), "total_count must be at least 1"),
        (lambda: CategoricalLikelihood(MLP(Z, D), 1), "num_classes must be at least 2"),
        (lambda: RoundedNormalLikelihood(MLP(Z, D), 0.0), "resolution must be a positive number, got 0"),
        (lambda: RoundedStudentTLikelihood(MLP(Z, D), math.nan), "resolution must be a positive number, got nan"),
        (lambda: OrderedLogisticLikelihood(MLP(Z, D), 1), "num_levels must be at least 2"),
        (lambda: DiscretizedLogisticMixtureLikelihood(MLP(Z, D), 1), "num_bins must be at least 2"),
        (lambda: DiscretizedLogisticMixtureLikelihood(MLP(Z, D), 2, 0), "num_components at least 1"),
        (lambda: TruncatedNormalLikelihood(MLP(Z, D), 1, 1), "low and high must be finite numbers"),
        (lambda: TruncatedNormalLikelihood(MLP(Z, D), 0, math.inf), "low and high must be finite numbers"),
        (lambda: Likelihood(MLP(Z, D))(torch.zeros(Z)), "Likelihood needs a method forward"),
    ],
)
def test_likelihoods_reject_invalid_arguments(make, message):
    with pytest.raises((ValueError, NotImplementedError), match=message):
        make()


# What the network's blocks mean


def given(part, *blocks):
    part.network = Given(torch.tensor(blocks).repeat_interleave(D))
    return part(torch.zeros(1, Z)).base_dist


def test_likelihoods_read_blocks_in_the_documented_order():
    p = given(LIKELIHOODS["student, network"](), 3.0, 0.5, -1.0)
    assert bool((p.loc == 3).all())
    assert p.scale[0, 0].item() == pytest.approx(math.exp(0.5), rel=1e-2)
    assert 1.1 < p.df[0, 0].item() < 10
    p = given(LIKELIHOODS["zero-inflated poisson"](), 0.3, -2.0)
    torch.testing.assert_close(p.mean, (1 - torch.sigmoid(torch.tensor(-2.0))) * torch.tensor(0.3).exp().expand(1, D))
    p = given(LIKELIHOODS["negative binomial, network"](), 0.3, 1.0)
    torch.testing.assert_close(p.mean, torch.tensor(0.3).exp().expand(1, D))
    torch.testing.assert_close(p.variance, p.mean + p.mean**2 / p.total_count)
    p = given(LIKELIHOODS["beta, network"](), 0.3, 1.0)
    torch.testing.assert_close(p.mean, torch.tensor(0.3).sigmoid().expand(1, D))
    p = given(LIKELIHOODS["categorical"](), 0.0, 50.0, 0.0, 0.0, 0.0)
    torch.testing.assert_close(p.mean, torch.ones(1, D))
    p = given(LIKELIHOODS["logistic mixture"](), 0.0, 50.0, 0.0, 0.0, 0.5, 0.0, 0.0, -5.0, 0.0)
    torch.testing.assert_close(p.mean, torch.full((1, D), 3.0), atol=1e-4, rtol=0)


def test_likelihoods_state_whether_they_are_probabilities_or_densities():
    for name, make in LIKELIHOODS.items():
        model = Model(StandardNormalPrior(Z), make())
        measure = MEASURES.get(name.split()[0], "lebesgue" if name in CONTINUOUS else "counting")
        assert base_measure(model, model(size=2).detach()) == measure


def test_the_command_line_builds_every_likelihood():
    x = torch.tensor([[0.0, 3.0, 1.0], [2.0, 1.0, 1.0]])
    for name, part in known_parts("likelihood").items():
        arguments = [f"--likelihood.{key}={value}" for key, value in part.arguments_for(x).items()]
        vae = build_vae(parse_training([f"--likelihood={name}", *arguments, "--latent_dim=2"]), 3)
        assert isinstance(vae.model.likelihood, part)
        assert vae.model(size=4).shape == (4, 3)
    flags = ["--likelihood=StudentTLikelihood", "--likelihood.df=network", "--likelihood.scale_bounds=[0.1, 3]"]
    likelihood = build_vae(parse_training([*flags, "--likelihood.scale=network"]), 3).model.likelihood
    assert likelihood(torch.zeros(4, 10)).event_shape == (3,)
    assert likelihood.scale.high == 3


def test_arguments_for_suggests_values_from_the_data():
    x = torch.tensor([[0.0, 3.0, 1.0], [2.0, 1.0, 0.0]])
    assert MultinomialLikelihood.arguments_for(x) == {"total_count": 4}
    assert BinomialLikelihood.arguments_for(x) == BetaBinomialLikelihood.arguments_for(x) == {"total_count": 3}
    assert CategoricalLikelihood.arguments_for(x) == {"num_classes": 4}
    assert OrderedLogisticLikelihood.arguments_for(x) == {"num_levels": 4}
    assert DiscretizedLogisticMixtureLikelihood.arguments_for(x) == {"num_bins": 4}
    for part in known_parts("likelihood").values():
        part(MLP(Z, D), **part.arguments_for(torch.full((1, 2), -1e30)))


def test_likelihoods_are_suggested_for_the_data_in_their_support():
    def suggested(*rows):
        return {flags.split()[0].removesuffix("Likelihood") for flags in fitting_likelihoods(torch.tensor(rows))}

    real = {"Normal", "Laplace", "StudentT", "RoundedNormal", "RoundedStudentT"}
    hurdles = {"HurdleLogNormal", "HurdleGamma"}
    counts = hurdles | {"Poisson", "NegativeBinomial", "ZeroInflatedPoisson", "ZeroInflatedNegativeBinomial"}
    bins = {"Binomial", "BetaBinomial", "Categorical", "OrderedLogistic", "DiscretizedLogisticMixture"}
    assert suggested([-1.0, 2.5]) == real
    rounded = {"RoundedNormal", "RoundedStudentT"}
    assert suggested([1e30, 2.5]) == real - rounded | hurdles | {"LogNormal", "Gamma"}
    closed = {"ContinuousBernoulli", "TruncatedNormal", "ZeroOneInflatedBeta"}
    assert suggested([0.2, 0.5]) == real | hurdles | closed | {"LogNormal", "Gamma", "Beta"}
    assert suggested([0.0, 0.5]) == real | hurdles | closed
    assert suggested([0.0, 3.0], [1.0, 1.0]) == real | counts | bins
    assert suggested([0.0, 3.0], [2.0, 1.0]) == real | counts | bins | {"Multinomial"}
    assert suggested([0.0, 3e6], [2.0, 1.0]) == real | counts | bins - {"Categorical", "OrderedLogistic"}


def test_a_fixed_number_keeps_its_digits_in_float64():
    p = NegativeBinomialLikelihood(MLP(Z, D), total_count=0.1).double()(torch.zeros(Z, dtype=torch.float64))
    assert p.base_dist.total_count[0].item() == 0.1
    assert NormalLikelihood(MLP(Z, D), 0.1).double()(torch.zeros(Z, dtype=torch.float64)).stddev[0].item() == 0.1
