"""The baseline of independent pixels."""

import itertools
import math

import numpy as np
import pytest
import torch
from data_helpers import save, write_fake_mnist

from pyrovae.data import IndependentPixels, load_data


@pytest.fixture
def densities(tmp_path):
    return load_data(save(tmp_path / "x.npy", np.random.default_rng(1).random((57, 3, 2))))


def test_histograms_match_a_loop_and_sum_to_one():
    train = torch.tensor([[0.0, 3.0], [1.0, 3.0], [1.0, 0.0]])
    support = torch.tensor(list(itertools.product(range(5), repeat=2))).float()
    for a in (0.1, 1.0):
        baseline = IndependentPixels(train, maximum=4, pseudo_count=a)
        expected = [
            sum(math.log(((train[:, d] == v).sum().item() + a) / (3 + 5 * a)) for d, v in enumerate(x.tolist()))
            for x in support
        ]
        log_p = baseline.log_prob(support)
        np.testing.assert_allclose(log_p, expected, rtol=1e-12)
        assert log_p.exp().sum().item() == pytest.approx(1)
    assert baseline.base_measure == "counting"
    outside = torch.tensor([[5.0, 0.0], [-1.0, 0.0], [0.5, 0.0], [math.nan, 0.0]])
    assert baseline.log_prob(outside).tolist() == [-math.inf] * 4


def test_histograms_of_digits_match_a_loop_and_the_known_value():
    """About -108 nats on any split; recorded here for seed 0: -107.42, -107.42, -107.47."""
    data = load_data("digits")
    train, test = data.train.numpy().astype(int), data.test.numpy().astype(int)
    for a, recorded in ((0.1, -107.415), (0.5, -107.420), (1.0, -107.470)):
        expected = np.zeros(len(test))
        for d in range(64):
            p = (np.bincount(train[:, d], minlength=17) + a) / (len(train) + 17 * a)
            expected += np.log(p[test[:, d]])
        log_p = IndependentPixels.of(data, pseudo_count=a).log_prob(data.test)
        assert log_p.shape == (len(test),)
        np.testing.assert_allclose(log_p, expected, rtol=1e-12)
        assert log_p.mean().item() == pytest.approx(recorded, abs=1e-3)
    assert torch.equal(log_p, IndependentPixels.of(data).log_prob(data.test))


def test_grey_training_values_give_the_expected_histogram(tmp_path):
    write_fake_mnist(tmp_path, 240, 30)
    data = load_data("mnist", data_dir=tmp_path)
    baseline = IndependentPixels.of(data)
    assert baseline.base_measure == "counting"
    p = (data.train.double().sum(0) + 1) / (len(data.train) + 2)
    expected = torch.distributions.Bernoulli(p).log_prob(data.test.double()).sum(-1)
    torch.testing.assert_close(baseline.log_prob(data.test), expected)
    one, other = (
        torch.tensor([[0.3, 1.0]]),
        torch.tensor(list(itertools.product((0.0, 1.0), (0.0, 1.0)))),
    )
    assert IndependentPixels(one, maximum=1).log_prob(other).exp().sum().item() == pytest.approx(1)


def test_binary_training_values_give_the_counts():
    train = torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    log_p = IndependentPixels(train, maximum=1).log_prob(torch.tensor([[0.0, 0.0, 1.0]]))
    assert log_p.exp().item() == pytest.approx(3 / 4 * 1 / 4 * 2 / 4)


def test_counts_with_a_long_tail_take_little_memory():
    train = torch.zeros(10, 3000)
    train[0, 0] = 1e6  # a full table would hold 3e9 cells
    log_p = IndependentPixels(train, maximum=2_000_000).log_prob(train[:1])
    assert log_p.item() == pytest.approx(math.log(2 / 2_000_011) + 2999 * math.log(11 / 2_000_011))


def test_baseline_does_not_depend_on_chunks(monkeypatch):
    data = load_data("digits")
    expected = IndependentPixels.of(data).log_prob(data.test)
    monkeypatch.setattr("pyrovae.data.baseline._CHUNK", 7)
    assert torch.equal(IndependentPixels.of(data).log_prob(data.test), expected)


def test_baseline_of_real_data_is_normal(densities):
    baseline = IndependentPixels.of(densities)
    assert baseline.base_measure == "lebesgue"
    x, y = densities.train.double().numpy(), densities.test.double().numpy()
    mean, var = x.mean(0), x.var(0)
    expected = (-0.5 * (np.log(2 * np.pi * var) + (y - mean) ** 2 / var)).sum(1)
    np.testing.assert_allclose(baseline.log_prob(densities.test), expected, rtol=1e-10)
    constant = IndependentPixels(torch.ones(20, 1), scale_floor=0.5)
    assert constant.log_prob(torch.ones(1, 1)).item() == pytest.approx(-math.log(0.5 * math.sqrt(2 * math.pi)))


def test_the_base_measure_can_be_that_of_the_likelihood(densities):
    digits = load_data("digits")
    assert IndependentPixels.of(digits).base_measure == "counting"
    assert IndependentPixels.of(digits, base_measure="lebesgue").base_measure == "lebesgue"
    with pytest.raises(ValueError, match="non-negative integers"):
        IndependentPixels.of(densities, base_measure="counting")
    with pytest.raises(ValueError, match="counting or lebesgue, got nats"):
        IndependentPixels.of(digits, base_measure="nats")


@pytest.mark.parametrize(
    ("train", "kwargs", "match"),
    [
        (torch.zeros(0, 3), {}, r"\(0, 3\)"),
        (torch.zeros(3), {}, r"\(3,\)"),
        (torch.ones(3, 2), {"maximum": 1, "pseudo_count": 0.0}, "pseudo_count"),
        (torch.ones(3, 2), {"scale_floor": 0.0}, "scale_floor"),
        (torch.full((3, 2), 0.5), {"maximum": 2}, "6 training values"),
        (torch.full((3, 2), 3.0), {"maximum": 2}, r"0\.\.2"),
        (torch.full((3, 2), -1.0), {"maximum": 1}, r"0\.\.1"),
    ],
)
def test_baseline_rejects_invalid_training_data(train, kwargs, match):
    with pytest.raises(ValueError, match=match):
        IndependentPixels(train, **kwargs)
