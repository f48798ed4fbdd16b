"""A property of data improved through latent space, and the gain checked on decoded data."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrovae.densities import Program, entry
from pyrovae.diagnostics.codes import Codes
from pyrovae.diagnostics.places import LatentSpace

_PENALTIES = tuple(10.0**power for power in range(-6, 5))
_DATA_PER_FEATURE = 3  # from which the predictor is quadratic
_PRIOR_DRAWS = 4000
_PROJECTIONS = 20
_HALVINGS = 12
_INSIDE = 1e-3  # nats: how far log p(z) may lie outside the typical set


class Ascent(NamedTuple):
    """Path through latent space on which a predicted property rises, inside the prior's typical set.

    Attributes:
        z: Places, with shape (T, J), from the start to the end.
        means: Means E[x|z], with shape (T, D).
        predicted: Property by the predictor, in its own unit, with shape (T,).
        measured: Property of the decoded means, with shape (T,).
        log_prior: log p(z) in nats, with shape (T,).
        typical: Lowest and highest log p(z) of the typical set, in nats.
        skill: R^2 of the predictor at data that were left out, one at a time; 0 is that of the mean, and it can be
            negative.
        centre: Mean of the property of the data.
        spread: Standard deviation of the property of the data.
        quadratic: Whether the predictor has products of latents; if not, it is linear.
    """

    z: Tensor
    means: Tensor
    predicted: Tensor
    measured: Tensor
    log_prior: Tensor
    typical: tuple[float, float]
    skill: float
    centre: float
    spread: float
    quadratic: bool

    @property
    def predicted_gain(self) -> float:
        """Gain from start to end by the predictor."""
        return float(self.predicted[-1] - self.predicted[0])

    @property
    def measured_gain(self) -> float:
        """Gain from start to end, measured on decoded means. This is the gain to believe."""
        return float(self.measured[-1] - self.measured[0])


@entry()
def ascend_property(
    model: Program,
    *args: Any,
    codes: Codes,
    values: Tensor,
    measure: Callable[[Tensor], Tensor],
    start: Tensor | int = 0,
    num_steps: int = 40,
    step: float = 0.25,
    typical_share: float = 0.95,
    seed: int = 0,
    **kwargs: Any,
) -> Ascent:
    """Climb a predictor of a property through latent space, and measure the property of what is decoded.

    The predictor is a ridge regression of the property on draws z ~ q(z|x), quadratic if there are three data for each
    of its terms, with the penalty that has the smallest error at left-out data. It is unreliable where it has seen no
    codes, so the climb stays where the prior has its mass: log p(z) between the quantiles that hold typical_share of
    the prior's draws (by default 2.5 and 97.5 %). In many dimensions that is a shell, for N(0, I) of radius about
    sqrt(J). Each step has a length in standard deviations of the prior, returns to the typical set along the gradient
    of log p(z), and is halved until the prediction rises.

    Args:
        model: Pyro program p(z) p(x|z), with one observed site.
        *args: Positional arguments of the model for one datum, with shape (1, ...).
        codes: Codes of N data.
        values: Property of these data, with shape (N,).
        measure: Function that computes the property of data with shape (M, D), as a tensor with shape (M,).
        start: Place to begin at, with shape (J,), or the number of a datum, for its draw of q(z|x).
        num_steps: Largest number of steps.
        step: Length of a step, in standard deviations of the prior.
        typical_share: Share of the prior inside the typical set.
        seed: Random seed; the global random state is restored at the end.
        **kwargs: Keyword arguments of the model for one datum.

    Raises:
        ValueError: If there is not one finite value for each datum, or all are equal, or there are fewer than 10 data,
            or as `decode_means`.
    """
    values = values.detach().double().cpu()
    if values.shape != (len(codes.draw),) or len(values) < 10 or not bool(values.isfinite().all()):
        raise ValueError(
            f"values must be finite, one for each of the {len(codes.draw)} codes and at least 10, got shape "
            f"{tuple(values.shape)}; leave out data without a value"
        )
    if not float(values.std()) > 0:
        raise ValueError(f"all values are {float(values[0])}, so there is nothing to predict; choose another property")
    predictor = _Predictor(codes.draw, values)
    space = LatentSpace(model, args, kwargs, codes.sites, seed)
    climb = _Climb(space, predictor, step, typical_share)
    z = climb.inside((codes.draw[start] if isinstance(start, int) else start.double().cpu())[None])
    path = [z]
    for _ in range(num_steps):
        following = climb.following(path[-1])
        if following is None:
            break
        path.append(following)
    z = torch.cat(path)
    means = space.decode(z)
    with torch.no_grad():
        predicted, log_p = predictor(z), space.log_prior(z)
    measured = measure(means).detach().double().cpu()
    if measured.shape != (len(means),):
        raise ValueError(
            f"measure must return shape ({len(means)},) for {len(means)} data, got {tuple(measured.shape)}"
        )
    typical = climb.low, climb.high
    about = predictor.skill, float(values.mean()), float(values.std()), predictor.quadratic
    return Ascent(z, means, predicted, measured, log_p, typical, *about)


class _Predictor:
    """Ridge regression on codes and, given enough data, their products."""

    def __init__(self, z: Tensor, values: Tensor) -> None:
        self.centre, self.scale = z.mean(0), z.std(0).clamp_min(1e-12)
        count = z.shape[1]
        self.pairs = torch.triu_indices(count, count)
        self.quadratic = len(z) >= _DATA_PER_FEATURE * (count + self.pairs.shape[1])
        features = self._features(z)
        self.mean, self.offset = features.mean(0), values.mean()
        left, singular, right = torch.linalg.svd(features - self.mean, full_matrices=False)
        target = left.T @ (values - self.offset)
        best: tuple[Tensor, Tensor] | None = None
        for penalty in _PENALTIES:
            shrink = singular.square() / (singular.square() + penalty * len(z))
            leverage = (left.square() * shrink).sum(1) + 1 / len(z)
            residual = values - self.offset - left @ (shrink * target)
            error = (residual / (1 - leverage).clamp_min(1e-6)).square().mean()
            if best is None or error < best[0]:
                best = error, shrink / singular.clamp_min(1e-12) * target
        assert best is not None
        self.weight = right.T @ best[1]
        # The mean of the other data is the predictor to beat.
        alone = (values - self.offset) * len(z) / (len(z) - 1)
        self.skill = 1 - float(best[0] / alone.square().mean())

    def _features(self, z: Tensor) -> Tensor:
        u = (z - self.centre) / self.scale
        return torch.cat([u, u[:, self.pairs[0]] * u[:, self.pairs[1]]], 1) if self.quadratic else u

    def __call__(self, z: Tensor) -> Tensor:
        """Predict at places with shape (M, J); the result has shape (M,)."""
        return self.offset + (self._features(z) - self.mean) @ self.weight


class _Climb:
    """Steps that raise a predictor inside the prior's typical set."""

    def __init__(self, space: LatentSpace, predictor: _Predictor, step: float, share: float) -> None:
        self.space, self.predictor, self.step = space, predictor, step
        with torch.no_grad():
            draws = space.prior(_PRIOR_DRAWS)
            log_p = space.log_prior(draws)
        self.scale = draws.std(0).clamp_min(1e-12)
        ends = torch.tensor([(1 - share) / 2, (1 + share) / 2], dtype=torch.float64)
        self.low, self.high = log_p.quantile(ends).tolist()

    def inside(self, z: Tensor) -> Tensor:
        """Move a place, with shape (1, J), along the gradient of log p(z) into the typical set."""
        for _ in range(_PROJECTIONS):
            value, slope = _value_and_slope(self.space.log_prior, z, self.scale)
            missing = max(self.low - value, 0.0) + min(self.high - value, 0.0)
            if missing == 0 or not float(slope.norm()) > 0:
                break
            z = z + self.scale * slope * missing / slope.square().sum()
        return z

    def following(self, z: Tensor) -> Tensor | None:
        """Return the next place; None if no step raises the prediction."""
        value, slope = _value_and_slope(self.predictor, z, self.scale)
        if not float(slope.norm()) > 0:
            return None
        length = self.step
        for _ in range(_HALVINGS):
            candidate = self.inside(z + self.scale * length * slope / slope.norm())
            with torch.no_grad():
                log_p, found = float(self.space.log_prior(candidate)), float(self.predictor(candidate))
            if self.low - _INSIDE <= log_p <= self.high + _INSIDE and found > value:
                return candidate
            length /= 2
        return None


def _value_and_slope(function: Callable[[Tensor], Tensor], z: Tensor, scale: Tensor) -> tuple[float, Tensor]:
    """Compute a function at one place, and its gradient per standard deviation of the prior, with shape (1, J)."""
    with torch.enable_grad():
        place = z.detach().requires_grad_()
        value = function(place).sum()
        (slope,) = torch.autograd.grad(value, place)
    return float(value.detach()), slope * scale
