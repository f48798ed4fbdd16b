"""Evaluation in chunks: record the first, replay the rest."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyrovae.execution.choice import Execution
from pyrovae.execution.messages import NotRecordedError, refuse
from pyrovae.execution.replay import Recorded
from pyrovae.execution.tensors import Outputs, signature, tensors_of, with_tensors


class Chunks:
    """Runs the functions of an evaluation chunk by chunk, without gradients. Each function is recorded once.

    Args:
        execution: How to run the functions: "eager", "recorded" or "compiled".
        shape: Shape (K, N) of a full chunk. Only functions of full chunks are compiled.
    """

    def __init__(self, execution: Execution, shape: tuple[int, int]) -> None:
        self.execution, self.shape = execution, shape
        self._recorded: dict[Hashable, Recorded] = {}
        self._refused: set[str] = set()

    def start_block(self) -> None:
        """Announce other arguments or parameters of the programs, so that no cached result is used."""
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
        """Evaluate a function of the latents and of the programs' arguments.

        Args:
            name: Name that identifies the function in all calls.
            function: Function of latents, args and kwargs that returns tensors.
            shape: Shape (K, N) of this chunk.
            latents: Values by site; empty for a function that draws the latents.
            args: Positional arguments of both programs, the data first, with shape (N, ...).
            kwargs: Keyword arguments of both programs.
        """
        if self.execution == "eager" or name in self._refused or torch.is_grad_enabled():
            return function(dict(latents), args, dict(kwargs))
        others = signature(value for value in (*args, *kwargs.values()) if not isinstance(value, Tensor))
        key = name, shape, tuple(latents), tuple(kwargs), others

        def flat(*tensors: Tensor) -> Outputs:
            values = dict(zip(latents, tensors, strict=False))
            return function(values, *with_tensors(args, kwargs, tensors[len(latents) :]))

        if key not in self._recorded:
            self._recorded[key] = Recorded(flat, num_varying=len(latents))
        inputs = [*latents.values(), *tensors_of(args, kwargs)]
        try:
            return self._recorded[key](*inputs, compiled=self.execution == "compiled" and shape == self.shape)
        except NotRecordedError as error:
            self._refused.add(name)
            refuse(name, error)
            return function(dict(latents), args, dict(kwargs))
