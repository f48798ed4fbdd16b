"""Statistics of log weights, against closed forms, ArviZ, and their own symmetries.

Statistical tests draw from a fixed seed, so that they pass or fail for good. Each states how often
a correct implementation would fail it over seeds (false alarm), and what error it would catch
almost surely (power).
"""

import math
from collections.abc import Callable
from typing import Any

import arviz
import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from pyrovae.stats import (
    LogMarginal,
    bits_per_dim,
    component_shares,
    joint_critical,
    log_mean_exp,
    log_mean_std_error,
    mean_and_std_error,
    monte_carlo_std_error,
    pareto,
    pareto_smoothed_log_weights,
    sampling_std_error,
    student_t_critical,
    summarize_log_weights,
)
from pyrovae.stats.log_weights import bias_corrected_log_mean, effective_sample_size
from pyrovae.stats.pareto import pareto_khat

Reduction = Callable[[Tensor], Any]

INF = math.inf
ARVIZ_1 = int(arviz.__version__.split(".")[0]) >= 1
REDUCTIONS = [log_mean_exp, effective_sample_size, sampling_std_error, pareto_khat]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def exponential(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(*shape, dtype=torch.float64).exponential_(generator=generator)


def tail_length(num_particles: int) -> int:
    return math.ceil(min(num_particles / 5, 3 * math.sqrt(num_particles)))


def arviz_psis(log_w: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Smoothed log weights, with shape (N, K), and khat of ArviZ for log weights of shape (K, N), on either line.

    ArviZ 0.23 takes log weights and the ceiling of 3 sqrt(K); 1.x takes minus the log weights and
    the floor of 3 sqrt(K / r_eff), so r_eff is set to give it the same tail.
    """
    log_w_last = log_w.T.double().numpy()
    if not ARVIZ_1:
        return tuple(map(np.asarray, arviz.psislw(log_w_last)))
    from arviz_stats.base import array_stats

    num_particles = len(log_w)
    r_eff = 9 * num_particles / (tail_length(num_particles) + 0.5) ** 2 if num_particles > 225 else 1
    return tuple(map(np.asarray, array_stats.psislw(-log_w_last, r_eff=r_eff)))


def arviz_khat(log_w: Tensor) -> np.ndarray:
    return arviz_psis(log_w)[1]


# Log-mean-exp and its error


def test_log_normal_weights_have_their_known_mean() -> None:
    # log w ~ N(mu, s^2) has log E[w] = mu + s^2 / 2. Over 400 data, z = (value - truth) / std_error
    # has a mean within 0.02 of 0 (skewed weights: -0.014) and variance 1, so mean z has sd 0.05 and
    # the rms of z has sd 0.036. False alarm: 4.5 sd on two statistics, under 2e-5. Power: an error
    # 25 % off, or a bias of half a standard error, fails with probability over 0.98.
    scale, num_data = 0.5, 400
    loc = torch.linspace(-900, 900, num_data, dtype=torch.float64)
    log_w = loc + scale * normal(4000, num_data)
    z = (log_mean_exp(log_w) - (loc + scale**2 / 2)) / log_mean_std_error(log_w)
    assert abs(z.mean()) < 4.5 * 0.05 + 0.02
    assert abs(z.square().mean().sqrt() - 1) < 4.5 * 0.036


def test_log_mean_std_error_of_log_normal_weights_has_its_known_value() -> None:
    # sd(w) / E[w] = sqrt(exp(s^2) - 1) = 0.533 for s = 0.5. At K = 4e5 the relative sd of the
    # estimate is 0.0017 (over 100 seeds). False alarm: 5.9 sd, under 1e-7. Power: an error of 2 %
    # fails with probability over 0.9999.
    num_particles = 400_000
    estimate = log_mean_std_error(0.5 * normal(num_particles, 1)) * math.sqrt(num_particles)
    assert estimate.item() == pytest.approx(math.sqrt(math.expm1(0.25)), rel=0.01)


def test_the_reductions_of_a_few_weights_agree_with_values_by_hand() -> None:
    w = torch.tensor([[1.0, 3.0], [2.0, 0.0], [6.0, 0.0]], dtype=torch.float64)
    got = summarize_log_weights(w.log())
    # mean 3, variance (4 + 1 + 9) / 2 = 7; mean 1, variance (4 + 1 + 1) / 2 = 3
    torch.testing.assert_close(got.value, torch.tensor([math.log(3), 0.0]).double(), rtol=1e-7, atol=1e-15)
    torch.testing.assert_close(got.std_error, torch.tensor([7 / 27, 1.0]).double().sqrt())
    torch.testing.assert_close(got.ess, torch.tensor([81 / 41, 1.0]).double())
    assert got.khat.tolist() == [INF, INF]


def test_gradient_of_log_mean_exp_is_the_normalised_weight() -> None:
    log_w = normal(7, 3).requires_grad_()
    log_mean_exp(log_w).sum().backward()
    torch.testing.assert_close(log_w.grad, log_w.detach().softmax(0))


# Effective sample size


@pytest.mark.parametrize("num_nonzero", [1, 3, 10])
def test_ess_counts_equal_nonzero_weights(num_nonzero: int) -> None:
    log_w = torch.full((10, 1), -INF)
    log_w[:num_nonzero] = -1234.5
    assert effective_sample_size(log_w).item() == pytest.approx(num_nonzero, rel=1e-14)


def test_ess_determines_the_std_error() -> None:
    # (K - 1) std_error^2 = K / ess - 1, which is algebra.
    log_w = 2 * normal(50, 20)
    expected = ((50 / effective_sample_size(log_w) - 1) / 49).sqrt()
    torch.testing.assert_close(log_mean_std_error(log_w), expected)


def test_ess_never_exceeds_the_number_of_draws() -> None:
    assert (effective_sample_size(1e-9 * normal(150, 2000)) <= 150).all()


# Pareto khat


@pytest.mark.parametrize("k", [0.0, 0.3, 0.7, 1.2])
def test_khat_finds_the_shape_of_generalised_pareto_weights(k: float) -> None:
    # With E exponential, w = E (k = 0) and w = exp(k E) (Pareto of shape k) have excesses over any
    # cutoff that are exactly generalised Pareto of shape k. The prior moves the mean to (M k + 5) /
    # (M + 10), and the fit has sd (1 + k) / sqrt(M), as maximum likelihood has (Zhang and Stephens
    # 2009). The mean over 16 data is thus within 4.5 times (1 + k) / sqrt(16 M), plus 1 / M for the
    # estimator's own bias; M = 1342. False alarm: under 1e-5. Power: a shift of k by 0.06 (0.07 for
    # k = 1.2) fails with probability over 0.99.
    num_particles, num_data = 200_000, 16
    draws = exponential(num_particles, num_data, seed=1)
    khat = pareto_khat(draws.log() if k == 0 else k * draws)
    m = tail_length(num_particles)
    tolerance = 4.5 * (1 + k) / math.sqrt(num_data * m) + 1 / m
    assert abs(khat.mean().item() - (m * k + 5) / (m + 10)) < tolerance
    # sd over 16 data has a relative sd of 1 / sqrt(30): factors of 2 are over 3.8 sd away.
    assert 0.5 < khat.std().item() * math.sqrt(m) / (1 + k) < 2


def test_khat_of_bounded_weights_is_negative() -> None:
    # Uniform weights have k = -1. At M = 300 the sd of khat is under 0.1. False alarm: under 1e-6
    # for 20 data.
    w = torch.rand(10_000, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert (pareto_khat(w.log()) < -0.5).all()


# Up to 225 only multiples of 5: ArviZ 1.x takes the floor of K/5, which r_eff cannot undo.
@pytest.mark.parametrize("num_particles", [30, 50, 100, 225, 250, 400, 1000, 2500, 5000])
@pytest.mark.parametrize("spread", [1e-3, 0.1, 1.0, 4.0, 20.0])
def test_khat_agrees_with_arviz(num_particles: int, spread: float) -> None:
    log_w = -300 + spread * normal(num_particles, 10, seed=num_particles)
    np.testing.assert_allclose(pareto_khat(log_w), arviz_khat(log_w), rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(ARVIZ_1, reason="ArviZ 1.x takes the floor of K/5, keeps ties, and raises without a tail")
@pytest.mark.parametrize("num_particles", [20, 21, 24, 26, 99, 101, 224])
def test_khat_agrees_with_arviz_0_23_on_every_tail_length(num_particles: int) -> None:
    log_w = normal(num_particles, 10)
    np.testing.assert_allclose(pareto_khat(log_w), arviz_khat(log_w), rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(ARVIZ_1, reason="ArviZ 1.x keeps ties with the cutoff in the tail")
def test_khat_agrees_with_arviz_0_23_on_ties_and_zeros() -> None:
    # Ties and zeros leave each datum a tail of its own length, some below 5.
    log_w = normal(200, 40)
    log_w[:, :20] = log_w[:, :20].mul(5).round().div(5)
    for datum in range(20, 40):
        log_w[: 180 + datum - 20, datum] = -INF
    expected = arviz_khat(log_w)
    assert np.isinf(expected).any()
    np.testing.assert_allclose(pareto_khat(log_w), expected, rtol=1e-9, atol=1e-9)


def test_khat_is_finite_where_a_grid_point_hits_the_exponential() -> None:
    # Excesses 3, 6, .., 15: lower quartile over largest is 1/5, so b_13 = 1/15 - (8/5 - 1) / 9,
    # which in float64 too is exactly 0.
    w = torch.cat([torch.ones(20), torch.tensor([4.0, 7, 10, 13, 16])]).double()
    assert -1 < pareto_khat(w.log()[:, None]).item() < 0.5


def test_khat_is_unknown_where_the_fit_overflows() -> None:
    log_w = 1e-15 * normal(1000, 1)
    log_w[0] = 708  # the largest excess over the lower quartile is 1e322
    assert pareto_khat(log_w).item() == INF


def test_chunks_do_not_change_khat(monkeypatch: pytest.MonkeyPatch) -> None:
    log_w = normal(300, 23)
    whole = pareto_khat(log_w)
    shapes: list[int] = []
    fit_tail = pareto._fit_tail

    def spy(top: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        shapes.append(len(top))
        return fit_tail(top, eps)

    monkeypatch.setattr(pareto, "_fit_tail", spy)
    for elements, expected_shapes in [(1, [1] * 23), (20_000, [10, 10, 3])]:
        monkeypatch.setattr(pareto, "_MAX_CHUNK_ELEMENTS", elements)
        torch.testing.assert_close(pareto_khat(log_w), whole, rtol=1e-13, atol=1e-13)
        assert shapes == expected_shapes
        shapes.clear()


# Degenerate weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", [0.0, -0.1, -123.4, 5e3])
def test_equal_weights_up_to_rounding_have_no_tail(dtype: torch.dtype, level: float) -> None:
    exact = torch.full((1000, 1), level, dtype=dtype)
    rounding = torch.finfo(dtype).eps * max(1, abs(level)) * normal(1000, 1)
    for log_w in (exact, (level + rounding).to(dtype)):
        got = summarize_log_weights(log_w)
        assert got.khat.item() == -INF
        assert got.ess.item() == pytest.approx(1000, rel=1e-5)
        assert got.value.item() == pytest.approx(level, rel=1e-6, abs=1e-6)
    exact_summary = summarize_log_weights(exact)
    assert exact_summary.std_error.item() == pytest.approx(torch.finfo(dtype).eps * abs(exact[0].item()))
    assert exact_summary.ess.item() == 1000


def test_khat_of_nearly_equal_weights_is_low() -> None:
    # Spreads from above the rounding of float32 up to 0.01 nats.
    log_w = -100 + torch.tensor([1e-4, 1e-3, 1e-2]) * normal(1000, 3)
    assert (pareto_khat(log_w.float()) < 0.5).all()


@pytest.mark.parametrize("num_particles", [1, 2, 20])
def test_khat_is_unknown_below_21_particles(num_particles: int) -> None:
    for log_w in (normal(num_particles, 3), torch.zeros(num_particles, 3)):
        assert pareto_khat(log_w).tolist() == [INF] * 3


def test_khat_needs_five_weights_that_are_not_negligible() -> None:
    log_w = normal(1000, 2)
    log_w[:4, 0] += 800  # all others are below 1e-308 of these
    log_w[:5, 1] += 800
    unknown, known = pareto_khat(log_w).tolist()
    assert unknown == INF
    assert math.isfinite(known)


@pytest.mark.parametrize("num_particles", [1, 2, 100])
def test_summaries_of_all_zero_weights_are_unknown(num_particles: int) -> None:
    log_w = torch.zeros(num_particles, 2)
    log_w[:, 0] = -INF
    got = summarize_log_weights(log_w)
    assert [field[0].item() for field in got] == [-INF, INF, 0.0, INF]
    assert got.value[1].item() == pytest.approx(0, abs=1e-14)


def test_summaries_of_one_particle_have_no_error() -> None:
    got = summarize_log_weights(torch.tensor([[-3.0, 4.0]]))
    assert [field.tolist() for field in got] == [[-3, 4], [INF, INF], [1, 1], [INF, INF]]


def test_extreme_spreads_never_give_nan() -> None:
    spread = torch.logspace(-18, 5, 70, dtype=torch.float64)
    for log_w in (spread * normal(500, 70), spread * exponential(500, 70)):
        for field in summarize_log_weights(log_w):
            assert not field.isnan().any()
    khat = pareto_khat(spread * exponential(500, 70))
    assert (khat[spread > 2] > 1).all()


# Symmetries and shapes


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_shift_of_log_weights_changes_only_the_estimate(reduction: Reduction) -> None:
    log_w = 2 * normal(400, 6)
    shift = torch.tensor([0.0, 1.0, -1e3, 1e3, -2e4, 2e4]).double()
    expected = reduction(log_w) + (shift if reduction is log_mean_exp else 0)
    torch.testing.assert_close(reduction(log_w + shift), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions_do_not_depend_on_the_order_of_particles_or_data(reduction: Reduction) -> None:
    log_w = 2 * normal(400, 6)
    order, data_order = normal(400).argsort(), normal(6).argsort()
    expected = reduction(log_w)[data_order]
    torch.testing.assert_close(reduction(log_w[order][:, data_order]), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64])
def test_reductions_compute_in_float64_for_every_dtype(reduction: Reduction, dtype: torch.dtype) -> None:
    log_w = (10 * normal(400, 6)).to(dtype)
    got = reduction(log_w)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, reduction(log_w.double()), rtol=0, atol=0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("num_particles", [1, 10, 100])
def test_reductions_keep_every_dim_but_the_first(reduction: Reduction, num_particles: int) -> None:
    log_w = normal(num_particles, 4, 3)
    expected = torch.stack([reduction(log_w[:, i, j]) for i in range(4) for j in range(3)])
    torch.testing.assert_close(reduction(log_w), expected.reshape(4, 3), rtol=1e-12, atol=0)
    assert reduction(log_w[:, :0]).shape == (0, 3)


def test_summarize_log_weights_returns_the_four_reductions() -> None:
    log_w = normal(100, 5)
    got = summarize_log_weights(log_w)
    assert isinstance(got, LogMarginal)
    assert got._fields == ("value", "std_error", "ess", "khat")
    assert torch.equal(got.value, log_mean_exp(log_w))
    assert torch.equal(got.std_error, log_mean_std_error(log_w))
    assert torch.equal(got.ess, effective_sample_size(log_w))
    assert torch.equal(got.khat, pareto_khat(log_w))


# Errors


@pytest.mark.parametrize("reduction", [*REDUCTIONS, summarize_log_weights])
@pytest.mark.parametrize("bad", [math.nan, INF])
def test_nan_and_infinite_weights_are_refused_by_datum(reduction: Reduction, bad: float) -> None:
    log_w = torch.zeros(30, 5)
    log_w[17, 2] = log_w[3, 4] = bad
    with pytest.raises(ValueError, match=rf"got {bad} for datum 2 \(first of 2\); look"):
        reduction(log_w)
    with pytest.raises(ValueError, match="for datum 2, 0 "):
        reduction(log_w.unsqueeze(-1))
    with pytest.raises(ValueError, match="for datum 0 "):
        reduction(log_w[:, 2])


@pytest.mark.parametrize("reduction", [*REDUCTIONS, summarize_log_weights])
def test_reductions_reject_log_weights_without_particles(reduction: Reduction) -> None:
    for log_w in (torch.zeros(0, 5), torch.tensor(1.0)):
        with pytest.raises(ValueError, match="K >= 1"):
            reduction(log_w)


# Over data


def test_mean_and_std_error_agree_with_values_by_hand() -> None:
    mean, std_error = mean_and_std_error(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert (mean, std_error) == (3.0, pytest.approx(math.sqrt(14 / 3 / 4), rel=1e-14))
    mean, std_error = mean_and_std_error(torch.tensor([2.5]))
    assert mean == 2.5
    assert math.isnan(std_error)
    mean, std_error = mean_and_std_error(torch.tensor([0.0, -INF]))
    assert mean == -INF
    assert math.isnan(std_error)


def test_mean_is_taken_in_float64() -> None:
    values = torch.tensor([1e8, 1.0, -1e8, 1.0])
    assert mean_and_std_error(values)[0] == 0.5


def test_monte_carlo_std_error_combines_the_errors_of_independent_estimates() -> None:
    assert monte_carlo_std_error(torch.full((16,), 2.0)) == 0.5
    assert monte_carlo_std_error(torch.tensor([0.6, 0.8], dtype=torch.float64)) == pytest.approx(0.5, rel=1e-14)
    assert monte_carlo_std_error(torch.tensor([0.6, INF])) == INF


def test_means_reject_empty_data() -> None:
    with pytest.raises(ValueError, match="values must have shape"):
        mean_and_std_error(torch.zeros(0))
    with pytest.raises(ValueError, match="std_error must have shape"):
        monte_carlo_std_error(torch.zeros(0))


def test_bits_per_dim_divides_nats_by_the_dimension_and_log_2() -> None:
    got = bits_per_dim(torch.tensor([-math.log(8), math.log(2)]), 3)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, torch.tensor([1.0, -1 / 3]).double(), rtol=1e-6, atol=0)
    assert bits_per_dim(-math.log(8), 3) == pytest.approx(1.0, rel=1e-15)
    with pytest.raises(ValueError, match="num_dims"):
        bits_per_dim(0.0, 0)


def test_sampling_std_error_leaves_out_the_variance_between_strata():
    # Two components that always give 1 and 3: the numbers of draws are fixed, so the mean does not vary.
    log_w = torch.tensor([1.0, 3.0]).repeat(50).log().unsqueeze(1)
    component = torch.arange(100) % 2
    assert sampling_std_error(log_w, component).item() < 1e-12
    assert sampling_std_error(log_w).item() == pytest.approx((100 / 99) ** 0.5 / 2 / 10)
    assert sampling_std_error(log_w, component * 0).item() == sampling_std_error(log_w).item()
    # One draw of a component has no variance that could be known: that of all draws is taken.
    log_w = normal(6, 3)
    torch.testing.assert_close(sampling_std_error(log_w, torch.tensor([0, 0, 0, 0, 0, 1])), sampling_std_error(log_w))


def test_variance_within_strata_agrees_with_a_computation_by_hand():
    w = normal(30, 2).double().exp()
    component = torch.tensor([0] * 20 + [1] * 10)
    variance = (20 * w[:20].var(0) + 10 * w[20:].var(0)) / 30**2
    torch.testing.assert_close(log_mean_std_error(w.log(), component), variance.sqrt() / w.mean(0))
    corrected = bias_corrected_log_mean(w.log(), component)
    torch.testing.assert_close(corrected, w.mean(0).log() + variance / w.mean(0) ** 2 / 2)


def test_component_shares_agree_with_a_computation_by_hand():
    log_w = torch.tensor([[1.0, 2.0], [3.0, 2.0], [4.0, 4.0]]).log()
    shares = component_shares(log_w, torch.tensor([0, 2, 0]), 3)
    torch.testing.assert_close(shares, torch.tensor([[5 / 8, 6 / 8], [0.0, 0.0], [3 / 8, 2 / 8]], dtype=torch.float64))


@pytest.mark.parametrize("num_particles", [100, 333, 2000])
def test_smoothed_weights_agree_with_arviz(num_particles: int) -> None:
    log_w = 1.5 * normal(num_particles, 5)
    ours = pareto_smoothed_log_weights(log_w)
    theirs = torch.from_numpy(arviz_psis(log_w)[0]).T
    torch.testing.assert_close(ours - ours.logsumexp(0), theirs - theirs.logsumexp(0), rtol=0, atol=1e-3)
    untouched = ours == log_w.double()
    assert untouched.sum(0).min() >= 0.7 * num_particles
    assert (ours.amax(0) <= log_w.double().amax(0)).all()


def test_too_few_weights_are_not_smoothed() -> None:
    log_w = normal(10, 3)
    torch.testing.assert_close(pareto_smoothed_log_weights(log_w), log_w.double(), rtol=0, atol=0)
    equal = torch.zeros(100, 2)
    torch.testing.assert_close(pareto_smoothed_log_weights(equal), equal.double(), rtol=0, atol=0)


@pytest.mark.parametrize(("df", "expected"), [(1, 12.706), (4, 2.776), (30, 2.042), (math.inf, 1.960)])
def test_critical_values_of_t_are_those_of_tables(df, expected):
    assert student_t_critical(0.95, df) == pytest.approx(expected, abs=5e-4)
    assert math.isnan(student_t_critical(0.95, 0))


def test_joint_critical_values_divide_the_error_among_the_differences():
    assert joint_critical(0.95, 5, 66) == pytest.approx(scipy.stats.t.ppf(1 - 0.025 / 66, 4), rel=1e-4)
    assert math.isnan(joint_critical(0.95, 1, 3))
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 95"):
        joint_critical(95, 5, 3)
    with pytest.raises(ValueError, match="must be at least 1, got 5 and 0"):
        joint_critical(0.95, 5, 0)
