"""Recurrent networks for sequences."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from pyrovae.nn.base import Network, positive


class RecurrentNet(Network):
    """Recurrent network from a flat sequence to numbers: gated recurrent units, then a linear layer on the last state.

    Its mirror, which the command line puts on the decoder's side, is `RecurrentDecoder`. Weights start as torch's
    layers do: uniform on +-1/sqrt(hidden) in the units, on +-1/sqrt(fan_in) in the linear layer. Cho et al., "Learning
    phrase representations using RNN encoder-decoder" (EMNLP 2014, https://arxiv.org/abs/1406.1078).

    Args:
        in_features: T*F, the size of a flat sequence, time first.
        out_features: Size of the last dimension of the output.
        shape: (T, F), steps and features of each; None for one feature per step.
        hidden: Size of the recurrent state.
        num_layers: Layers of recurrent units.

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
                f"in_features is {in_features}, but a sequence {self.shape} has {math.prod(self.shape)} values; "
                "give the sequence's shape"
            )
        positive("hidden and num_layers", hidden, num_layers)
        self.units = nn.GRU(self.shape[1], hidden, num_layers, batch_first=True)
        self.last = nn.Linear(hidden, out_features)

    @classmethod
    def mirror(cls) -> type[Network]:
        """The decoder's network: `RecurrentDecoder`."""
        return RecurrentDecoder

    def forward(self, x: Tensor) -> Tensor:
        """Map x, with shape (..., T*F), to shape (..., out_features)."""
        _, state = self.units(x.reshape(-1, *self.shape))
        return self.last(state[-1]).reshape(*x.shape[:-1], self.out_features)


class RecurrentDecoder(Network):
    """Recurrent network from numbers to a flat sequence: gated recurrent units that see the numbers at every step.

    The mirror of `RecurrentNet`; weights start as there.

    Args:
        in_features: Size of the last dimension of the input.
        out_features: p*T*F for p numbers per value; number j of every value stands in the j-th block of T*F.
        shape: (T, F), steps and features of each; None for one feature per step, p = 1.
        hidden: Size of the recurrent state.
        num_layers: Layers of recurrent units.

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
                f"out_features is {out_features}, not a multiple of the {math.prod(self.shape)} values of a sequence "
                f"{self.shape}; give the sequence's shape"
            )
        positive("hidden and num_layers", hidden, num_layers)
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
        raise ValueError(f"a sequence has shape (T, F), got {tuple(shape)}")
    return (shape[0], shape[1])
