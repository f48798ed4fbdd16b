"""Sample sites of the programs in this room: the plate, latents, and data with missing entries."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.runtime import InferDict
from torch import Tensor, nn

from pyrovae.encoders import Features
from pyrovae.nn import Standardize, StandardizeCounts


def data_plate(x: Tensor | None, covariates: Tensor | None = None, size: int = 1) -> Any:
    """Make the plate "data" at dim -1. Its size is the length of x, else of the covariates, else `size`."""
    given = x if x is not None else covariates
    return pyro.plate("data", size if given is None else given.shape[0], dim=-1)


def fill_missing(x: Tensor, mask: Tensor | None, encoder: nn.Module | None = None) -> Tensor:
    """Replace missing entries of x by what the encoder takes for them: NaN, the centre of its scaling, or 0.

    Args:
        x: Data, with shape (N, D).
        mask: Whether each entry of x is observed, with shape (N, D) or (N,); None if all are.
        encoder: The encoder. One with `Features` receives NaN, one with `Standardize` or `StandardizeCounts` the
            centre of each column, which it maps to 0, and any other one, or None, receives 0.

    Raises:
        ValueError: If x is not floating point.
    """
    if mask is not None:
        missing = _fill(encoder, x).expand_as(x)
        x = torch.where(mask.reshape(mask.shape + (1,) * (x.dim() - mask.dim())), x, missing)
    _check_floating_point(x)
    return x


def _fill(encoder: nn.Module | None, x: Tensor) -> Tensor:
    """Return what an encoder takes for missing entries, with shape () or (D,)."""
    for module in () if encoder is None else encoder.modules():
        if isinstance(module, Features):
            return x.new_full((), torch.nan)
        if isinstance(module, Standardize | StandardizeCounts):
            fill = module.fill.to(x)
            return fill[: x.shape[-1]] if fill.dim() else fill  # covariates follow the data
    return x.new_zeros(())


def sample_latent(name: str, distribution: TorchDistributionMixin) -> Tensor:
    """Sample a latent site of a guide. A discrete site carries the hint by which TraceEnum_ELBO enumerates it."""
    # On a continuous site the hint would raise a warning.
    infer: InferDict = {"enumerate": "parallel"} if distribution.has_enumerate_support else {}
    return pyro.sample(name, distribution, infer=infer)


def sample_datum(p_x: TorchDistributionMixin, x: Tensor | None, mask: Tensor | None) -> Tensor:
    """Sample the site "x" of a model inside its plate, or score given data there.

    Args:
        p_x: Distribution p(x|z).
        x: Data, with shape (N, D); None to generate data.
        mask: Whether each entry of x is observed, with shape (N, D) or (N,); None if all are.

    Raises:
        ValueError: If x is not floating point or does not have the likelihood's shape, or if a mask over entries is
            given and the likelihood is not independent over D.
    """
    if x is not None:
        _check_datum(x, p_x)
    if mask is not None:
        p_x = _mask_entries(p_x, mask)
        if x is not None:
            # Missing entries need any value in the support; the mask removes its density.
            x = torch.where(_expand_mask(mask, p_x), x, p_x.sample().detach())
    return pyro.sample("x", p_x, obs=x)


def _check_datum(x: Tensor, p_x: TorchDistributionMixin) -> None:
    _check_floating_point(x)
    if x.shape[1:] != p_x.event_shape:
        raise ValueError(
            f"the likelihood needs data of shape {tuple(p_x.event_shape)} each, got x of shape {tuple(x.shape)}; give "
            "its network num_outputs(D) outputs"
        )


def _check_floating_point(x: Tensor) -> None:
    if not x.is_floating_point():
        raise ValueError(f"x must be floating point, got {x.dtype}; give x.float(), or x.double() for a float64 model")


def _expand_mask(mask: Tensor, distribution: TorchDistributionMixin) -> Tensor:
    """Append event dimensions to a mask with shape (N,). Return a mask with shape (N, D) unchanged."""
    return mask if mask.dim() > 1 else mask.reshape(mask.shape + (1,) * distribution.event_dim)


def _mask_entries(distribution: TorchDistributionMixin, mask: Tensor) -> TorchDistributionMixin:
    if mask.dim() == 1:
        return distribution.mask(mask)
    if not isinstance(distribution, dist.Independent):
        raise ValueError(
            f"a mask of shape {tuple(mask.shape)} needs a likelihood that is independent over the entries of x, got "
            f"{type(distribution).__name__}; mask whole data with shape (N,)"
        )
    entries = distribution.base_dist.mask(mask)
    return entries.to_event(distribution.reinterpreted_batch_ndims)
