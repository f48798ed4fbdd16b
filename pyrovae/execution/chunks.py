"""Chunk after chunk of an evaluation, replayed once recorded."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyrovae.execution.graphs import Outputs
from pyrovae.execution.recording import (
    Execution,
    NotRecordedError,
    Recorded,
    refuse,
    signature,
    tensors_of,
    with_tensors,
)


class Chunks:
    """Functions that are asked for chunk after chunk of an evaluation, without gradients, each replayed once recorded.

    Args:
        execution: "eager", "recorded" or "compiled".
        shape: (K, N) of a whole chunk, the one that is worth compiling.
    """

    def __init__(self, execution: Execution, shape: tuple[int, int]) -> None:
        self.execution, self.shape = execution, shape
        self._recorded: dict[Hashable, Recorded] = {}
        self._refused: set[str] = set()

    def start_block(self) -> None:
        """Say that the programs' arguments, or their parameters, are others from here on."""
        for recorded in self._recorded.values():
            recorded.forget()

    def __call__(
        self,
        name: str,
        function: Callable[[dict[str, Tensor], tuple[Any, ...], dict[str, Any]], Outputs],
        shape: tuple[int, int],
        latents: Mapping[str, Tensor],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Outputs:
        """Evaluate a function of latents by site and of the programs' arguments.

        Args:
            name: Of the function, one and the same whenever it is asked for.
            function: Takes latents, args and kwargs, returns tensors.
            shape: (K, N) of this chunk.
            latents: Values by site, none for a function that draws.
            args: The programs' arguments.
            kwargs: Their keyword arguments.
        """
        if self.execution == "eager" or name in self._refused or torch.is_grad_enabled():
            return function(dict(latents), args, dict(kwargs))
        others = signature(value for value in (*args, *kwargs.values()) if not isinstance(value, Tensor))
        key = name, shape, tuple(latents), tuple(kwargs), others

        def flat(*tensors: Tensor) -> Outputs:
            values = dict(zip(latents, tensors, strict=False))
            return function(values, *with_tensors(args, kwargs, tensors[len(latents) :]))

        if key not in self._recorded:
            self._recorded[key] = Recorded(flat, varying=len(latents))
        inputs = [*latents.values(), *tensors_of(args, kwargs)]
        try:
            return self._recorded[key](*inputs, compiled=self.execution == "compiled" and shape == self.shape)
        except NotRecordedError as error:
            self._refused.add(name)
            refuse(name, error)
            return function(dict(latents), args, dict(kwargs))
