"""What `fit` optimises beyond Pyro's own ELBOs: weights of the KL divergence that change in the course of training."""

from abc import ABC, abstractmethod


class KLWeight(ABC):
    """Base of the schedules of the KL divergence's weight b in E_q[log p(x|z)] - b KL(q(z|x), p(z)).

    A new one is a constructor whose arguments have defaults, which become flags, and a call.
    """

    @abstractmethod
    def __call__(self, epoch: float) -> float:
        """The weight after so many passes over the data, a fraction within the first."""


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
        if not epochs > 0:
            raise ValueError(f"epochs must be positive, got {epochs}")
        self.epochs = epochs

    def __call__(self, epoch: float) -> float:
        """The weight after so many passes over the data."""
        return min(1.0, epoch / self.epochs)
