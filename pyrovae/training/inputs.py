"""Data of `fit`: batches of the training data, and the validation data, with their case weights."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pyrovae.densities import Program, device_of, num_data, prepare_arguments
from pyrovae.training.batches import Arguments, Batches, as_arguments, prepare_data
from pyrovae.training.loaders import LoaderBatches, check_no_dataset, read_all


class HeldOut(NamedTuple):
    """Validation data.

    Attributes:
        args: Positional arguments of both programs, the data first, with shape (N, ...).
        kwargs: Keyword arguments of both programs.
        weights: Case weights with mean 1, with shape (N,); None for 1.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    weights: Tensor | None


def make_batches(
    programs: Sequence[Program],
    data: Arguments | DataLoader[Any],
    weights: Tensor | None,
    *,
    batch_size: int,
    transform: Callable[[Tensor], Tensor] | None,
    seed: int,
    least_data: int,
) -> Batches | LoaderBatches:
    """Prepare the training data and their case weights, and make the batches.

    Raises:
        ValueError: If the programs cannot take the data, or the weights are no case weights of these data.
    """
    if isinstance(data, DataLoader):
        if weights is not None:
            raise ValueError("weights cannot follow the order of a DataLoader; give the data as tensors, or Streamed")
        return LoaderBatches(data, programs, transform)
    check_no_dataset(data)
    args, kwargs, transform = prepare_data(programs, data, transform)
    if weights is not None:
        weights = normalized_weights(weights, num_data(args, kwargs), device_of(args, kwargs))
    options: dict[str, Any] = {"batch_size": batch_size, "transform": transform, "seed": seed}
    return Batches(args, kwargs, **options, least_data=least_data, weights=weights)


def hold_out(
    programs: Sequence[Program], data: Arguments | DataLoader[Any] | None, weights: Tensor | None
) -> HeldOut | None:
    """Prepare the validation data and their case weights; None if there are none.

    Raises:
        ValueError: If the programs cannot take the data, or the weights are no case weights of these data.
    """
    if data is None:
        if weights is not None:
            raise ValueError("validation_weights need validation data, got none; give validation, too")
        return None
    check_no_dataset(data)
    args, kwargs = read_all(data) if isinstance(data, DataLoader) else as_arguments(data)
    args, kwargs = prepare_arguments("fit", programs, args, kwargs)
    if weights is not None:
        size, device = num_data(args, kwargs), device_of(args, kwargs)
        weights = normalized_weights(weights, size, device, name="validation_weights")
    return HeldOut(args, kwargs, weights)


def normalized_weights(weights: Any, size: int, device: torch.device, *, name: str = "weights") -> Tensor:
    """Scale case weights to mean 1, so that the learning rate and the clipping keep their meaning.

    Args:
        weights: Case weights, not negative, with shape (N,): a tensor, an array or a list.
        size: Number of data N.
        device: Device of the data.
        name: Name of the weights in error messages.

    Returns:
        The scaled weights, with shape (N,), float64.

    Raises:
        ValueError: If there is no weight for each datum, one is negative or not finite, or their sum is 0.
    """
    found = torch.as_tensor(weights).detach().to(device, torch.float64)
    if tuple(found.shape) != (size,):
        raise ValueError(f"{name} must have shape ({size},), one for each datum, got {tuple(found.shape)}")
    bad = (~(found.isfinite() & (found >= 0))).nonzero()
    if len(bad):
        place = int(bad[0])
        raise ValueError(f"{name} must be finite and not negative, got {found[place].item():g} for datum {place}")
    if not bool(found.sum() > 0):
        raise ValueError(f"{name} must have a positive sum, got 0; give a positive weight to at least one datum")
    return found / found.mean()
