"""Networks: tensor in, tensor out.

Any torch module serves as a network. Those below keep every leading dimension, so `[N, D]` and `[K, N, D]` go through
the same code, and share one constructor, `(in_features, out_features, *, ...)`, by which the command line builds them.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

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


class Network(nn.Module):
    """Base of the networks that can be named on the command line.

    A new one takes `(in_features, out_features, *, ...)`, calls `super().__init__(in_features, out_features)`, and maps
    tensors of shape (..., in_features) to (..., out_features).

    Args:
        in_features: Size of the last dimension of the input.
        out_features: Size of the last dimension of the output.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features

    @classmethod
    def mirror(cls) -> type["Network"]:
        """The class that stands on the decoder's side when this one is the encoder's."""
        return cls


class MLP(Network):
    """Multilayer perceptron: linear layers with an activation between them.

    Weights start as torch's `nn.Linear` does: uniform on +-1/sqrt(fan_in), biases too.

    Args:
        in_features: Size of the last dimension of the input.
        out_features: Size of the last dimension of the output.
        hidden: Sizes of the hidden layers; empty for a linear map.
        activation: Activation after each hidden layer.

    Example:
        >>> MLP(2, 784)(torch.zeros(5, 3, 2)).shape
        torch.Size([5, 3, 784])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        hidden: Sequence[int] = (200, 200),
        activation: Activation = "relu",
    ) -> None:
        super().__init__(in_features, out_features)
        sizes = [in_features, *hidden]
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), activation_module(activation)]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], out_features))

    def forward(self, x: Tensor) -> Tensor:
        """Map x, with shape (..., in_features), to shape (..., out_features)."""
        return self.layers(x)


class ConvNet(Network):
    """Convolutional network from a flat image to numbers: stride-2 convolutions, then one hidden layer.

    Its mirror, which the command line puts on the decoder's side, is `TransposedConvNet`. Weights start as torch's
    layers do: uniform on +-1/sqrt(fan_in).

    Args:
        in_features: C*H*W, the size of a flat image.
        out_features: Size of the last dimension of the output.
        shape: (C, H, W) or (H, W) of the image, of any size; None for a square image of one channel.
        channels: Channels after each convolution; each halves height and width, rounding up.
        hidden: Size of the fully connected layer after the convolutions.
        activation: Activation after every layer but the last.

    Raises:
        ValueError: If in_features is not the size of the image.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        shape: Sequence[int] | None = None,
        channels: Sequence[int] = (32, 64),
        hidden: int = 200,
        activation: Activation = "relu",
    ) -> None:
        super().__init__(in_features, out_features)
        self.shape = _image_shape(shape, in_features)
        if math.prod(self.shape) != in_features:
            raise ValueError(
                f"in_features is {in_features}, but an image of shape {self.shape} has "
                f"{math.prod(self.shape)} values; give the image's shape"
            )
        sizes = _halvings(self.shape, len(channels))
        depths = [self.shape[0], *channels]
        layers: list[nn.Module] = []
        for depth_in, depth_out in pairwise(depths):
            layers += [nn.Conv2d(depth_in, depth_out, 3, stride=2, padding=1)]
            layers += [activation_module(activation)]
        height, width = sizes[-1]
        layers += [nn.Flatten(), nn.Linear(depths[-1] * height * width, hidden)]
        layers += [activation_module(activation), nn.Linear(hidden, out_features)]
        self.layers = nn.Sequential(*layers)

    @classmethod
    def mirror(cls) -> type[Network]:
        """The decoder's network: `TransposedConvNet`."""
        return TransposedConvNet

    def forward(self, x: Tensor) -> Tensor:
        """Map x, with shape (..., C*H*W), to shape (..., out_features)."""
        return self.layers(x.reshape(-1, *self.shape)).reshape(*x.shape[:-1], self.out_features)


class TransposedConvNet(Network):
    """Convolutional network from numbers to a flat image: the mirror of `ConvNet`.

    Weights start as torch's layers do: uniform on +-1/sqrt(fan_in).

    Args:
        in_features: Size of the last dimension of the input.
        out_features: p*C*H*W for p numbers per pixel; number j of every pixel stands in the j-th block of C*H*W.
        shape: (C, H, W) or (H, W) of the image, of any size; None for a square image of one channel, p = 1.
        channels: Channels as `ConvNet` counts them, from the image inwards.
        hidden: Size of the fully connected layer before the convolutions.
        activation: Activation after every layer but the last.

    Raises:
        ValueError: If out_features is not a multiple of the size of the image.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        shape: Sequence[int] | None = None,
        channels: Sequence[int] = (32, 64),
        hidden: int = 200,
        activation: Activation = "relu",
    ) -> None:
        super().__init__(in_features, out_features)
        self.shape = _image_shape(shape, out_features)
        per_pixel, rest = divmod(out_features, math.prod(self.shape))
        if rest or not per_pixel:
            raise ValueError(
                f"out_features is {out_features}, not a multiple of the {math.prod(self.shape)} values "
                f"of an image of shape {self.shape}; give the image's shape"
            )
        sizes = _halvings(self.shape, len(channels))
        depths = [per_pixel * self.shape[0], *channels]
        height, width = sizes[-1]
        layers: list[nn.Module] = [nn.Linear(in_features, hidden), activation_module(activation)]
        layers += [nn.Linear(hidden, depths[-1] * height * width), activation_module(activation)]
        layers += [nn.Unflatten(-1, (depths[-1], height, width))]
        for level in reversed(range(len(channels))):
            (height, width), (below_h, below_w) = sizes[level], sizes[level + 1]
            # Without output padding the layer gives 2 * below - 1; the padding restores even sizes.
            padding = (height - 2 * below_h + 1, width - 2 * below_w + 1)
            layers += [
                nn.ConvTranspose2d(depths[level + 1], depths[level], 3, stride=2, padding=1, output_padding=padding)
            ]
            if level:
                layers += [activation_module(activation)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map x, with shape (..., in_features), to shape (..., out_features)."""
        out = self.layers(x.reshape(-1, self.in_features))
        return out.reshape(*x.shape[:-1], self.out_features)


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
    def from_data(cls, x: Tensor) -> "Standardize":
        """Centre each dimension of x, with shape (N, D); divide all by one scale, the root mean variance."""
        scale = x.var(0, correction=0).mean().sqrt()
        return cls(x.mean(0), torch.where(scale > 0, scale, torch.ones_like(scale)))

    def forward(self, x: Tensor) -> Tensor:
        """Map x, with shape (..., D), to the same shape."""
        return (x - self.loc) / self.scale


def join(x: Tensor, covariates: Tensor | None) -> Tensor:
    """Append covariates, with shape (N, C), to x, with shape (..., N, D), along the last dimension."""
    if covariates is None:
        return x
    return torch.cat([x, covariates.to(x.dtype).expand(*x.shape[:-1], covariates.shape[-1])], -1)


def out_features(network: nn.Module) -> int:
    """How many numbers a network gives: its own `out_features`, or that of its last layer that has one.

    Raises:
        ValueError: If no layer says.
    """
    for module in (network, *reversed(list(network.modules()))):
        if isinstance(getattr(module, "out_features", None), int):
            return int(module.out_features)  # type: ignore[arg-type]
    raise ValueError(f"cannot tell how many numbers {type(network).__name__} gives; set its attribute out_features")


def _image_shape(shape: Sequence[int] | None, features: int) -> tuple[int, int, int]:
    if shape is None:
        side = math.isqrt(features)
        if side * side != features:
            raise ValueError(f"{features} values are no square image of one channel; give its shape (C, H, W)")
        return (1, side, side)
    if len(shape) not in (2, 3):
        raise ValueError(f"an image has shape (H, W) or (C, H, W), got {tuple(shape)}")
    channels, height, width = (1, *shape) if len(shape) == 2 else shape
    return (channels, height, width)


def _halvings(shape: tuple[int, int, int], times: int) -> list[tuple[int, int]]:
    sizes = [shape[1:]]
    for _ in range(times):
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes
