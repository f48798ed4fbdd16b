"""Convolutional networks for images of any size.

Images come flat, as every datum does; the layers fold the leading dimensions into one and unfold them again.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from pyrovae.nn.base import Activation, Network, activation_module, positive


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

    structured = True

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
        _check_size(self.shape, in_features)
        self.layers = _down(self.shape, channels, hidden, out_features, activation, blocks=0)

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
        per_pixel = _numbers_per_pixel(self.shape, out_features)
        self.layers = _up(self.shape, channels, hidden, in_features, per_pixel, activation, blocks=0)

    def forward(self, x: Tensor) -> Tensor:
        """Map x, with shape (..., in_features), to shape (..., out_features)."""
        out = self.layers(x.reshape(-1, self.in_features))
        return out.reshape(*x.shape[:-1], self.out_features)


class ResidualConvNet(Network):
    """`ConvNet` with residual blocks h' = h + conv(act(conv(act(h)))) after each halving.

    Its mirror is `ResidualTransposedConvNet`. Blocks after He, Zhang, Ren and Sun, "Identity mappings in deep residual
    networks" (ECCV 2016, https://arxiv.org/abs/1603.05027); the last convolution of each starts at zero, so each starts
    as the identity, the other weights as torch's layers do.

    Args:
        in_features: C*H*W, the size of a flat image.
        out_features: Size of the last dimension of the output.
        shape: (C, H, W) or (H, W) of the image, of any size; None for a square image of one channel.
        channels: Channels after each halving of height and width, which round up.
        blocks: Residual blocks after each halving.
        hidden: Size of the fully connected layer after the convolutions.
        activation: Activation after every layer but the last.

    Raises:
        ValueError: If in_features is not the size of the image.
    """

    structured = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        shape: Sequence[int] | None = None,
        channels: Sequence[int] = (32, 64),
        blocks: int = 1,
        hidden: int = 200,
        activation: Activation = "relu",
    ) -> None:
        super().__init__(in_features, out_features)
        self.shape = _image_shape(shape, in_features)
        _check_size(self.shape, in_features)
        self.layers = _down(self.shape, channels, hidden, out_features, activation, blocks)

    @classmethod
    def mirror(cls) -> type[Network]:
        """The decoder's network: `ResidualTransposedConvNet`."""
        return ResidualTransposedConvNet

    def forward(self, x: Tensor) -> Tensor:
        """Map x, with shape (..., C*H*W), to shape (..., out_features)."""
        return self.layers(x.reshape(-1, *self.shape)).reshape(*x.shape[:-1], self.out_features)


class ResidualTransposedConvNet(Network):
    """`TransposedConvNet` with residual blocks before each doubling: the mirror of `ResidualConvNet`.

    Args:
        in_features: Size of the last dimension of the input.
        out_features: p*C*H*W for p numbers per pixel; number j of every pixel stands in the j-th block of C*H*W.
        shape: (C, H, W) or (H, W) of the image, of any size; None for a square image of one channel, p = 1.
        channels: Channels as `ResidualConvNet` counts them, from the image inwards.
        blocks: Residual blocks before each doubling.
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
        blocks: int = 1,
        hidden: int = 200,
        activation: Activation = "relu",
    ) -> None:
        super().__init__(in_features, out_features)
        self.shape = _image_shape(shape, out_features)
        per_pixel = _numbers_per_pixel(self.shape, out_features)
        self.layers = _up(self.shape, channels, hidden, in_features, per_pixel, activation, blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Map x, with shape (..., in_features), to shape (..., out_features)."""
        out = self.layers(x.reshape(-1, self.in_features))
        return out.reshape(*x.shape[:-1], self.out_features)


class _Block(nn.Module):
    def __init__(self, channels: int, activation: Activation) -> None:
        super().__init__()
        last = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]  # torch types it as None too
        first = nn.Conv2d(channels, channels, 3, padding=1)
        self.layers = nn.Sequential(activation_module(activation), first, activation_module(activation), last)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _down(
    shape: tuple[int, int, int],
    channels: Sequence[int],
    hidden: int,
    out_features: int,
    activation: Activation,
    blocks: int,
) -> nn.Sequential:
    positive("channels and hidden", *channels, hidden)
    depths = [shape[0], *channels]
    layers: list[nn.Module] = []
    for depth_in, depth_out in pairwise(depths):
        layers += [nn.Conv2d(depth_in, depth_out, 3, stride=2, padding=1)]
        layers += [_Block(depth_out, activation) for _ in range(blocks)]
        layers += [activation_module(activation)]
    height, width = _halvings(shape, len(channels))[-1]
    layers += [nn.Flatten(), nn.Linear(depths[-1] * height * width, hidden)]
    return nn.Sequential(*layers, activation_module(activation), nn.Linear(hidden, out_features))


def _up(
    shape: tuple[int, int, int],
    channels: Sequence[int],
    hidden: int,
    in_features: int,
    per_pixel: int,
    activation: Activation,
    blocks: int,
) -> nn.Sequential:
    positive("channels and hidden", *channels, hidden)
    sizes = _halvings(shape, len(channels))
    depths = [per_pixel * shape[0], *channels]
    height, width = sizes[-1]
    layers: list[nn.Module] = [nn.Linear(in_features, hidden), activation_module(activation)]
    layers += [nn.Linear(hidden, depths[-1] * height * width), nn.Unflatten(-1, (depths[-1], height, width))]
    for level in reversed(range(len(channels))):
        (height, width), (below_h, below_w) = sizes[level], sizes[level + 1]
        # Without output padding the layer gives 2 * below - 1; the padding restores even sizes.
        padding = (height - 2 * below_h + 1, width - 2 * below_w + 1)
        layers += [_Block(depths[level + 1], activation) for _ in range(blocks)]
        layers += [activation_module(activation)]
        layers += [nn.ConvTranspose2d(depths[level + 1], depths[level], 3, stride=2, padding=1, output_padding=padding)]
    return nn.Sequential(*layers)


def _check_size(shape: tuple[int, int, int], features: int) -> None:
    if math.prod(shape) != features:
        raise ValueError(
            f"in_features is {features}, but an image of shape {shape} has {math.prod(shape)} values; "
            "give the image's shape"
        )


def _numbers_per_pixel(shape: tuple[int, int, int], features: int) -> int:
    per_pixel, rest = divmod(features, math.prod(shape))
    if rest or not per_pixel:
        raise ValueError(
            f"out_features is {features}, not a multiple of the {math.prod(shape)} values of an image {shape}; "
            "give the image's shape"
        )
    return per_pixel


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
