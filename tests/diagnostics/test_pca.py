"""Latent axes against principal components: exact for probabilistic PCA, in closed form for a rotation."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from latent_programs import linear_programs

from pyrovae.diagnostics import decoded_axes, pca_alignment


@pytest.fixture
def data():
    """Data whose principal components are known exactly: columns of an orthogonal matrix."""
    torch.manual_seed(3)
    basis = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    scores = torch.linalg.qr(torch.randn(200, 5, dtype=torch.float64).sub_(0)).Q
    scores = torch.linalg.qr(scores - scores.mean(0)).Q * 199**0.5
    sd = torch.tensor([3.0, 2.0, 1.5, 0.5, 0.3], dtype=torch.float64)
    return scores * sd @ basis.T + 7.0, basis, sd


def weight_of_pca(basis, sd, noise_variance=0.2, latent_dim=3):
    return basis[:, :latent_dim] * (sd[:latent_dim] ** 2 - noise_variance).sqrt()


def test_probabilistic_pca_is_aligned_up_to_order_and_sign(data):
    x, basis, sd = data
    weight = weight_of_pca(basis, sd)
    found = pca_alignment(weight, x)
    torch.testing.assert_close(found.cosines, torch.ones(3).double())
    assert found.component.tolist() == [0, 1, 2]
    assert found.mean_cosine == pytest.approx(1.0)
    assert found.largest_angle < 1e-5
    torch.testing.assert_close(found.variance, sd[:3] ** 2)
    changed = pca_alignment(weight[:, [2, 0, 1]] * torch.tensor([-1.0, 1.0, -5.0]), x)
    torch.testing.assert_close(changed.cosines, torch.ones(3).double())
    assert changed.component.tolist() == [2, 0, 1]


def test_a_rotation_spans_the_same_space_but_does_not_align(data):
    x, basis, sd = data
    weight = weight_of_pca(basis, sd, latent_dim=2)
    turn = 0.5
    rotation = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]).double()
    found = pca_alignment(weight @ rotation, x)
    first, second = (sd[:2] ** 2 - 0.2).sqrt().tolist()
    exact = [
        first * math.cos(turn) / math.hypot(first * math.cos(turn), second * math.sin(turn)),
        second * math.cos(turn) / math.hypot(first * math.sin(turn), second * math.cos(turn)),
    ]
    torch.testing.assert_close(found.cosines, torch.tensor(exact).double(), rtol=1e-6, atol=0)
    assert found.mean_cosine < 0.9
    assert found.largest_angle < 1e-5


def test_the_angle_of_another_subspace(data):
    x, basis, _ = data
    tilted = math.cos(0.3) * basis[:, 1] + math.sin(0.3) * basis[:, 4]
    found = pca_alignment(torch.stack([basis[:, 0], tilted], -1), x)
    assert found.largest_angle == pytest.approx(math.degrees(0.3), abs=1e-5)
    torch.testing.assert_close(found.cosines, torch.tensor([1.0, math.cos(0.3)]).double())


def test_axes_without_length_have_no_component(data):
    x, basis, _ = data
    axes = torch.stack([torch.zeros(5).double(), basis[:, 0]], -1)
    found = pca_alignment(axes, x)
    assert found.component.tolist() == [-1, 0]
    assert math.isnan(found.cosines[0])
    assert found.largest_angle < 1e-5
    with pytest.raises(ValueError, match="all axes are 0"):
        pca_alignment(0 * axes, x)


def test_decoded_axes_are_the_weight_of_a_linear_decoder():
    weight = torch.randn(4, 2)
    programs = linear_programs(torch.randn(2, 4), 0.3, decoder=weight)
    axes = decoded_axes(*programs, torch.randn(30, 4), num_data=20)
    torch.testing.assert_close(axes, weight.double(), rtol=1e-4, atol=1e-5)


def test_sites_and_shapes_are_checked():
    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(torch.stack([a, 2 * b], -1), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Normal(x[:, 0], 1.0))
            pyro.sample("b", dist.Normal(x[:, 1], 1.0))

    x = torch.randn(10, 2)
    with pytest.raises(ValueError, match=r"several real latents, \['a', 'b'\]; choose one by site="):
        decoded_axes(model, guide, x)
    torch.testing.assert_close(decoded_axes(model, guide, x, site="b"), torch.tensor([[0.0], [2.0]]).double())
    with pytest.raises(ValueError, match="site 'c' is no real latent"):
        decoded_axes(model, guide, x, site="c")
    with pytest.raises(ValueError, match=r"got \(3, 2\) and \(10, 2\)"):
        pca_alignment(torch.randn(3, 2), x)
