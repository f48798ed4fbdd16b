"""Exponential average of the weights, which `fit` validates and keeps in place of the last weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

_FIRST_STEPS = 9  # the decay of step t is at most t / (t + 9)


class WeightAverage:
    """Exponential average of tensors over the steps, e <- d e + (1 - d) v (Polyak and Juditsky 1992).

    The decay d rises with the steps: step t = 1, 2, ... has d = min(decay, t / (t + 9)). The average then covers about
    the last t / 9 steps, and at most 1 / (1 - decay), so that short trainings forget their first weights too. The first
    step sets the average to the values. Integers, such as counters, are copied.

    Args:
        decay: Largest share of the average that a step keeps, from 0 to below 1; 0.999 averages over about 1,000 steps.
        values: Tensors to average by name. Steps change them in place.

    Attributes:
        averaged: The average by name; empty before the first step.
        decay: Largest share of the average that a step keeps.

    Raises:
        ValueError: If the decay is out of range.
    """

    def __init__(self, decay: float, values: Mapping[str, Tensor]) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"average must be at least 0 and below 1, got {decay}; 0.999 averages over 1,000 steps")
        self.values = dict(values)
        self.averaged: dict[str, Tensor] = {}
        self.decay = decay
        self._pairs: tuple[list[Tensor], list[Tensor]] = ([], [])  # the average and the values that are no integers
        self._integers: list[tuple[Tensor, Tensor]] = []

    def update(self, step: int) -> None:
        """Add the values after a step to the average.

        Args:
            step: Number of the step, from 1.
        """
        if not self.averaged:
            self._set({name: value.detach().clone() for name, value in self.values.items()})
            return
        get_ema_multi_avg_fn(min(self.decay, step / (step + _FIRST_STEPS)))(*self._pairs, 1)
        for kept, value in self._integers:
            kept.copy_(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Set the tensors to their average inside the context; after it they have their own values again."""
        own = {name: value.detach().clone() for name, value in self.values.items()}
        self._copy(self.averaged)
        try:
            yield
        finally:
            self._copy(own)

    def restore(self, averaged: Mapping[str, Tensor]) -> None:
        """Resume from a saved average, whose names and shapes are those of the values."""
        self._set({name: averaged[name].to(value.device) for name, value in self.values.items() if averaged})

    def _set(self, averaged: dict[str, Tensor]) -> None:
        self.averaged = averaged
        pairs = [(kept, self.values[name].detach()) for name, kept in averaged.items()]
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        self._integers = [pair for pair in pairs if not pair[0].is_floating_point()]
        self._pairs = [kept for kept, _ in floating], [value for _, value in floating]

    @torch.no_grad()
    def _copy(self, source: Mapping[str, Tensor]) -> None:
        for name, value in source.items():
            self.values[name].copy_(value)
