"""What all networks share: the base class, activations, and small helpers."""

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

Activation = Literal["relu", "tanh", "softplus", "silu", "gelu", "elu", "leaky_relu"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
}


def activation_module(name: str) -> nn.Module:
    """Make the activation layer of this name; ValueError if there is none."""
    if name not in _ACTIVATIONS:
        known = ", ".join(get_args(Activation))
        raise ValueError(f"unknown activation {name!r}; choose one of {known}")
    return _ACTIVATIONS[name]()


def positive(name: str, *sizes: int) -> None:
    """Refuse a layer's sizes below 1.

    Raises:
        ValueError: Naming them.
    """
    if any(size < 1 for size in sizes):
        raise ValueError(f"{name} must be at least 1, got {list(sizes)}")


class Network(nn.Module):
    """Base of the networks that can be named on the command line.

    A new one takes `(in_features, out_features, *, ...)`, calls `super().__init__(in_features, out_features)`, and maps
    tensors of shape (..., in_features) to (..., out_features).

    Args:
        in_features: Size of the last dimension of the input.
        out_features: Size of the last dimension of the output.

    Attributes:
        structured: Whether the place of a number in the input has a meaning, as in an image or a sequence, so that
            covariates cannot simply be appended (see `WithCovariates`).
    """

    structured: ClassVar[bool] = False

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        positive("in_features and out_features", in_features, out_features)
        self.in_features = in_features
        self.out_features = out_features

    @classmethod
    def mirror(cls) -> type["Network"]:
        """The class that stands on the decoder's side when this one is the encoder's."""
        return cls


class Standardize(nn.Module):
    """The affine layer (x - loc) / scale with constants taken from data, kept as buffers.

    Args:
        loc: Centre, with a shape that broadcasts against the data's last dimension.
        scale: Positive scale, likewise.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("loc", loc)
        self.register_buffer("scale", scale)

    @classmethod
    def from_data(cls, x: Tensor, num_covariates: int = 0) -> "Standardize":
        """Centre each dimension of x, with shape (N, D); divide all by one scale, the root mean variance.

        Covariates that follow x stay as they are.
        """
        scale = x.var(0, correction=0).mean().sqrt()
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        if not num_covariates:
            return cls(x.mean(0), scale)
        zeros, ones = x.new_zeros(num_covariates), x.new_ones(num_covariates)
        return cls(torch.cat([x.mean(0), zeros]), torch.cat([scale.expand(x.shape[1]), ones]))

    def forward(self, x: Tensor) -> Tensor:
        """Map x, with shape (..., D), to the same shape."""
        return (x - self.loc) / self.scale


class Offset(nn.Module):
    """Learned numbers added to a network's.

    Args:
        start: The numbers at the start, with shape (out_features,).
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.out_features = len(start)
        self.bias = nn.Parameter(start.clone())

    def forward(self, outputs: Tensor) -> Tensor:
        """Map outputs, with shape (..., out_features), to the same shape."""
        return outputs + self.bias


class WithCovariates(nn.Module):
    """A network of an image or a sequence, then one of its features with covariates appended.

    Args:
        features: Maps x, with shape (..., D), to H features.
        head: Maps these and C covariates, with shape (..., H + C), to the outputs.
        num_dims: D; what follows in the input are covariates.
    """

    def __init__(self, features: nn.Module, head: nn.Module, num_dims: int) -> None:
        super().__init__()
        self.features, self.head, self.num_dims = features, head, num_dims

    def forward(self, x: Tensor) -> Tensor:
        """Map x with covariates appended, with shape (..., D + C), to the head's outputs."""
        x, covariates = x.tensor_split((self.num_dims,), -1)
        return self.head(torch.cat([self.features(x), covariates], -1))


def join(x: Tensor, covariates: Tensor | None) -> Tensor:
    """Append covariates, with shape (N, C), to x, with shape (..., N, D), along the last dimension.

    Leading shapes broadcast against each other.
    """
    if covariates is None:
        return x
    leading = torch.broadcast_shapes(x.shape[:-1], covariates.shape[:-1])
    return torch.cat([part.expand(*leading, part.shape[-1]) for part in (x, covariates.to(x.dtype))], -1)


def split(outputs: Tensor, parts: int) -> tuple[Tensor, ...]:
    """Split a network's numbers, with shape (..., parts*D), into its parameters, each with shape (..., D).

    Raises:
        ValueError: If they do not divide.
    """
    if outputs.shape[-1] % parts:
        raise ValueError(f"a network gives {outputs.shape[-1]} numbers, not a multiple of {parts}; see num_outputs")
    return outputs.chunk(parts, dim=-1)


def out_features(network: nn.Module) -> int:
    """How many numbers a network gives: its own `out_features`, or that of its last layer that has one.

    Raises:
        ValueError: If no layer says.
    """
    for module in (network, *reversed(list(network.modules()))):
        if isinstance(getattr(module, "out_features", None), int):
            return int(module.out_features)  # type: ignore[arg-type]  # an int, as the line above saw
    raise ValueError(f"cannot tell how many numbers {type(network).__name__} gives; set its attribute out_features")
