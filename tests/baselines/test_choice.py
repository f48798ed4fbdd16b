"""The choice of baselines, and their comparison with a model in words."""

import math
from functools import partial

import numpy as np
import pytest
import scipy.stats
import torch

from pyrovae import (
    BernoulliLikelihood,
    BetaLikelihood,
    BinomialLikelihood,
    CategoricalLikelihood,
    DiscretizedLogisticMixtureLikelihood,
    HurdleGammaLikelihood,
    LogNormalLikelihood,
    NegativeBinomialLikelihood,
    NormalLikelihood,
    PoissonLikelihood,
    RoundedNormalLikelihood,
    Streamed,
)
from pyrovae.baselines import MultivariateNormal, compare_with_baselines, fit_baselines, paired_difference
from pyrovae.columns import Column, Columns
from pyrovae.data import load_data
from pyrovae.likelihoods import MixedLikelihood
from pyrovae.stats import mean_and_std_error

OWN, HISTOGRAM, NB = "independent columns", "histogram by column", "negative binomial by column"
REAL = ["normal, full covariance", "multivariate Student-t", "Gaussian mixture"]
COUNTS = torch.from_numpy(np.random.default_rng(0).negative_binomial(2, 0.3, (60, 3))).float()
NUMBERS = torch.from_numpy(np.random.default_rng(1).normal(size=(60, 3))).float()


@pytest.mark.parametrize(
    ("likelihood", "x", "names"),
    [
        (BernoulliLikelihood, (COUNTS > 1).float(), [OWN]),
        (partial(CategoricalLikelihood, num_classes=40), COUNTS, [OWN]),
        (partial(BinomialLikelihood, total_count=40), COUNTS, [OWN, HISTOGRAM]),
        (partial(DiscretizedLogisticMixtureLikelihood, num_bins=40), COUNTS, [HISTOGRAM]),
        (PoissonLikelihood, COUNTS, [OWN, NB]),
        (NegativeBinomialLikelihood, COUNTS, [OWN]),
        (partial(NegativeBinomialLikelihood, total_count=2.0), COUNTS, [OWN, NB]),
        (partial(RoundedNormalLikelihood, resolution=1.0), COUNTS, [OWN]),
        (HurdleGammaLikelihood, COUNTS, [OWN]),
        (BetaLikelihood, NUMBERS.sigmoid(), [OWN]),
        (NormalLikelihood, NUMBERS, [OWN, *REAL]),
        (NormalLikelihood, torch.where(NUMBERS > 1, math.nan, NUMBERS), [OWN, *REAL[:2]]),
        (LogNormalLikelihood, NUMBERS.exp(), [OWN, *REAL]),
    ],
)
def test_a_likelihood_has_the_baselines_of_its_base_measure(likelihood, x, names):
    found = fit_baselines(x, likelihood)
    assert list(found) == names
    for baseline in found.values():
        log_p = baseline.log_prob(x)
        assert log_p.shape == (60,)
        assert log_p.dtype == torch.float64
        assert log_p.isfinite().all()
        assert baseline.num_parameters > 0


def test_the_histogram_of_digits_has_the_known_mean():
    data = load_data("digits")
    found = fit_baselines(data.train, partial(BinomialLikelihood, total_count=16))
    log_p = found[HISTOGRAM].log_prob(data.test)
    counts = torch.stack([(data.train == value).double().sum(0) for value in range(17)])
    by_hand = ((counts + 1) / (len(data.train) + 17)).log().gather(0, data.test.long()).sum(1)
    torch.testing.assert_close(log_p, by_hand)
    assert log_p.mean().item() == pytest.approx(-107.470, abs=1e-3)
    assert found[OWN].log_prob(data.test).mean() < log_p.mean()


def test_the_negative_binomial_of_overdispersed_counts_is_above_the_poisson():
    found = {name: one.log_prob(COUNTS).mean().item() for name, one in fit_baselines(COUNTS, PoissonLikelihood).items()}
    assert found[NB] > found[OWN] + 1
    assert found[OWN] == pytest.approx(scipy.stats.poisson.logpmf(COUNTS, COUNTS.mean(0)).sum(1).mean(), abs=1e-4)


def test_positive_columns_enter_by_their_logarithms():
    x = NUMBERS.double()
    found = fit_baselines(x.exp(), LogNormalLikelihood, resolution=0.0)["normal, full covariance"]
    expected = MultivariateNormal(x, resolution=0.0).log_prob(x) - x.sum(1)
    torch.testing.assert_close(found.log_prob(x.exp()), expected, atol=1e-6, rtol=0)


def test_a_table_of_real_columns_has_the_resolution_of_its_columns():
    numbers = {"low": -9, "high": 9, "centre": 0.0, "spread": 1.0}
    columns = Columns(tuple(Column(name, "real", **numbers, resolution=1.5) for name in "abc"))
    found = fit_baselines(NUMBERS, partial(MixedLikelihood, columns=columns))
    assert list(found) == [OWN, *REAL]
    expected = MultivariateNormal(NUMBERS.double(), resolution=1.5).log_prob(NUMBERS)
    torch.testing.assert_close(found["normal, full covariance"].log_prob(NUMBERS), expected, atol=1e-4, rtol=0)
    mean = NUMBERS.double().mean(0).numpy()
    floored = scipy.stats.norm.logpdf(NUMBERS, mean, 1.5).sum(1)
    np.testing.assert_allclose(found[OWN].log_prob(NUMBERS), floored, atol=1e-4)


def test_a_table_with_levels_has_independent_columns_alone():
    numbers = {"low": -9, "high": 9, "centre": 0.0, "spread": 1.0, "resolution": 0.1}
    columns = Columns((Column("a", "real", **numbers), Column("b", "binary", levels=("no", "yes"))))
    x = torch.stack([NUMBERS[:, 0], (NUMBERS[:, 1] > 0).float()], 1)
    assert list(fit_baselines(x, partial(MixedLikelihood, columns=columns))) == [OWN]


@pytest.mark.parametrize("likelihood", [PoissonLikelihood, BernoulliLikelihood, NormalLikelihood])
def test_data_on_disk_have_the_same_baselines(likelihood):
    x = (COUNTS > 1).float() if likelihood is BernoulliLikelihood else COUNTS
    in_memory, on_disk = fit_baselines(x, likelihood), fit_baselines(Streamed(x.numpy()), likelihood)
    for name, baseline in in_memory.items():
        torch.testing.assert_close(on_disk[name].log_prob(x), baseline.log_prob(x))


def test_fitting_leaves_the_random_state_and_the_validation_as_they_are():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), torch.distributions.Distribution._validate_args
    fit_baselines(NUMBERS, NormalLikelihood)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), torch.distributions.Distribution._validate_args
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_a_model_below_a_baseline_is_said_to_be_so_with_the_paired_error():
    generator = torch.Generator().manual_seed(0)
    log_p = 10 * torch.randn(400, generator=generator, dtype=torch.float64)
    noise = torch.randn(400, generator=generator, dtype=torch.float64)
    noise = (noise - noise.mean()) / noise.std()
    lines = compare_with_baselines(
        log_p, {"t": log_p + 2.1 + 8 * noise, "even": log_p + 0.05 * noise, "low": log_p - 3}
    )
    assert lines.splitlines() == [
        'the model is BELOW its baseline "t" by 2.10 +- 0.40 nats per datum',
        'the model does not differ from its baseline "even": +0.00 +- 0.00 nats per datum',
    ]
    above = compare_with_baselines(log_p, {"t": log_p - 2.1 + 8 * noise, "low": log_p - 3})
    assert above == 'the model is above its baselines, and above the best of them, "t", by 2.10 +- 0.40 nats per datum'
    assert compare_with_baselines(log_p, {}) == ""


def test_case_weights_enter_the_difference_and_its_error():
    log_p = torch.zeros(3)
    values = torch.tensor([1.0, 2.0, 30.0])
    line = compare_with_baselines(log_p, {"b": values}, weights=torch.tensor([1.0, 1.0, 0.0]))
    assert line == 'the model is BELOW its baseline "b" by 1.50 +- 0.50 nats per datum'
    assert line == compare_with_baselines(log_p[:2], {"b": values[:2]})
    alone = compare_with_baselines(log_p, {"b": values}, weights=torch.tensor([1.0, 0.0, 0.0]))
    assert alone == 'the model does not differ from its baseline "b": -1.00 nats per datum'
    assert paired_difference(log_p, values, torch.tensor([1.0, 2.0, 0.0])) == pytest.approx(
        mean_and_std_error(-values.double(), torch.tensor([1.0, 2.0, 0.0]).double())
    )


def test_probabilities_of_zero_are_told_without_an_error():
    log_p = torch.tensor([-1.0, -math.inf, -2.0])
    assert "BELOW" in compare_with_baselines(log_p, {"b": torch.tensor([-1.0, -3.0, -2.0])})
    assert "above" in compare_with_baselines(log_p[::2], {"b": torch.tensor([-1.0, -math.inf])})
    both = torch.tensor([-1.0, -math.inf, -2.0])
    assert "does not differ" in compare_with_baselines(log_p, {"b": both})
    assert "does not differ" in compare_with_baselines(log_p[:1], {"b": torch.tensor([-0.5])})
    with pytest.raises(ValueError, match="shape"):
        compare_with_baselines(log_p, {"b": torch.zeros(2)})


def test_the_unit_of_case_weights_changes_no_baseline():
    x = torch.cat([torch.zeros(180, 1), torch.ones(20, 1)])
    found = [
        fit_baselines(x, BernoulliLikelihood, weights=torch.full((200,), scale))["independent columns"].log_prob(x[:1])
        for scale in (1 / 200, 1.0, 1e4)
    ]
    assert found[0].exp().item() == pytest.approx(181 / 202, rel=1e-5)
    torch.testing.assert_close(torch.stack(found).expand(3, 1), found[1].expand(3, 1))
