"""Steps of the log-gamma function against 40-digit arithmetic, with their derivatives."""

import mpmath
import pytest
import torch

from pyrovae.distributions.log_gamma import log_gamma_half_step


@pytest.mark.parametrize("x", [1e-30, 1e-3, 0.5, 1.0, 3.7, 50.0, 1e4, 1e8, 1e20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_half_steps_are_right_in_both_precisions(x, dtype):
    at = torch.tensor(x, dtype=dtype, requires_grad=True)
    with mpmath.workdps(40):
        given = mpmath.mpf(at.item())
        expected = float(mpmath.loggamma(given + 0.5) - mpmath.loggamma(given))
        slope = float(mpmath.digamma(given + 0.5) - mpmath.digamma(given))
    value = log_gamma_half_step(at)
    error = torch.finfo(dtype).eps
    assert value.item() == pytest.approx(expected, rel=4 * error, abs=max(6 * error, 3e-10))
    assert torch.autograd.grad(value, at)[0].item() == pytest.approx(slope, rel=max(20 * error, 1e-6))
