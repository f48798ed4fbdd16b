"""The decoder's last bias from data: p(x|z) starts at their means."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from catalogue import D, Z
from torch import nn

from pyrovae import (
    MLP,
    Blueprint,
    ConvNet,
    GatedMLP,
    Likelihood,
    Network,
    NormalLikelihood,
    RecurrentNet,
    ResidualMLP,
)
from pyrovae.likelihoods import Moments
from pyrovae.nn import Offset
from pyrovae.runs.registry import known_parts

N = 400
NETWORKS = {
    "mlp": partial(MLP, hidden=[5]),
    "linear": partial(MLP, hidden=[]),
    "gated": partial(GatedMLP, hidden=[5]),
    "residual": partial(ResidualMLP, width=5, depth=1),
    "convolutional": partial(ConvNet, shape=(2, 3), channels=(2,), hidden=4),
    "recurrent": partial(RecurrentNet, shape=(3, 2), hidden=4),
}
# Where the means of the data are not those of p(x|z), but its locations: of log x; before the cut; before the end bins
# are closed.
LOCATIONS = {
    "LogNormalLikelihood": (lambda p: p.base_dist.loc, torch.log),
    "HurdleLogNormalLikelihood": (lambda p: p.base_dist.base_dist.loc, lambda x: x.log().where(x > 0, torch.nan)),
    "TruncatedNormalLikelihood": (lambda p: p.base_dist.loc, lambda x: x),
    "DiscretizedLogisticMixtureLikelihood": (lambda p: p.base_dist.component_distribution.loc[..., 0], lambda x: x),
}


def some_data(name):
    """Data in the support of this likelihood, each dimension with a mean of its own."""
    u = torch.rand(N, D)
    share = torch.linspace(0.2, 0.7, D)
    match name.removesuffix("Likelihood"):
        case "Bernoulli":
            return torch.bernoulli(share.expand(N, D))
        case "ContinuousBernoulli" | "Beta" | "TruncatedNormal":
            return share + 0.2 * u - 0.1
        case "Normal" | "Laplace" | "StudentT":
            return 10 * share + u
        case "LogNormal" | "Gamma":
            return (share + u).exp()
        case "HurdleLogNormal" | "HurdleGamma":
            return torch.where(torch.rand(N, D) < share, 0.0, (share + u).exp())
        case "ZeroOneInflatedBeta":
            inner = torch.where(torch.rand(N, D) < 0.1, 0.0, share + 0.2 * u - 0.1)
            return torch.where(torch.rand(N, D) < 0.9, inner, 1.0)
        case "Multinomial":
            return torch.distributions.Multinomial(9, share).sample((N,))
    return (9 * share + 2 * u - 1).round().clamp(0, 9)


def started(name, network, x, **arguments):
    """p(x|z) of a new likelihood, its bias from data, at some z with the weights of the network's last layer zeroed."""
    made = known_parts("likelihood")[name]
    arguments = {**made.arguments_for(x), **arguments}
    blueprint = Blueprint(D, Z, likelihood=partial(made, **arguments), network=network, x=x, output_bias="data")
    likelihood = blueprint.make_likelihood()
    layers = [layer for layer in likelihood.network.modules() if hasattr(layer, "weight")]
    with torch.no_grad():
        layers[-1].weight.zero_()
        if isinstance(list(likelihood.network.modules())[-1], Offset) and layers[-1].bias is not None:
            layers[-1].bias.zero_()
        p = likelihood(torch.randn(5, Z))
    assert bool(likelihood(torch.zeros(Z)).support.check(x).all())
    return p


@pytest.mark.parametrize("network", ["mlp", "convolutional"])
@pytest.mark.parametrize("name", known_parts("likelihood"))
def test_output_bias_starts_likelihoods_at_the_means_of_the_data(name, network):
    x = some_data(name)
    p = started(name, NETWORKS[network], x)
    place, scale = LOCATIONS.get(name, (lambda p: p.mean, lambda x: x))
    # A class that is never seen starts at a share of 0.001, and takes it from the others.
    tolerance = 0.03 if name == "CategoricalLikelihood" else 1e-4
    torch.testing.assert_close(place(p), scale(x).nanmean(0).expand(5, D), rtol=1e-4, atol=tolerance)
    assert scale(x).nanmean(0).std() > 0.1  # no one number would do


def test_output_bias_starts_at_the_class_shares_of_the_data():
    x = some_data("Categorical")
    shares = torch.stack([(x == c).float().mean(0) for c in range(int(x.max()) + 1)], -1)
    p = started("CategoricalLikelihood", NETWORKS["mlp"], x).base_dist
    torch.testing.assert_close(p.probs, shares.expand(5, -1, -1), rtol=0, atol=5e-3)


def test_output_bias_starts_a_narrow_truncated_normal_near_the_means():
    x = some_data("TruncatedNormal")
    p = started("TruncatedNormalLikelihood", NETWORKS["mlp"], x, scale=0.05)
    torch.testing.assert_close(p.mean, x.mean(0).expand(5, D), rtol=0, atol=1e-3)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("scale", ["global", "network"])
def test_output_bias_applies_to_every_network(network, scale):
    x = some_data("Normal")
    p = started("NormalLikelihood", NETWORKS[network], x, scale=scale)
    torch.testing.assert_close(p.mean, x.mean(0).expand(5, D))
    if scale == "network":
        moments = Moments.of(x)
        torch.testing.assert_close(p.stddev, torch.hypot(moments.spread, moments.resolution).expand(5, D))


def test_output_bias_is_learned_and_loaded():
    x = some_data("Normal")
    blueprint = Blueprint(D, Z, likelihood=NormalLikelihood, network=NETWORKS["convolutional"], output_bias="data")
    vae, loaded = replace(blueprint, x=x).vae(), blueprint.vae()
    loaded.load_state_dict(vae.state_dict())
    z = torch.randn(5, Z)
    torch.testing.assert_close(loaded.model.likelihood(z).mean, vae.model.likelihood(z).mean)
    vae.model.likelihood(z).mean.sum().backward()
    torch.testing.assert_close(vae.model.likelihood.network[-1].bias.grad, 5 * Moments.of(x).spread)


class Biasless(Network):
    def __init__(self, in_features, out_features):
        super().__init__(in_features, out_features)
        self.layer = nn.Linear(in_features, out_features, bias=False)

    def forward(self, z):
        return self.layer(z)


def test_output_bias_is_added_to_a_layer_without_bias():
    x = some_data("Normal")
    p = started("NormalLikelihood", Biasless, x)
    torch.testing.assert_close(p.mean, x.mean(0).expand(5, D))


def test_output_bias_needs_a_likelihood_with_intercept():
    class Plain(Likelihood):
        def forward(self, z, covariates=None):
            return torch.distributions.Normal(self.outputs(z, covariates), 1.0)

    with pytest.raises(ValueError, match=r"needs a method intercept\(x\), but Plain has none"):
        Blueprint(D, Z, likelihood=Plain, output_bias="data").make_likelihood()


@pytest.mark.parametrize("step", [0.0, 1e-3, -1e-5])
def test_one_mistyped_entry_does_not_change_the_floor_of_scales(step):
    generator = torch.Generator().manual_seed(0)
    grid = 100 + 0.5 * torch.randint(14, (600,), generator=generator, dtype=torch.float64)
    grid[5] += step
    grid[7] = torch.nan
    x = torch.stack([grid, torch.randn(600, generator=generator).double()], 1)
    found = Moments.of(x).resolution
    assert found[0] == 0.5
    assert found[1] == x[:, 1].sort().values.diff().min()
    pairs = torch.cat([torch.arange(20.0).repeat(2), torch.tensor([7.0 + step])]).double()  # each value twice
    assert Moments.of(pairs[:, None]).resolution == 1
