"""Positive parameters of likelihoods: fixed, learned, or outputs of the network, within smooth bounds."""

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from pyrovae.nn import bounded_exp, out_features

# A positive number (fixed), "global" (learned, one for all dimensions), "dimension" (learned, one per dimension), or
# "network" (an output of the network per datum and dimension).

Choice = float | Literal["global", "dimension", "network"]


class Positive(nn.Module):
    """Positive parameter of a likelihood: fixed, learned, or an output of the network.

    v is smoothly bounded: proportional to exp(a) well inside its bounds, with v(0) = start (see `bounded_exp`). A
    learned a is initially 0.

    Args:
        name: Name of the parameter in the constructor of the likelihood.
        choice: A positive number (fixed), "global" (learned, one for all dimensions), "dimension" (learned, one per
            dimension), or "network" (a is a block of outputs of the network).
        network: Network of the likelihood, which determines D for "dimension".
        num_blocks: Total number of blocks of D outputs of the network.
        start: Initial value v(0).
        bounds: Bounds (low, high) of v.

    Raises:
        ValueError: If choice is neither a positive number nor one of the words, or the bounds are not 0 < low < high.
    """

    def __init__(
        self,
        name: str,
        choice: Choice,
        network: nn.Module,
        num_blocks: int,
        *,
        start: float = 1.0,
        bounds: tuple[float, float] = (1e-6, 1e6),
    ) -> None:
        super().__init__()
        self.choice = choice
        self.start = start
        self.low, self.high = bounds
        if not 0 < self.low < self.high < math.inf:
            raise ValueError(f"{name}_bounds must be positive numbers low < high, got {tuple(bounds)}")
        if choice == "global":
            self.raw = nn.Parameter(torch.zeros(()))
        elif choice == "dimension":
            self.raw = nn.Parameter(torch.zeros(out_features(network) // num_blocks))
        elif choice != "network" and not (isinstance(choice, int | float) and 0 < choice < math.inf):
            raise ValueError(f'{name} must be a positive number, "global", "dimension" or "network", got {choice!r}')

    def forward(self, blocks: Iterator[Tensor]) -> Tensor | float:
        """Return v, with a shape that broadcasts against (..., D).

        Args:
            blocks: Remaining blocks of the network's output; the next one is used if choice is "network".
        """
        if not isinstance(self.choice, str):
            return self.choice
        raw = next(blocks) if self.choice == "network" else self.raw
        return bounded_exp(raw, start=self.start, low=self.low, high=self.high)

    def start_at(self, value: Tensor) -> None:
        """Start the parameters of the dimensions at values, as far as they lie well inside the bounds.

        Another choice than "dimension" stays as it is.

        Args:
            value: Values of v, with shape (D,); NaN for those that stay.
        """
        if self.choice == "dimension":
            room = (self.high / self.low) ** 0.15  # beyond which `bounded_exp` bends
            inside = torch.where(value.isnan(), self.start, value.clamp(self.low * room, self.high / room))
            with torch.no_grad():
                self.raw.copy_((inside / self.start).log())

    def extra_repr(self) -> str:
        """Show the choice, and the bounds unless the value is fixed."""
        bounds = f", low={self.low:g}, high={self.high:g}" if isinstance(self.choice, str) else ""
        return f"{self.choice!r}{bounds}"
