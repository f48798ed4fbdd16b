"""The contract of every prior, likelihood, encoder and network: a new one joins by one line."""

import copy

import pyro
import pytest
import torch
from catalogue import ENCODERS, LIKELIHOODS, PRIORS, D, Z, call, matching_encoder
from torch import nn

from pyrovae import (
    MLP,
    VAE,
    BinomialLikelihood,
    ConditionalNormalPrior,
    ConvNet,
    MixturePrior,
    NormalLikelihood,
    Prior,
    Standardize,
    StandardNormalPrior,
    TransposedConvNet,
    log_weights,
)
from pyrovae.parts import known_parts

PARTS = [
    pytest.param(make, id=f"{kind}: {name}")
    for kind, parts in (("prior", PRIORS), ("likelihood", LIKELIHOODS), ("encoder", ENCODERS))
    for name, make in parts.items()
]
DTYPES = [torch.float32, torch.float64]


def test_every_part_of_the_library_signs():
    for kind, signed in (("prior", PRIORS), ("likelihood", LIKELIHOODS), ("encoder", ENCODERS)):
        assert set(known_parts(kind)) == {type(make()).__name__ for make in signed.values()}


@pytest.mark.parametrize("make", PARTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("leading", [(5,), (3, 5)])
def test_shapes_and_dtype(make, dtype, leading):
    part = make().to(dtype)
    p = call(part, leading, dtype)
    if isinstance(part, Prior):
        assert p.batch_shape == (leading[-1:] if isinstance(part, ConditionalNormalPrior) else ())
        p = p.expand(leading)
    assert p.batch_shape == leading
    assert len(p.event_shape) == 1
    value = p.sample()
    assert value.dtype == dtype
    assert p.log_prob(value).shape == leading
    assert p.log_prob(value).dtype == dtype
    assert bool(p.support.check(value).all())


@pytest.mark.parametrize("make", PARTS)
def test_gradients_reach_every_parameter(make):
    part = make()
    p = call(part, (5,))
    log_p = p.log_prob(p.sample()).sum()
    assert log_p.requires_grad == any(True for _ in part.parameters())
    if log_p.requires_grad:
        log_p.backward()
    for name, parameter in part.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad != 0).any()), name


@pytest.mark.parametrize("make", PARTS)
def test_state_round_trip_copy_and_repr(make):
    part, other = make(), make()
    other.load_state_dict(part.state_dict())
    twin = copy.deepcopy(part)
    for again in (other, twin):
        distributions = []
        for each in (part, again):
            pyro.set_rng_seed(1)
            distributions.append(call(each, (4,)))
        value = distributions[0].sample()
        one, two = (p.log_prob(value) for p in distributions)
        torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert type(part).__name__ in repr(part)


@pytest.mark.parametrize("make", [*LIKELIHOODS.values(), *ENCODERS.values()])
def test_leading_dimensions_do_not_mix(make):
    part = make()
    x = torch.randn(3, 5, Z if make in LIKELIHOODS.values() else D)
    value = part(x).sample()
    torch.testing.assert_close(part(x).log_prob(value)[1, 2], part(x[1, 2]).log_prob(value[1, 2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("prior", "likelihood"), [(p, q) for p in PRIORS if p != "conditional" for q in LIKELIHOODS])
def test_every_pair_generates_and_is_weighed(prior, likelihood):
    p_z = PRIORS[prior]()
    vae = VAE(p_z, LIKELIHOODS[likelihood](), matching_encoder(p_z))
    x = vae.model(size=4).detach()
    assert x.shape == (4, D)
    assert log_weights(vae.model, vae.guide, x, num_particles=3).shape == (3, 4)


DISCRETE = {"bernoulli": 1, "binomial": 4}


@pytest.mark.parametrize("name", DISCRETE)
def test_probabilities_sum_to_one(name):
    part = LIKELIHOODS[name]().double()
    values = torch.arange(DISCRETE[name] + 1, dtype=torch.float64)
    p = part(torch.randn(Z, dtype=torch.float64))
    per_entry = p.base_dist.log_prob(values[:, None].expand(-1, D)).exp().sum(0)
    torch.testing.assert_close(per_entry, torch.ones(D, dtype=torch.float64))


@pytest.mark.parametrize("name", sorted(set(LIKELIHOODS) - set(DISCRETE)))
def test_densities_integrate_to_one(name):
    part = LIKELIHOODS[name]().double()
    low, high = (0, 1) if "bernoulli" in name else (-15, 15)
    # Midpoints: the continuous Bernoulli is smooth inside its interval and a step at its ends.
    step = (high - low) / 40_000
    grid = low + step * (torch.arange(40_000, dtype=torch.float64) + 0.5)
    p = part(torch.randn(Z, dtype=torch.float64))
    total = p.base_dist.log_prob(grid[:, None].expand(-1, D)).exp().sum(0) * step
    torch.testing.assert_close(total, torch.ones(D, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_a_mixture_prior_integrates_to_one():
    prior = MixturePrior(1, num_components=4).double()
    grid = torch.linspace(-15, 15, 40_001, dtype=torch.float64)
    total = prior().log_prob(grid[:, None]).exp().sum() * (grid[1] - grid[0])
    assert total.item() == pytest.approx(1, abs=1e-8)


def test_binomial_is_out_of_its_total_count():
    p = BinomialLikelihood(MLP(Z, D), total_count=16)(torch.zeros(Z))
    assert bool(p.support.check(torch.full((D,), 16.0)))
    assert not bool(p.support.check(torch.full((D,), 17.0)))


def test_a_learned_scale_has_the_size_that_was_asked_for():
    assert NormalLikelihood(MLP(Z, D), scale="global").log_scale.shape == ()
    assert NormalLikelihood(MLP(Z, D), scale="dimension").log_scale.shape == (D,)
    assert NormalLikelihood(nn.Sequential(MLP(Z, D)), scale="dimension").log_scale.shape == (D,)
    assert not list(NormalLikelihood(nn.Identity(), scale=2).parameters())
    with pytest.raises(ValueError, match="cannot tell how many numbers Identity gives"):
        NormalLikelihood(nn.Identity(), scale="dimension")


@pytest.mark.parametrize("scale", [0.0, -1.0, "globl", float("nan"), float("inf"), None])
def test_a_bad_scale_is_refused(scale):
    with pytest.raises(ValueError, match="scale must be a positive number"):
        NormalLikelihood(MLP(Z, D), scale=scale)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StandardNormalPrior(0), "latent_dim must be at least 1"),
        (lambda: MixturePrior(2, num_components=0), "num_components must be at least 1"),
        (lambda: BinomialLikelihood(MLP(Z, D), total_count=0), "total_count must be at least 1"),
        (lambda: MLP(2, 3, activation="rleu"), "unknown activation 'rleu'"),
        (lambda: ConvNet(63, 4), "no square image"),
        (lambda: ConvNet(63, 4, shape=(8, 8)), "in_features is 63, but an image of shape"),
        (lambda: TransposedConvNet(4, 63, shape=(8, 8)), "not a multiple of the 64 values"),
        (lambda: ConvNet(64, 4, shape=(64,)), r"an image has shape \(H, W\) or \(C, H, W\)"),
    ],
)
def test_wrong_sizes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("shape", [(8, 8), (1, 28, 28), (3, 7, 5), (2, 1, 9)])
@pytest.mark.parametrize("per_pixel", [1, 2])
def test_convolutions_take_images_of_any_size(shape, per_pixel):
    size = torch.Size(shape).numel()
    down = ConvNet(size, 4, shape=shape, channels=(3, 5), hidden=7)
    up = down.mirror()(4, per_pixel * size, shape=shape, channels=(3, 5), hidden=7)
    for leading in ((), (5,), (2, 5)):
        code = down(torch.randn(*leading, size))
        assert code.shape == (*leading, 4)
        assert up(code).shape == (*leading, per_pixel * size)


def test_transposed_convolution_keeps_numbers_in_blocks():
    # chunk(2) must split locations from scales: a bias on one channel fills one block.
    up = TransposedConvNet(2, 2 * 64, shape=(8, 8), channels=(3,), hidden=4)
    with torch.no_grad():
        for parameter in up.parameters():
            parameter.zero_()
        up.layers[-1].bias.copy_(torch.tensor([5.0, 7.0]))
    loc, log_scale = up(torch.zeros(3, 2)).chunk(2, dim=-1)
    assert bool((loc == 5).all())
    assert bool((log_scale == 7).all())


def test_standardize_centres_and_scales():
    x = 3 + 2 * torch.randn(500, 4)
    y = Standardize.from_data(x)(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    assert float(y.var(0, correction=0).mean()) == pytest.approx(1, abs=1e-4)
    constant = Standardize.from_data(torch.ones(5, 2))(torch.ones(5, 2))
    torch.testing.assert_close(constant, torch.zeros(5, 2))


def test_a_vae_moves_and_changes_dtype_whole():
    vae = VAE(PRIORS["mixture"](), LIKELIHOODS["normal, global"](), ENCODERS["normal"]()).double()
    x = torch.randn(3, D, dtype=torch.float64)
    pyro.clear_param_store()
    assert log_weights(vae.model, vae.guide, x).dtype == torch.float64
