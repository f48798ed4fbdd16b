"""Walks through latent space against closed forms of linear models."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from latent_programs import linear_programs

from pyrovae.diagnostics import (
    Codes,
    KLByDimension,
    OutsideSupportError,
    by_kl,
    encode_codes,
    interpolate,
    kl_by_dimension,
    label_grids,
    latent_posteriors,
    redraw,
    traverse,
)

ENCODER = torch.tensor([[0.1, 0.0, 0.0], [0.0, 0.9, 0.0]])
DECODER = torch.tensor([[1.0, 2.0], [0.0, -1.0], [3.0, 0.0]])


def two_latents(prior=None):
    model, guide = linear_programs(ENCODER, torch.tensor([0.9, 0.2]), decoder=DECODER, prior=prior)
    x = torch.randn(40, 3)
    return model, guide, x, encode_codes(model, guide, x, num_particles=50)


def test_a_traversal_goes_through_the_priors_quantiles_in_the_order_of_kl():
    prior = dist.Gumbel(torch.tensor([1.0, 5.0]), torch.tensor([2.0, 0.5])).to_event(1)  # skewed, median not 0
    model, guide, x, codes = two_latents(prior)
    kl = kl_by_dimension(model, guide, x)
    found = traverse(model, x[:1], codes=codes, kl=kl, base=3)
    order = kl.mean.sort(descending=True).indices.tolist()
    assert by_kl(codes, kl) == list(found.dims) == order
    torch.testing.assert_close(found.kl, kl.mean[order])
    assert found.levels.tolist() == [0.025, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.975]
    place, scale = (part[order, None] for part in (torch.tensor([1.0, 5.0]), torch.tensor([2.0, 0.5])))
    exact = place - scale * (-found.levels.log()).log()  # quantiles of the Gumbel distribution
    torch.testing.assert_close(found.places, exact.double(), rtol=1e-5, atol=1e-5)
    assert (found.places.diff(dim=1) > 0).all()
    for row, j in enumerate(order):
        z = codes.mean[3].repeat(9, 1)
        z[:, j] = exact[row].double()
        torch.testing.assert_close(found.means[row], z @ DECODER.T.double(), rtol=1e-4, atol=1e-4)


def test_traversals_of_priors_without_an_inverse_cdf_are_symmetric_about_the_median():
    halves = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.tensor([4.0, 6.0]), 0.1))
    model, guide, x, codes = two_latents(halves.expand([2]).to_event(1))
    found = traverse(model, x[:1], codes=codes, kl=kl_by_dimension(model, guide, x), levels=(0.25, 0.75), num_dims=1)
    torch.testing.assert_close(found.places, torch.tensor([[4.0, 6.0]]).double(), rtol=0, atol=0.03)
    with pytest.raises(ValueError, match="ascending and symmetric about"):
        traverse(model, x[:1], codes=codes, kl=kl_by_dimension(model, guide, x), levels=(0.1, 0.5, 0.7))


def test_a_traversal_of_a_simplex_is_refused():
    prior = dist.Dirichlet(torch.ones(2))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Dirichlet(x.abs()[:, :2] + 1))

    model, _ = linear_programs(ENCODER, 1.0, decoder=DECODER, prior=prior)
    x = torch.randn(20, 3)
    codes = encode_codes(model, guide, x)
    some = Codes(*codes)._replace(names=("z[0]", "z[1]"))
    kl = KLByDimension(("z[0]", "z[1]"), *[torch.ones(2)] * 6, ("unknown",) * 2, ("unknown",) * 2, ())
    with pytest.raises(OutsideSupportError, match=r"outside the support of site 'z', Simplex"):
        traverse(model, x[:1], codes=some, kl=kl)
    found = interpolate(model, x[:1], codes=codes, ends=codes.mean[:2])  # a simplex is convex
    assert found.kinds == ("straight",)
    with pytest.raises(ValueError, match="use those of one model"):
        by_kl(codes, kl._replace(labels=("a", "b")))


def test_dimensions_of_unknown_divergence_come_last_by_activity():
    _, _, _, codes = two_latents()
    codes = codes._replace(
        names=("a", "b", "c", "d"), activity=torch.tensor([0.1, 0.9, 0.5, 0.7]), mean=torch.zeros(40, 4)
    )
    values = torch.tensor([math.nan, math.nan, 2.0, 3.0])
    kl = KLByDimension(("a", "b", "c", "d"), *[values] * 6, ("unknown",) * 4, ("unknown",) * 4, ())
    assert by_kl(codes, kl) == [3, 2, 1, 0]
    assert by_kl(codes, kl._replace(mean=values * math.nan)) == [1, 3, 2, 0]


def test_an_arc_turns_at_a_constant_rate_about_the_mean_of_an_isotropic_prior():
    centre = torch.tensor([5.0, -1.0])
    model, _, x, codes = two_latents(dist.Normal(centre, 2.0).to_event(1))
    ends = centre + torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    found = interpolate(model, x[:1], codes=codes, ends=ends, num_steps=5)
    assert found.kinds == ("straight", "spherical")
    share = torch.linspace(0, 1, 5).double()
    torch.testing.assert_close(found.z[0], (ends[0] + share[:, None] * (ends[1] - ends[0])).double())
    radius, angle = 1 + 2 * share, share * math.pi / 2
    exact = centre + torch.stack([radius * angle.cos(), radius * angle.sin()], -1)
    torch.testing.assert_close(found.z[1], exact, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.means, found.z @ DECODER.T.double(), rtol=1e-4, atol=1e-4)
    square = (found.z - centre).square().sum(-1) / 4
    torch.testing.assert_close(found.log_prior, -square / 2 - math.log(2 * math.pi * 4), rtol=1e-4, atol=1e-4)


def test_an_isotropic_prior_whose_scale_is_learned_has_arcs_too():
    scale = torch.full((2,), 2.0, requires_grad=True)
    model, _, x, codes = two_latents(dist.Normal(scale * 0, scale).to_event(1))
    assert interpolate(model, x[:1], codes=codes, ends=torch.eye(2)).kinds == ("straight", "spherical")


@pytest.mark.parametrize(
    "prior",
    [
        dist.Normal(torch.zeros(2), torch.tensor([1.0, 1.1])).to_event(1),
        dist.Laplace(torch.zeros(2), 1.0).to_event(1),
        dist.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 1.0]])),
    ],
)
def test_other_priors_have_straight_lines_alone(prior):
    model, _, x, codes = two_latents(prior)
    assert interpolate(model, x[:1], codes=codes, ends=codes.mean[:2]).kinds == ("straight",)


def test_opposite_ends_have_no_arc():
    model, _, x, codes = two_latents()
    ends = torch.tensor([[1.0, 2.0], [-1.0, -2.0]])
    assert interpolate(model, x[:1], codes=codes, ends=ends).kinds == ("straight",)
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        interpolate(model, x[:1], codes=codes, ends=ends[:, :1])


def test_redrawn_codes_have_the_spread_of_the_guide():
    model, guide, x, codes = two_latents()
    found = redraw(model, guide, x[4:5], codes=codes, num_draws=4000)
    torch.testing.assert_close(found.x, x[4].double())
    exact = (x[4] @ ENCODER.T).double()
    torch.testing.assert_close(found.z.mean(0), exact, rtol=0, atol=0.06)
    spread = (DECODER.square() @ torch.tensor([0.81, 0.04])).sqrt().double()
    torch.testing.assert_close(found.spread, spread, rtol=0.05, atol=0)
    with pytest.raises(ValueError, match="one datum, got 2"):
        redraw(model, guide, x[:2], codes=codes)


def test_posteriors_have_the_quantiles_of_the_guide_and_its_contraction():
    model, guide, x, _ = two_latents()
    found = latent_posteriors(model, guide, x[:3], num_particles=4000)
    steps = torch.distributions.Normal(0.0, 1.0).icdf(found.levels)
    torch.testing.assert_close(found.prior, steps[:, None].expand(5, 2), rtol=1e-5, atol=1e-5)
    sd = torch.tensor([0.9, 0.2])
    exact = (x[:3] @ ENCODER.T) + sd * steps[:, None, None]
    assert float(((found.posterior - exact) / sd).abs().max()) < 0.17  # 5 standard errors at 0.05
    torch.testing.assert_close(found.contraction, (1 - sd.square()).expand(3, 2).double(), rtol=0, atol=0.12)


def test_each_label_has_a_grid_through_its_own_prior():
    def model(x, covariates):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(10 * covariates[..., :1], 1.0).expand([len(x), 2]).to_event(1))
            pyro.sample("x", dist.Normal(z @ DECODER.T + covariates[..., 1:], 1.0).to_event(1), obs=x)

    def guide(x, covariates):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x[..., :2], 1.0).to_event(1))

    x, covariates = torch.randn(20, 3), torch.eye(2).repeat(10, 1)
    codes = encode_codes(model, guide, x, covariates=covariates)
    options = {"codes": codes, "dims": (0, 1), "label_covariates": torch.eye(2), "covariates": covariates[:1]}
    found = label_grids(model, x[:1], labels=("one", "two"), num_steps=3, **options)
    quantile = 1.959964
    torch.testing.assert_close(found.grids[0].x, torch.tensor([10 - quantile, 10, 10 + quantile]).double())
    torch.testing.assert_close(found.grids[1].y, torch.tensor([-quantile, 0, quantile]).double())
    middle = [DECODER.double() @ torch.tensor([10.0, 10.0]).double(), torch.ones(3).double()]
    for grid, exact in zip(found.grids, middle, strict=True):
        torch.testing.assert_close(grid.means[1, 1], exact, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="one label for each row"):
        label_grids(model, x[:1], labels=("one",), **options)
