"""Contract test of every prior, likelihood, encoder and network. A new one joins by one line of the catalogue."""

import copy

import pyro
import pytest
import torch
from catalogue import ENCODERS, LIKELIHOODS, PRIORS, D, Z, call, matching_encoder

from pyrovae import (
    MLP,
    VAE,
    Blueprint,
    ConditionalNormalPrior,
    ConvNet,
    GatedMLP,
    MixturePrior,
    NormalLikelihood,
    Prior,
    RecurrentDecoder,
    RecurrentNet,
    ResidualConvNet,
    ResidualMLP,
    Standardize,
    StandardNormalPrior,
    TransposedConvNet,
    log_weights,
)
from pyrovae.runs.registry import known_parts

PARTS = [
    pytest.param(make, id=f"{kind}: {name}")
    for kind, parts in (("prior", PRIORS), ("likelihood", LIKELIHOODS), ("encoder", ENCODERS))
    for name, make in parts.items()
]
DTYPES = [torch.float32, torch.float64]


def test_every_part_of_the_library_is_in_the_catalogue():
    for kind, signed in (("prior", PRIORS), ("likelihood", LIKELIHOODS), ("encoder", ENCODERS)):
        assert set(known_parts(kind)) == {type(make()).__name__ for make in signed.values()}
    assert not {"LBFGS", "SparseAdam", "Muon"} & set(known_parts("optimizer"))


@pytest.mark.parametrize("make", PARTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("leading", [(5,), (3, 5)])
@pytest.mark.thin(138)
def test_parts_have_the_contracted_shapes_and_dtype(make, dtype, leading):
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
@pytest.mark.thin(35)
def test_parts_move_to_a_device_completely(make):
    # Torch's "meta" device refuses operands that stayed behind, as CUDA does, and is everywhere.
    part = make().to("meta")
    with pyro.validation_enabled(False):
        p = call(part, (5,), device="meta")
        try:
            value = p.sample()
        except NotImplementedError:  # torch draws no gamma or binomial there
            value = torch.zeros(p.batch_shape + p.event_shape, device="meta")
        assert value.device.type == "meta"
        assert p.log_prob(value).device.type == "meta"


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
@pytest.mark.thin(15)
def test_parts_survive_copy_and_state_round_trip(make):
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
        # Equal parameters; the last bit may differ with where in memory a block begins.
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)
    assert type(part).__name__ in repr(part)


@pytest.mark.parametrize("make", [*LIKELIHOODS.values(), *ENCODERS.values()])
def test_parts_treat_leading_dimensions_separately(make):
    part = make()
    x = torch.randn(3, 5, Z if make in LIKELIHOODS.values() else D)
    value = part(x).sample()
    torch.testing.assert_close(part(x).log_prob(value)[1, 2], part(x[1, 2]).log_prob(value[1, 2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("prior", "likelihood"), [(p, q) for p in PRIORS if p != "conditional" for q in LIKELIHOODS])
@pytest.mark.thin(84)
def test_every_prior_and_likelihood_pair_generates_data_and_gives_weights(prior, likelihood):
    p_z = PRIORS[prior]()
    vae = VAE(p_z, LIKELIHOODS[likelihood](), matching_encoder(p_z))
    x = vae.model(size=4).detach()
    assert x.shape == (4, D)
    assert log_weights(vae.model, vae.guide, x, num_particles=3).shape == (3, 4)


def test_a_mixture_prior_integrates_to_one():
    prior = MixturePrior(1, num_components=4).double()
    grid = torch.linspace(-15, 15, 40_001, dtype=torch.float64)
    total = prior().log_prob(grid[:, None]).exp().sum() * (grid[1] - grid[0])
    assert total.item() == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StandardNormalPrior(0), "latent_dim must be at least 1"),
        (lambda: MixturePrior(2, num_components=0), "num_components must be at least 1"),
        (lambda: MLP(2, 3, activation="rleu"), "unknown activation 'rleu'"),
        (lambda: ConvNet(63, 4), "must be square with one channel"),
        (lambda: ConvNet(63, 4, shape=(8, 8)), "in_features must be 64 for an image of shape"),
        (lambda: TransposedConvNet(4, 63, shape=(8, 8)), "out_features must be a multiple of 64"),
        (lambda: RecurrentNet(64, 4, shape=(5, 13)), "in_features must be 65 for a sequence of shape"),
        (lambda: RecurrentDecoder(4, 63, shape=(32, 2)), "out_features must be a multiple of 64"),
        (lambda: RecurrentNet(64, 4, shape=(4, 4, 4)), r"a sequence has shape \(T, F\)"),
        (lambda: ConvNet(64, 4, shape=(64,)), r"an image has shape \(H, W\) or \(C, H, W\)"),
    ],
)
def test_parts_and_networks_reject_wrong_sizes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


NETWORKS = {
    MLP: {"hidden": [5]},
    GatedMLP: {"hidden": [5]},
    ResidualMLP: {"width": 5, "depth": 2},
    ConvNet: {"shape": (5, 6), "channels": (2, 3), "hidden": 4, "activation": "tanh"},
    ResidualConvNet: {"shape": (5, 6), "channels": (2, 3), "hidden": 4, "blocks": 2, "activation": "tanh"},
    RecurrentNet: {"shape": (10, 3), "hidden": 4},
}


def test_every_network_of_the_library_is_in_the_contract_test():
    assert set(known_parts("network")) == {network.__name__ for network in NETWORKS}  # without decoders


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_networks_keep_leading_dimensions_and_train_every_parameter(network, dtype):
    arguments = NETWORKS[network]
    for made, size_in, size_out in (
        (network(30, 7, **arguments), 30, 7),
        (network.mirror()(7, 60, **arguments), 7, 60),
    ):
        made = made.to(dtype)
        assert (made.in_features, made.out_features) == (size_in, size_out)
        x = torch.randn(3, 4, size_in, dtype=dtype)
        y = made(x)
        assert y.shape == (3, 4, size_out)
        assert y.dtype == dtype
        assert made(x[0, 0]).shape == (size_out,)
        torch.testing.assert_close(made(x[1, 2]), y[1, 2], rtol=1e-4, atol=1e-5)
        with torch.no_grad():  # residual branches start at zero, and gradients stop there
            for parameter in made.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        made(x).square().sum().backward()
        for name, parameter in made.named_parameters():
            assert parameter.grad is not None, name
            assert bool((parameter.grad != 0).any()), name


def test_residual_blocks_start_as_the_identity():
    network = ResidualMLP(3, 2, width=4, depth=3)
    plain = torch.nn.Sequential(network.first, network.last)
    x = torch.randn(5, 3)
    torch.testing.assert_close(network(x), plain(x), rtol=0, atol=0)


def test_a_recurrent_decoder_keeps_numbers_in_blocks_and_time_first():
    network = RecurrentDecoder(2, 2 * 12, shape=(4, 3), hidden=5)
    with torch.no_grad():
        network.last.weight.zero_()
        network.last.bias.copy_(torch.arange(6.0))
    loc, log_scale = network(torch.zeros(7, 2)).chunk(2, dim=-1)
    torch.testing.assert_close(loc, torch.arange(3.0).repeat(4).expand(7, 12))
    torch.testing.assert_close(log_scale, torch.arange(3.0, 6.0).repeat(4).expand(7, 12))


@pytest.mark.parametrize("net", [ConvNet, ResidualConvNet])
@pytest.mark.parametrize("shape", [(8, 8), (1, 28, 28), (3, 7, 5), (2, 1, 9)])
@pytest.mark.parametrize("per_pixel", [1, 2])
def test_convolutions_accept_images_of_any_size(net, shape, per_pixel):
    size = torch.Size(shape).numel()
    down = net(size, 4, shape=shape, channels=(3, 5), hidden=7)
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


@pytest.mark.parametrize("num_covariates", [0, 2])
@pytest.mark.parametrize(
    ("x", "unchanged"),
    [
        (torch.eye(4), True),
        (torch.linspace(0, 0.6, 12).view(3, 4), True),
        (torch.linspace(0, 0.1, 12).view(3, 4), False),
        (torch.linspace(0, 16, 12).view(3, 4), False),
        (torch.linspace(-1, 1, 12).view(3, 4), False),
        (torch.zeros(3, 4), False),
    ],
    ids=["bits", "grey", "small shares", "counts", "reals", "zeros"],
)
def test_encoders_take_bits_and_grey_values_as_they_are(x, unchanged, num_covariates):
    layer = Standardize.for_encoder(x, num_covariates)
    given = torch.cat([x, 7 * torch.ones(len(x), num_covariates)], -1)
    expected = given if unchanged else Standardize.from_data(x, num_covariates)(given)
    assert torch.equal(layer(given), expected)
    assert layer.loc.shape == Standardize.from_data(x, num_covariates).loc.shape
    encoder = Blueprint(4, 2, num_covariates=num_covariates, x=x).make_encoder()
    assert torch.equal(encoder.network[0](given), expected)


def test_encoders_of_likelihoods_with_units_standardise_each_column():
    x = torch.tensor([170.0, 0.5]) + torch.tensor([8.0, 1e-3]) * torch.randn(200, 2)
    layer = Blueprint(2, 1, likelihood=NormalLikelihood, x=x).make_encoder().network[0]
    torch.testing.assert_close(layer(x).mean(0), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(layer(x).std(0, correction=0), torch.ones(2), atol=1e-3, rtol=0)


def test_vae_moves_and_changes_dtype_completely():
    vae = VAE(PRIORS["mixture"](), LIKELIHOODS["normal, global"](), ENCODERS["normal"]()).double()
    x = torch.randn(3, D, dtype=torch.float64)
    pyro.clear_param_store()
    assert log_weights(vae.model, vae.guide, x).dtype == torch.float64
