"""The base of our objectives: from a loss made of tensor operations to all that Pyro asks of an ELBO."""

from abc import abstractmethod
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.util import warn_if_nan
from torch import Tensor

from pyrovae.densities import Program


class TensorELBO(ELBO):
    """Base of objectives for `elbo(model, guide)(x)`, for Pyro's `SVI` and for `fit`, with all particles drawn at once.

    A new one has `differentiable_loss`: the loss of a batch, in nats, summed over the data.

    Args:
        num_particles: Draws per datum.

    Raises:
        ValueError: If num_particles is below 1.

    Attributes:
        recordable: `fit` may record the loss, since it is made of tensor operations alone.
        is_elbo: Whether the value is that of the ELBO.
        sums_over_data: Whether the loss is a sum over the data, so that several processes can share a batch.
    """

    recordable = True
    is_elbo = False
    sums_over_data = True

    def __init__(self, num_particles: int = 1) -> None:
        if num_particles < 1:
            raise ValueError(f"num_particles must be at least 1, got {num_particles}")
        super().__init__(num_particles=num_particles, max_plate_nesting=1, vectorize_particles=True)

    @abstractmethod
    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of a batch, in nats, a scalar with its gradient."""

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss of a batch, in nats."""
        with torch.no_grad():
            loss = self.differentiable_loss(model, guide, *args, **kwargs)
        return warn_if_nan(loss, "loss").item()

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss of a batch, in nats; gradients are added to those of the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return warn_if_nan(loss.detach(), "loss").item()

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("all particles are drawn at once; call differentiable_loss")
