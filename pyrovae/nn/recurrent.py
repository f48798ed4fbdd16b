"""Recurrent networks for sequences."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from pyrovae.nn.base import Network, check_sizes


class RecurrentNet(Network):
    """Recurrent network from a flat sequence to a vector: gated recurrent units, then a linear layer on the last state.

    Its mirror on the decoder's side is `RecurrentDecoder`. Weights are initialised as torch's layers are, uniform on
    +-1/sqrt(hidden) in the units and on +-1/sqrt(fan_in) in the linear layer. Cho et al., "Learning phrase
    representations using RNN encoder-decoder" (EMNLP 2014, https://arxiv.org/abs/1406.1078).

    Args:
        in_features: Size T*F of a flat sequence, time first.
        out_features: Size of the last dimension of the output.
        shape: Shape (T, F) of the sequence, T steps of F features; None for one feature per step.
        hidden: Size of the recurrent state.
        num_layers: Number of layers of recurrent units.

    Raises:
        ValueError: If in_features is not the size of the sequence.
    """

    structured = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        shape: Sequence[int] | None = None,
        hidden: int = 100,
        num_layers: int = 1,
    ) -> None:
        super().__init__(in_features, out_features)
        self.shape = _sequence_shape(shape, in_features)
        if math.prod(self.shape) != in_features:
            raise ValueError(
                f"in_features must be {math.prod(self.shape)} for a sequence of shape {self.shape}, got {in_features}; "
                "give the sequence's shape"
            )
        check_sizes("hidden and num_layers", hidden, num_layers)
        self.units = nn.GRU(self.shape[1], hidden, num_layers, batch_first=True)
        self.last = nn.Linear(hidden, out_features)

    @classmethod
    def mirror(cls) -> type[Network]:
        """Return the decoder's network, `RecurrentDecoder`."""
        return RecurrentDecoder

    def forward(self, x: Tensor) -> Tensor:
        """Map x, with shape (..., T*F), to shape (..., out_features)."""
        _, state = self.units(x.reshape(-1, *self.shape))
        return self.last(state[-1]).reshape(*x.shape[:-1], self.out_features)


class RecurrentDecoder(Network):
    """Recurrent network from a vector to a flat sequence: gated recurrent units with the vector as input of every step.

    The mirror of `RecurrentNet`. Weights are initialised in the same way.

    Args:
        in_features: Size of the last dimension of the input.
        out_features: Size p*T*F of the output, p blocks of one number per value.
        shape: Shape (T, F) of the sequence, T steps of F features; None for one feature per step and p = 1.
        hidden: Size of the recurrent state.
        num_layers: Number of layers of recurrent units.

    Raises:
        ValueError: If out_features is not a multiple of the size of the sequence.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        shape: Sequence[int] | None = None,
        hidden: int = 100,
        num_layers: int = 1,
    ) -> None:
        super().__init__(in_features, out_features)
        self.shape = _sequence_shape(shape, out_features)
        self.per_value, rest = divmod(out_features, math.prod(self.shape))
        if rest or not self.per_value:
            raise ValueError(
                f"out_features must be a multiple of {math.prod(self.shape)} for a sequence of shape {self.shape}, got "
                f"{out_features}; give the sequence's shape"
            )
        check_sizes("hidden and num_layers", hidden, num_layers)
        self.units = nn.GRU(in_features, hidden, num_layers, batch_first=True)
        self.last = nn.Linear(hidden, self.per_value * self.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        """Map x, with shape (..., in_features), to shape (..., p*T*F)."""
        steps, features = self.shape
        states, _ = self.units(x.reshape(-1, 1, self.in_features).expand(-1, steps, -1))
        values = self.last(states).reshape(-1, steps, self.per_value, features).transpose(1, 2)
        return values.reshape(*x.shape[:-1], self.out_features)


def _sequence_shape(shape: Sequence[int] | None, features: int) -> tuple[int, int]:
    if shape is None:
        return (features, 1)
    if len(shape) != 2:
        raise ValueError(
            f"a sequence has shape (T, F), got {tuple(shape)}; give that of one sequence, without the batch"
        )
    return (shape[0], shape[1])
