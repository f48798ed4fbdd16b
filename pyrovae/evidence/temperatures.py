"""Schedules of inverse temperatures, from a start at 0 to the posterior at 1."""

import torch
from torch import Tensor


def linear_schedule(num_temperatures: int) -> Tensor:
    """Inverse temperatures b_t = t / T, with shape (T + 1,)."""
    check_count("num_temperatures", num_temperatures)
    return torch.linspace(0, 1, num_temperatures + 1, dtype=torch.float64)


def sigmoidal_schedule(num_temperatures: int, steepness: float = 4.0) -> Tensor:
    """Inverse temperatures that are dense at both ends, with shape (T + 1,).

    b_t = (s_t - s_0) / (s_T - s_0),   s_t = sigmoid(d (2 t / T - 1)),

    with steepness d (Grosse, Ghahramani, Adams 2015, https://arxiv.org/abs/1511.02543, section 6).
    """
    check_count("num_temperatures", num_temperatures)
    if not steepness > 0:
        raise ValueError(f"steepness must be positive, got {steepness}")
    s = torch.sigmoid(steepness * (2 * linear_schedule(num_temperatures) - 1))
    betas = (s - s[0]) / (s[-1] - s[0])
    betas[-1] = 1.0
    return betas


def check_betas(betas: Tensor, **counts: int) -> Tensor:
    """The inverse temperatures in float64, after seeing that they rise from 0 to 1 and that counts are positive."""
    for name, value in counts.items():
        check_count(name, value)
    betas = torch.as_tensor(betas, dtype=torch.float64)
    sound = betas.dim() == 1 and len(betas) > 1 and betas[0] == 0 and betas[-1] == 1 and bool((betas.diff() > 0).all())
    if not sound:
        raise ValueError(
            "betas must rise from 0 to 1, each above the one before; take linear_schedule(T), sigmoidal_schedule(T) or "
            "adaptive_schedule(T, ...)"
        )
    return betas.cpu()


def check_count(name: str, value: int) -> None:
    """Raise a ValueError if a count is below 1."""
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
