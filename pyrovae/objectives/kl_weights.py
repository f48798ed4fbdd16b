"""What `fit` puts in front of the KL divergence, or in its place: schedules, capacities, free bits, and constraints.

All weigh the divergence against E_q[log p(x|z)], both per datum and in nats. What is reported stays the ELBO with
weight 1; the epoch that is kept is the best by what is optimised, or the last.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

Per = Literal["dimension", "site", "total"]


class KLWeight(ABC):
    """Base of the schedules of the KL divergence's weight b in E_q[log p(x|z)] - b KL(q(z|x), p(z)).

    A new one is a constructor whose arguments have defaults, which become flags, and a call.

    Attributes:
        lasting: The weight by which validation data choose the best epoch: what the schedule comes to, 1 unless a class
            says otherwise; None where the last epoch is kept, since no one number is maximised.
    """

    lasting: float | None = 1.0

    @abstractmethod
    def __call__(self, epoch: float) -> float:
        """The weight after so many passes over the data, a fraction within the first."""


class Beta(KLWeight):
    """Weight that stays as it is: b(t) = beta; 0 leaves the reconstruction alone, an autoencoder with noise.

    Higgins et al., "beta-VAE: learning basic visual concepts with a constrained variational framework" (ICLR 2017,
    https://openreview.net/forum?id=Sy2fzU9gl).

    Args:
        beta: The weight.

    Raises:
        ValueError: If beta is negative.
    """

    def __init__(self, beta: float = 4.0) -> None:
        self.beta = self.lasting = _at_least_zero("beta", beta)

    def __call__(self, epoch: float) -> float:
        """The weight after so many passes over the data."""
        return self.beta


class LinearWarmup(KLWeight):
    """Weight that rises in a straight line from 0 to 1, and stays there: b(t) = min(1, t / epochs).

    Sonderby et al., "Ladder variational autoencoders" (NeurIPS 2016, https://arxiv.org/abs/1602.02282), where it keeps
    latents in use that would be pruned early.

    Args:
        epochs: Passes over the data until the weight is 1.

    Raises:
        ValueError: If epochs is not positive.

    Example:
        >>> [LinearWarmup(epochs=4)(t) for t in (0.0, 1.0, 8.0)]
        [0.0, 0.25, 1.0]
    """

    def __init__(self, epochs: float = 10.0) -> None:
        self.epochs = _positive("epochs", epochs)

    def __call__(self, epoch: float) -> float:
        """The weight after so many passes over the data."""
        return min(1.0, epoch / self.epochs)


class CyclicalWarmup(KLWeight):
    """Weight that rises from 0 to 1 again and again: b(t) = min(1, (t mod epochs) / (rise epochs)), then stays 1.

    Fu et al., "Cyclical annealing schedule: a simple approach to mitigating KL vanishing" (NAACL 2019,
    https://arxiv.org/abs/1903.10145).

    Args:
        epochs: Passes over the data in one cycle.
        cycles: How many; from then on the weight is 1.
        rise: The share of a cycle in which the weight rises.

    Raises:
        ValueError: If epochs or cycles is not positive, or rise lies outside 0 to 1.

    Example:
        >>> [CyclicalWarmup(epochs=8, cycles=2)(t) for t in (0, 2, 4, 7, 9, 16)]
        [0.0, 0.5, 1.0, 1.0, 0.25, 1.0]
    """

    def __init__(self, epochs: float = 10.0, cycles: int = 4, rise: float = 0.5) -> None:
        self.epochs, self.cycles = _positive("epochs", epochs), int(_positive("cycles", cycles))
        if not 0 < rise <= 1:
            raise ValueError(f"rise is a share of the cycle, above 0 and at most 1, got {rise}")
        self.rise = rise

    def __call__(self, epoch: float) -> float:
        """The weight after so many passes over the data."""
        if epoch >= self.cycles * self.epochs:
            return 1.0
        return min(1.0, (epoch % self.epochs) / (self.rise * self.epochs))


class ShapedKL(KLWeight):
    """Base of functions that stand in the divergence's place: E_q[log p(x|z)] - b f(mean over the batch of KL).

    `fit` takes the reconstruction and the divergence of Pyro's Trace_ELBO or TraceMeanField_ELBO apart for them.

    Attributes:
        per: What f is given: the divergence of each "dimension" of each latent, of each latent "site", or the "total".
        target: A number that f may use and that changes with the passes over the data, in nats; NaN where there is
            none. A tensor, so that recorded steps see it change.
    """

    per: Per = "total"
    lasting = None

    def __init__(self) -> None:
        self.target = torch.tensor(math.nan, dtype=torch.float64)

    def __call__(self, epoch: float) -> float:
        """The weight b after so many passes over the data."""
        return 1.0

    def target_at(self, epoch: float) -> float:
        """The target after so many passes over the data."""
        return math.nan

    @abstractmethod
    def shape(self, kl: Tensor) -> Tensor:
        """F of the batch's mean divergences per datum, with shape (G,), in nats; a scalar."""


class Capacity(ShapedKL):
    """Divergence held at a capacity that rises: E_q[log p(x|z)] - gamma |KL - C(t)|, C(t) = final min(1, t / epochs).

    Burgess et al., "Understanding disentangling in beta-VAE" (2018, https://arxiv.org/abs/1804.03599), eq. 8, KL being
    the batch's mean per datum, in nats.

    Args:
        final: The capacity at the end, in nats.
        epochs: Passes over the data until it is reached.
        gamma: How strictly the divergence is held.

    Raises:
        ValueError: If final or gamma is negative, or epochs is not positive.
    """

    def __init__(self, final: float = 25.0, epochs: float = 100.0, gamma: float = 100.0) -> None:
        super().__init__()
        self.final, self.gamma = _at_least_zero("final", final), _at_least_zero("gamma", gamma)
        self.epochs = _positive("epochs", epochs)

    def __call__(self, epoch: float) -> float:
        """Gamma."""
        return self.gamma

    def target_at(self, epoch: float) -> float:
        """The capacity C(t)."""
        return self.final * min(1.0, epoch / self.epochs)

    def shape(self, kl: Tensor) -> Tensor:
        """The distance from the capacity."""
        return (kl.sum() - self.target).abs()


class FreeBits(ShapedKL):
    """Divergence that costs nothing up to so many nats: E_q[log p(x|z)] - sum_g max(nats, KL_g).

    KL_g is the batch's mean divergence of group g: a dimension of a latent, or a whole latent site. Kingma et al.,
    "Improved variational inference with inverse autoregressive flow" (NeurIPS 2016, https://arxiv.org/abs/1606.04934),
    appendix C.8. A dimension has a divergence of its own where guide and prior are independent over dimensions.

    Args:
        nats: Free nats of each group.
        per: The groups: "dimension", "site", or "total" for one of all latents.

    Raises:
        ValueError: If nats is negative or per is another word.
    """

    def __init__(self, nats: float = 0.25, per: Per = "dimension") -> None:
        super().__init__()
        if per not in ("dimension", "site", "total"):
            raise ValueError(f'per must be "dimension", "site" or "total", got {per!r}')
        self.nats, self.per = _at_least_zero("nats", nats), per

    def shape(self, kl: Tensor) -> Tensor:
        """The divergences, each at least the free nats."""
        return kl.clamp_min(self.nats).sum()


class LearnedKLWeight(KLWeight):
    """Base of weights that are multipliers of a constraint, learned by ascent: log b += rate clip(excess, -1, 1).

    The excess, in nats per datum, is averaged over the latest steps; where the constraint is met, log b stands still.
    So log b moves by rate at most in one step, and slower within a nat of the constraint.

    Args:
        rate: The largest change of log b in one step.
        smoothing: The share of the past in the running average of the excess.
        lowest: Least b.
        highest: Largest b.

    Raises:
        ValueError: If a number is out of range.
    """

    lasting = None

    def __init__(self, rate: float, smoothing: float, lowest: float, highest: float) -> None:
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing must be at least 0 and below 1, got {smoothing}")
        if not 0 < lowest <= 1 <= highest:
            raise ValueError(f"lowest and highest must enclose 1, where the weight starts, got {lowest}, {highest}")
        self.rate, self.smoothing, self.lowest, self.highest = _positive("rate", rate), smoothing, lowest, highest
        self.weight = torch.ones((), dtype=torch.float64)
        self.average = torch.zeros((), dtype=torch.float64)

    def __call__(self, epoch: float) -> float:
        """The weight as it is now, whatever the epoch."""
        return self.weight.item()

    @abstractmethod
    def excess(self, reconstruction: Tensor, kl: Tensor) -> Tensor:
        """By how many nats the weight is too low: above 0 where it should rise.

        Args:
            reconstruction: Mean of E_q[log p(x|z)] over the batch, a scalar.
            kl: Mean of KL(q(z|x), p(z)) over the batch, a scalar.
        """

    def learn(self, reconstruction: Tensor, kl: Tensor) -> None:
        """Take a step with what the batch gave."""
        self.average.lerp_(self.excess(reconstruction, kl).double(), 1 - self.smoothing)
        self.weight.mul_((self.rate * self.average.clamp(-1, 1)).exp()).clamp_(self.lowest, self.highest)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"weight": self.weight, "average": self.average}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on as the run of this state did."""
        self.weight.copy_(state["weight"])
        self.average.copy_(state["average"])


class KLConstraint(LearnedKLWeight):
    """Reconstruction maximised subject to a divergence: max E_q[log p(x|z)] with KL(q(z|x), p(z)) <= limit.

    The Lagrangian is E_q[log p(x|z)] - b (KL - limit): beta of the beta-VAE is the multiplier b of this constraint, by
    the conditions of Karush, Kuhn and Tucker (Higgins et al. 2017, https://openreview.net/forum?id=Sy2fzU9gl, eq. 2-3).
    The divergence is a mean over data, in nats per datum.

    Args:
        limit: The largest divergence.
        rate: The largest change of log b in one step.
        smoothing: The share of the past in the running average of KL - limit.
        lowest: Least b; near it the constraint does not bind.
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
        """KL - limit."""
        return kl - self.limit


class GECO(LearnedKLWeight):
    """Divergence minimised subject to a reconstruction: min KL(q(z|x), p(z)) with -E_q[log p(x|z)] <= tolerance.

    Rezende, Viola, "Taming VAEs" (2018, https://arxiv.org/abs/1810.00597), with the log-likelihood as reconstruction;
    the multiplier of their constraint is 1/b. Both are means over data, in nats per datum.

    Args:
        tolerance: The largest -E_q[log p(x|z)].
        rate: The largest change of log b in one step.
        smoothing: The share of the past in the running average of the constraint.
        lowest: Least b; there the constraint cannot be met.
        highest: Largest b; there it does not bind.

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
        """Tolerance + E_q[log p(x|z)]: what is left of the tolerance."""
        return self.tolerance + reconstruction


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
    return value


def _at_least_zero(name: str, value: float) -> float:
    if not value >= 0:
        raise ValueError(f"{name} must be at least 0, got {value}")
    return value
