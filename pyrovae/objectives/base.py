"""`TensorELBO`, the base class of objectives.

Subclasses define a differentiable loss and inherit Pyro's ELBO interface.
"""

from abc import abstractmethod
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.util import warn_if_nan
from torch import Tensor

from pyrovae.densities import Program


class TensorELBO(ELBO):
    """Base of objectives whose particles are drawn at once, for `elbo(model, guide)(x)`, Pyro's `SVI` and `fit`.

    To add an objective, write `differentiable_loss`.

    Args:
        num_particles: Number of draws K per datum.

    Raises:
        ValueError: If `num_particles` is below 1.

    Attributes:
        recordable: Whether the loss consists of tensor operations alone, so that `fit` may record it.
        is_elbo: Whether the value is that of the ELBO.
        sums_over_data: Whether the loss is a sum over the data, so that several processes can share a batch.
        least_data: Smallest number of data of a batch. A smaller remainder joins the last full batch of an epoch.
    """

    recordable = True
    is_elbo = False
    sums_over_data = True
    least_data = 1

    def __init__(self, num_particles: int = 1) -> None:
        if num_particles < 1:
            raise ValueError(f"num_particles must be at least 1, got {num_particles}")
        super().__init__(num_particles=num_particles, max_plate_nesting=1, vectorize_particles=True)

    @abstractmethod
    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the loss of a batch, summed over the data, in nats; a scalar with its gradient."""

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Compute the loss of a batch, in nats."""
        with torch.no_grad():
            loss = self.differentiable_loss(model, guide, *args, **kwargs)
        return warn_if_nan(loss, "loss").item()

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Compute the loss of a batch, in nats, and add its gradients to those of the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return warn_if_nan(loss.detach(), "loss").item()

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError(
            "TensorELBO draws all particles at once and has no single trace; call differentiable_loss"
        )
