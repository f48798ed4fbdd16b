"""Attribute vectors and the ascent of a property, against linear models."""

import math

import pytest
import torch
from latent_programs import linear_programs

from pyrovae.diagnostics import ascend_property, attribute_steps, attribute_vector, encode_codes

OWN, OTHER = torch.tensor([2.0, 0.0, 0.0]), torch.tensor([0.0, 3.0, 0.0])


def correlated(size=4000):
    """Codes own * OWN + other * OTHER + noise, where P(other | own) is 0.8 and P(other | not own) 0.2."""
    own = torch.rand(size) < 0.5
    other = torch.rand(size) < torch.where(own, 0.8, 0.2)
    return own[:, None] * OWN + other[:, None] * OTHER + torch.randn(size, 3), own, other


def test_the_unbalanced_vector_is_off_by_the_known_angle_and_the_balanced_one_is_not():
    z, own, other = correlated()
    found = attribute_vector(z, own, other)
    exact = OWN.double(), (OWN + 0.6 * OTHER).double()
    estimates = (found.vector, found.std_error), (found.unbalanced, found.unbalanced_error)
    for (value, error), truth in zip(estimates, exact, strict=True):
        assert (error < 0.1).all()
        assert float(((value - truth) / error).abs().max()) < 4
    assert found.angle == pytest.approx(math.degrees(math.atan2(1.8, 2.0)), abs=4)
    assert found.counts.sum() == len(z)


def test_balancing_equals_replication_to_equal_counts():
    z = torch.randn(12, 2)
    own = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]).bool()
    other = torch.tensor([0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1])
    copies = torch.tensor([2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2])
    many, has = z.repeat_interleave(copies, 0).double(), own.repeat_interleave(copies)
    torch.testing.assert_close(attribute_vector(z, own, other).vector, many[has].mean(0) - many[~has].mean(0))


def test_standard_errors_of_attribute_vectors_are_the_spread_over_repetitions():
    found = [attribute_vector(*correlated(200)) for _ in range(300)]
    for value, error in ((0, 1), (2, 3)):
        spread = torch.stack([each[value] for each in found]).std(0)
        torch.testing.assert_close(torch.stack([each[error] for each in found]).mean(0), spread, rtol=0.17, atol=0)


def test_pairs_of_attributes_that_do_not_occur_are_refused():
    own = torch.tensor([True, True, False, False])
    with pytest.raises(ValueError, match=r"counts \[\[2, 0\], \[0, 2\]\]; merge rare values"):
        attribute_vector(torch.randn(4, 2), own, own.long())
    with pytest.raises(ValueError, match=r"must have shape \(N, J\)"):
        attribute_vector(torch.randn(4), own, own)


def linear(num_data=300, scale=1.0):
    decoder = torch.tensor([[1.0, 2.0, 0.0], [0.0, -1.0, 1.0]])
    programs = linear_programs(torch.linalg.pinv(decoder), torch.full((3,), 0.5), decoder=decoder, scale=scale)
    x = torch.randn(num_data, 3) @ decoder.T
    return programs, x, decoder


def test_attribute_steps_decode_a_line_along_both_vectors():
    (model, guide), x, decoder = linear(40)
    codes = encode_codes(model, guide, x)
    vector = attribute_vector(codes.mean, torch.arange(40) % 2 == 0, torch.arange(40) % 3)
    found = attribute_steps(model, x[:1], codes=codes, vector=vector, base=2, steps=(-1.0, 0.0, 2.0))
    assert found.ways == ("balanced", "unbalanced")
    exact = codes.mean[2] + torch.tensor([[-1.0], [0.0], [2.0]]) * vector.unbalanced
    torch.testing.assert_close(found.z[1], exact)
    torch.testing.assert_close(found.means, found.z @ decoder.double().T, rtol=1e-4, atol=1e-4)


def test_an_ascent_ends_at_the_largest_value_of_a_linear_property_in_the_typical_set():
    (model, guide), x, decoder = linear()
    codes = encode_codes(model, guide, x)
    weight = torch.tensor([1.0, 0.5]).double()
    found = ascend_property(model, x[:1], codes=codes, values=x @ weight.float(), measure=lambda x: x @ weight)
    slope = weight @ decoder.double()
    radius = 9.348404**0.5  # sqrt of the 97.5 % quantile of chi^2 with 3 degrees of freedom
    assert found.measured[-1] == pytest.approx(float(slope.norm()) * radius, rel=0.05)
    assert found.measured_gain == pytest.approx(float((found.means[-1] - found.means[0]) @ weight))
    assert (found.predicted.diff() > 0).all()
    # The constant of log p(z) is -1.5 log 2 pi; 0.2157953 is the 2.5 % quantile.
    assert found.typical == pytest.approx((-(radius**2) / 2 - 2.7568, -0.2157953 / 2 - 2.7568), abs=0.25)
    assert found.log_prior.min() >= found.typical[0] - 2e-3
    assert found.log_prior.max() <= found.typical[1] + 2e-3
    torch.testing.assert_close(found.log_prior, -found.z.square().sum(1) / 2 - 1.5 * math.log(2 * math.pi))


def test_the_skill_of_a_predictor_is_that_of_left_out_data():
    (model, guide), x, _ = linear()
    codes = encode_codes(model, guide, x)
    options = {"codes": codes, "measure": lambda x: x[:, 0], "num_steps": 2}
    noise = ascend_property(model, x[:1], values=torch.randn(300), **options)
    assert -0.1 < noise.skill < 0.05
    curved = codes.draw[:, 0] * codes.draw[:, 1] - codes.draw[:, 2] ** 2
    found = ascend_property(model, x[:1], values=curved, **options)
    assert found.quadratic
    assert found.skill > 0.999
    few = ascend_property(model, x[:1], values=curved[:20], **options | {"codes": codes._replace(draw=codes.draw[:20])})
    assert not few.quadratic


def test_a_property_without_variation_is_refused():
    (model, guide), x, _ = linear(20)
    options = {"codes": encode_codes(model, guide, x), "measure": lambda x: x[:, 0], "num_steps": 1}
    with pytest.raises(ValueError, match="nothing to predict"):
        ascend_property(model, x[:1], values=torch.ones(20), **options)
    with pytest.raises(ValueError, match="one for each of the 20 codes"):
        ascend_property(model, x[:1], values=torch.ones(19), **options)
    with pytest.raises(ValueError, match=r"must return .* got .*\(2, 2\)"):
        ascend_property(model, x[:1], values=x[:, 0], **options | {"measure": lambda x: x})
