"""The pair of Pyro programs that a VAE is: `Model`, p(z) p(x|z), and `Guide`, q(z|x), and `VAE`, which holds both."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.runtime import InferDict
from torch import Tensor


def data_plate(x: Tensor | None, covariates: Tensor | None = None, size: int = 1) -> Any:
    """The plate "data" at dim -1, over as many data as x or the covariates have, or else size."""
    given = x if x is not None else covariates
    return pyro.plate("data", size if given is None else given.shape[0], dim=-1)


def fill_missing(x: Tensor, mask: Tensor | None) -> Tensor:
    """What an encoder is given of x, with shape (N, D): 0 where a mask, with shape (N, D) or (N,), is false."""
    if mask is not None:
        x = torch.where(mask.reshape(mask.shape + (1,) * (x.dim() - mask.dim())), x, torch.zeros_like(x))
    if not x.is_floating_point():
        raise ValueError(f"x is of {x.dtype}; give x.float(), or .double() as the model's parameters are")
    return x


def sample_latent(name: str, distribution: TorchDistributionMixin) -> Tensor:
    """Sample a latent site of a guide; a discrete one with the hint that lets TraceEnum_ELBO sum it out."""
    infer: InferDict = {"enumerate": "parallel"} if distribution.has_enumerate_support else {}  # others warn
    return pyro.sample(name, distribution, infer=infer)


def sample_datum(p_x: TorchDistributionMixin, x: Tensor | None, mask: Tensor | None) -> Tensor:
    """Sample the site "x" of a model inside its plate, or score x, with shape (N, D), there.

    Args:
        p_x: p(x|z).
        x: Data, or None to generate.
        mask: True where x is observed, with shape (N, D) or (N,).

    Raises:
        ValueError: If x is not floating point or not of the likelihood's size, or a mask over entries meets a
            likelihood that is not independent over D.
    """
    if x is not None:
        _check_datum(x, p_x)
    if mask is not None:
        p_x = _mask_entries(p_x, mask)
        if x is not None:
            # Any value in the support will do where nothing was observed: it gets no weight.
            x = torch.where(_over_event(mask, p_x), x, p_x.sample().detach())
    return pyro.sample("x", p_x, obs=x)


def _check_datum(x: Tensor, p_x: TorchDistributionMixin) -> None:
    if not x.is_floating_point():
        raise ValueError(f"x is of {x.dtype}; give x.float(), or .double() as the model's parameters are")
    if x.shape[1:] != p_x.event_shape:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, but the likelihood makes data of shape {tuple(p_x.event_shape)}; let its "
            "network give as many numbers as a datum needs"
        )


def _over_event(mask: Tensor, distribution: TorchDistributionMixin) -> Tensor:
    """Give a mask over data, with shape (N,), one dimension for each of the event's; leave one over entries."""
    return mask if mask.dim() > 1 else mask.reshape(mask.shape + (1,) * distribution.event_dim)


def _mask_entries(distribution: TorchDistributionMixin, mask: Tensor) -> TorchDistributionMixin:
    if mask.dim() == 1:
        return distribution.mask(mask)
    if not isinstance(distribution, dist.Independent):
        raise ValueError(
            f"a mask of shape {tuple(mask.shape)} asks for single entries of x, but the likelihood returns "
            f"{type(distribution).__name__}, which is not independent over them; mask whole data with shape (N,)"
        )
    entries = distribution.base_dist.mask(mask)
    return entries.to_event(distribution.reinterpreted_batch_ndims)
