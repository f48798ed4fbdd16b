"""Matrix products in bfloat16, all other operations in their own precision."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Precision = Literal["full", "bfloat16"]

_PRODUCTS: set[Callable[..., Any]] = {
    functional.linear,
    functional.bilinear,
    functional.conv1d,
    functional.conv2d,
    functional.conv3d,
    functional.conv_transpose1d,
    functional.conv_transpose2d,
    functional.conv_transpose3d,
}


class _BFloat16Products(TorchFunctionMode):
    """A mode in which the matrix products of layers round their operands to bfloat16 and return float32.

    Parameters, optimizer, sums, latents and log densities stay in float32. Under torch.autocast, layers return
    bfloat16, so that log p(x|z) would be summed over pixels with three digits.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func not in _PRODUCTS or not _single(args[0]):
            return func(*args, **kwargs)
        rounded = {key: _rounded(value) for key, value in kwargs.items()}
        return func(*map(_rounded, args), **rounded).float()


def products_in(precision: Precision) -> AbstractContextManager[Any]:
    """Return a context in which the matrix products of layers have this precision."""
    return _BFloat16Products() if precision == "bfloat16" else nullcontext()


def _single(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float32


def _rounded(value: Any) -> Any:
    return value.bfloat16() if _single(value) else value
