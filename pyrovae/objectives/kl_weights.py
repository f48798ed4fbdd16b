"""KL weights and penalties for `fit`: schedules, capacities, free bits, constraints.

Each weights the KL divergence against E_q[log p(x|z)], both per datum and in nats. The reported ELBO has weight 1.
`fit` keeps the epoch with the best objective, or the last one.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

Per = Literal["dimension", "site", "total"]


class KLWeight(ABC):
    """Base of the weights b of the KL divergence in E_q[log p(x|z)] - b KL(q(z|x), p(z)).

    To add a schedule, write a constructor, whose arguments become flags, and `__call__`.

    Attributes:
        validation_weight: KL weight of the validation objective, by default 1, the final weight of the schedules; None
            if the last epoch is kept, not the best.
    """

    validation_weight: float | None = 1.0

    @abstractmethod
    def __call__(self, epoch: float) -> float:
        """Return the weight b at a time.

        Args:
            epoch: Number of passes over the data, with fractions.
        """


class Beta(KLWeight):
    """Constant weight (beta-VAE), b(t) = beta.

    With weight 0 the reconstruction is the objective, as in an autoencoder with noise.

    Higgins et al., "beta-VAE: learning basic visual concepts with a constrained variational framework" (ICLR 2017,
    https://openreview.net/forum?id=Sy2fzU9gl).

    Args:
        beta: Weight of the KL divergence.

    Raises:
        ValueError: If `beta` is negative.
    """

    def __init__(self, beta: float = 4.0) -> None:
        self.beta = self.validation_weight = _at_least_zero("beta", beta)

    def __call__(self, epoch: float) -> float:
        """Return the weight after `epoch` passes over the data."""
        return self.beta


class LinearWarmup(KLWeight):
    """Weight that rises linearly from 0 to 1 and stays 1, b(t) = min(1, t / epochs).

    Sonderby et al., "Ladder variational autoencoders" (NeurIPS 2016, https://arxiv.org/abs/1602.02282). There it keeps
    latents active that would be pruned early in training.

    Args:
        epochs: Number of passes over the data until the weight is 1.

    Raises:
        ValueError: If `epochs` is not positive.

    Example:
        >>> [LinearWarmup(epochs=4)(t) for t in (0.0, 1.0, 8.0)]
        [0.0, 0.25, 1.0]
    """

    def __init__(self, epochs: float = 10.0) -> None:
        self.epochs = _positive("epochs", epochs)

    def __call__(self, epoch: float) -> float:
        """Return the weight after `epoch` passes over the data."""
        return min(1.0, epoch / self.epochs)


class CyclicalWarmup(KLWeight):
    """Weight that rises linearly from 0 to 1 in each of several cycles, and then stays 1.

        b(t) = min(1, (t mod epochs) / (rise epochs)) for t < cycles epochs

    Fu et al., "Cyclical annealing schedule: a simple approach to mitigating KL vanishing" (NAACL 2019,
    https://arxiv.org/abs/1903.10145).

    Args:
        epochs: Number of passes over the data in one cycle.
        cycles: Number of cycles.
        rise: Share of a cycle in which the weight rises.

    Raises:
        ValueError: If `epochs` or `cycles` is not positive, or `rise` lies outside 0 to 1.

    Example:
        >>> [CyclicalWarmup(epochs=8, cycles=2)(t) for t in (0, 2, 4, 7, 9, 16)]
        [0.0, 0.5, 1.0, 1.0, 0.25, 1.0]
    """

    def __init__(self, epochs: float = 10.0, cycles: int = 4, rise: float = 0.5) -> None:
        self.epochs, self.cycles = _positive("epochs", epochs), int(_positive("cycles", cycles))
        if not 0 < rise <= 1:
            raise ValueError(f"rise must be above 0 and at most 1, got {rise}")
        self.rise = rise

    def __call__(self, epoch: float) -> float:
        """Return the weight after `epoch` passes over the data."""
        if epoch >= self.cycles * self.epochs:
            return 1.0
        return min(1.0, (epoch % self.epochs) / (self.rise * self.epochs))


class ShapedKL(KLWeight):
    """Base of penalties f of the KL divergence, in E_q[log p(x|z)] - b f(mean of KL over the batch).

    `fit` needs Pyro's Trace_ELBO or TraceMeanField_ELBO, and splits it into reconstruction and divergence.

    Attributes:
        per: Argument of f: the divergence of each "dimension" of each latent, of each latent "site", or the "total".
        target: Target of f in nats, which may change between epochs; NaN if f has none. It is a tensor, so that
            recorded steps follow its changes.
    """

    per: Per = "total"
    validation_weight = None

    def __init__(self) -> None:
        self.target = torch.tensor(math.nan, dtype=torch.float64)

    def __call__(self, epoch: float) -> float:
        """Return the weight b after `epoch` passes over the data."""
        return 1.0

    def target_at(self, epoch: float) -> float:
        """Return the target after `epoch` passes over the data."""
        return math.nan

    @abstractmethod
    def shape(self, kl: Tensor) -> Tensor:
        """Compute the penalty f, a scalar in nats.

        Args:
            kl: Mean KL divergence over the batch, by group, in nats, with shape (G,).
        """


class Capacity(ShapedKL):
    """Penalty on the distance of the KL divergence from a rising capacity.

        E_q[log p(x|z)] - gamma |KL - C(t)|,  C(t) = final min(1, t / epochs)

    Burgess et al., "Understanding disentangling in beta-VAE" (2018, https://arxiv.org/abs/1804.03599), eq. 8. KL is the
    mean over the batch, in nats per datum.

    Args:
        final: Final capacity in nats.
        epochs: Number of passes over the data until the final capacity.
        gamma: Weight of the distance.

    Raises:
        ValueError: If `final` or `gamma` is negative, or `epochs` is not positive.
    """

    def __init__(self, final: float = 25.0, epochs: float = 100.0, gamma: float = 100.0) -> None:
        super().__init__()
        self.final, self.gamma = _at_least_zero("final", final), _at_least_zero("gamma", gamma)
        self.epochs = _positive("epochs", epochs)

    def __call__(self, epoch: float) -> float:
        """Return gamma."""
        return self.gamma

    def target_at(self, epoch: float) -> float:
        """Return the capacity C(t)."""
        return self.final * min(1.0, epoch / self.epochs)

    def shape(self, kl: Tensor) -> Tensor:
        """Compute the distance of the divergence from the capacity."""
        return (kl.sum() - self.target).abs()


class FreeBits(ShapedKL):
    """Penalty on the KL divergence of each group above a free allowance (free bits).

        E_q[log p(x|z)] - sum_g max(nats, KL_g)

    KL_g is the mean divergence of group g over the batch. Kingma et al., "Improved variational inference with inverse
    autoregressive flow" (NeurIPS 2016, https://arxiv.org/abs/1606.04934), appendix C.8. Groups by dimension need a
    guide and a prior that are independent over dimensions.

    Args:
        nats: Free nats of each group.
        per: Groups: each "dimension" of each latent, each latent "site", or the "total" of all latents.

    Raises:
        ValueError: If `nats` is negative or `per` is unknown.
    """

    def __init__(self, nats: float = 0.25, per: Per = "dimension") -> None:
        super().__init__()
        if per not in ("dimension", "site", "total"):
            raise ValueError(f'per must be "dimension", "site" or "total", got {per!r}')
        self.nats, self.per = _at_least_zero("nats", nats), per

    def shape(self, kl: Tensor) -> Tensor:
        """Sum the divergences of the groups, each at least the free nats."""
        return kl.clamp_min(self.nats).sum()


class LearnedKLWeight(KLWeight):
    """Base of weights that are Lagrange multipliers of a constraint, learned by gradient ascent.

        log b += rate clip(excess, -1, 1)

    The excess, in nats per datum, is a running average over steps. It is zero if the constraint is met with equality,
    and then log b stays constant. One step changes log b by at most `rate`, and by less within a nat of the constraint.
    Each call of `fit` starts at b = 1. The object keeps the last weight, which the call `weight(0)` returns.

    Args:
        rate: Largest change of log b in one step.
        smoothing: Share of the past in the running average of the excess.
        lowest: Smallest b.
        highest: Largest b.

    Raises:
        ValueError: If a number is out of range.
    """

    validation_weight = None

    def __init__(self, rate: float, smoothing: float, lowest: float, highest: float) -> None:
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing must be at least 0 and below 1, got {smoothing}")
        if not 0 < lowest <= 1 <= highest:
            raise ValueError(
                f"lowest and highest must enclose the initial weight 1, got {lowest} and {highest}; give "
                "lowest at most 1 and highest at least 1"
            )
        self.rate, self.smoothing, self.lowest, self.highest = _positive("rate", rate), smoothing, lowest, highest
        self.weight = torch.ones((), dtype=torch.float64)
        self.average = torch.zeros((), dtype=torch.float64)

    def __call__(self, epoch: float) -> float:
        """Return the current weight. It does not depend on `epoch`."""
        return self.weight.item()

    @abstractmethod
    def excess(self, reconstruction: Tensor, kl: Tensor) -> Tensor:
        """Compute the excess in nats per datum, positive if the weight must rise.

        Args:
            reconstruction: Mean of E_q[log p(x|z)] over the batch, a scalar.
            kl: Mean of KL(q(z|x), p(z)) over the batch, a scalar.
        """

    def learn(self, reconstruction: Tensor, kl: Tensor) -> None:
        """Update the weight with the means of one batch.

        Args:
            reconstruction: Mean of E_q[log p(x|z)] over the batch, a scalar.
            kl: Mean of KL(q(z|x), p(z)) over the batch, a scalar.
        """
        self.average.lerp_(self.excess(reconstruction, kl).double(), 1 - self.smoothing)
        self.weight.mul_((self.rate * self.average.clamp(-1, 1)).exp()).clamp_(self.lowest, self.highest)

    def reset(self) -> None:
        """Return to the initial weight 1, at which each call of `fit` starts."""
        self.weight.fill_(1.0)
        self.average.fill_(0.0)

    def state(self) -> dict[str, Any]:
        """Return the state that a resumed run needs."""
        return {"weight": self.weight, "average": self.average}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state of an earlier run."""
        self.weight.copy_(state["weight"])
        self.average.copy_(state["average"])


class KLConstraint(LearnedKLWeight):
    """Multiplier b of an upper limit on the KL divergence.

        max E_q[log p(x|z)] subject to KL(q(z|x), p(z)) <= limit

    The Lagrangian is E_q[log p(x|z)] - b (KL - limit). By the Karush-Kuhn-Tucker conditions, the beta of a beta-VAE is
    the multiplier of this constraint (Higgins et al. 2017, https://openreview.net/forum?id=Sy2fzU9gl, eq. 2-3). The
    divergence is the mean over the data, in nats per datum.

    Args:
        limit: Largest divergence, in nats per datum.
        rate: Largest change of log b in one step.
        smoothing: Share of the past in the running average of KL - limit.
        lowest: Smallest b, reached if the constraint does not bind.
        highest: Largest b.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        limit: float = 10.0,
        rate: float = 0.01,
        smoothing: float = 0.9,
        lowest: float = 1e-3,
        highest: float = 1e3,
    ) -> None:
        super().__init__(rate, smoothing, lowest, highest)
        self.limit = _at_least_zero("limit", limit)

    def excess(self, reconstruction: Tensor, kl: Tensor) -> Tensor:
        """Compute KL - limit."""
        return kl - self.limit


class GECO(LearnedKLWeight):
    """Inverse multiplier b of an upper limit on the reconstruction error.

        min KL(q(z|x), p(z)) subject to -E_q[log p(x|z)] <= tolerance

    Rezende, Viola, "Taming VAEs" (2018, https://arxiv.org/abs/1810.00597), with the log-likelihood as reconstruction.
    Their multiplier is 1/b. Both terms are means over the data, in nats per datum.

    Args:
        tolerance: Largest -E_q[log p(x|z)], in nats per datum.
        rate: Largest change of log b in one step.
        smoothing: Share of the past in the running average of the constraint.
        lowest: Smallest b, reached if the constraint cannot be met.
        highest: Largest b, reached if the constraint does not bind.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        tolerance: float,
        rate: float = 0.01,
        smoothing: float = 0.9,
        lowest: float = 1e-3,
        highest: float = 1e3,
    ) -> None:
        super().__init__(rate, smoothing, lowest, highest)
        self.tolerance = tolerance

    def excess(self, reconstruction: Tensor, kl: Tensor) -> Tensor:
        """Compute tolerance + E_q[log p(x|z)], the unused part of the tolerance."""
        return self.tolerance + reconstruction


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
    return value


def _at_least_zero(name: str, value: float) -> float:
    if not value >= 0:
        raise ValueError(f"{name} must be at least 0, got {value}")
    return value
