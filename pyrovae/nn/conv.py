"""Convolutional networks for images of any size.

Images are flat vectors, as every datum is. The layers fold all leading dimensions into one, and unfold them at the end.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from pyrovae.nn.base import Activation, Network, activation_module, check_sizes


class _ImageToVector(Network):
    """Base of the networks from a flat image: stride-2 convolutions, residual blocks, one hidden layer."""

    structured = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        shape: Sequence[int] | None,
        channels: Sequence[int],
        hidden: int,
        activation: Activation,
        blocks: int,
    ) -> None:
        super().__init__(in_features, out_features)
        self.shape = _image_shape(shape, in_features)
        _check_image_size(self.shape, in_features)
        check_sizes("channels and hidden", *channels, hidden)
        depths = [self.shape[0], *channels]
        layers: list[nn.Module] = []
        for depth_in, depth_out in pairwise(depths):
            layers += [nn.Conv2d(depth_in, depth_out, 3, stride=2, padding=1)]
            layers += [_ResidualBlock(depth_out, activation) for _ in range(blocks)]
            layers += [activation_module(activation)]
        height, width = _halved_sizes(self.shape, len(channels))[-1]
        layers += [nn.Flatten(), nn.Linear(depths[-1] * height * width, hidden)]
        self.layers = nn.Sequential(*layers, activation_module(activation), nn.Linear(hidden, out_features))

    def forward(self, x: Tensor) -> Tensor:
        """Map x, with shape (..., C*H*W), to shape (..., out_features)."""
        return self.layers(x.reshape(-1, *self.shape)).reshape(*x.shape[:-1], self.out_features)


class _VectorToImage(Network):
    """Base of the networks to a flat image: one hidden layer, residual blocks, stride-2 transposed convolutions."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        shape: Sequence[int] | None,
        channels: Sequence[int],
        hidden: int,
        activation: Activation,
        blocks: int,
    ) -> None:
        super().__init__(in_features, out_features)
        self.shape = _image_shape(shape, out_features)
        depths = [_blocks_of_pixels(self.shape, out_features) * self.shape[0], *channels]
        check_sizes("channels and hidden", *channels, hidden)
        sizes = _halved_sizes(self.shape, len(channels))
        height, width = sizes[-1]
        layers: list[nn.Module] = [nn.Linear(in_features, hidden), activation_module(activation)]
        layers += [nn.Linear(hidden, depths[-1] * height * width), nn.Unflatten(-1, (depths[-1], height, width))]
        for level in reversed(range(len(channels))):
            (height, width), (half_height, half_width) = sizes[level], sizes[level + 1]
            # Without output padding the layer makes 2 * half - 1 rows; the padding restores even sizes.
            padding = (height - 2 * half_height + 1, width - 2 * half_width + 1)
            depth_in, depth_out = depths[level + 1], depths[level]
            layers += [_ResidualBlock(depth_in, activation) for _ in range(blocks)]
            layers += [activation_module(activation)]
            layers += [nn.ConvTranspose2d(depth_in, depth_out, 3, stride=2, padding=1, output_padding=padding)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map x, with shape (..., in_features), to shape (..., out_features)."""
        out = self.layers(x.reshape(-1, self.in_features))
        return out.reshape(*x.shape[:-1], self.out_features)


class ConvNet(_ImageToVector):
    """Convolutional network from a flat image to a vector: stride-2 convolutions, then one hidden layer.

    Its mirror on the decoder's side is `TransposedConvNet`. Weights are initialised as torch's layers are, uniform on
    +-1/sqrt(fan_in).

    Args:
        in_features: Size C*H*W of a flat image.
        out_features: Size of the last dimension of the output.
        shape: Shape (C, H, W) or (H, W) of the image; None for a square image of one channel.
        channels: Channels after each convolution, which halves height and width, rounding up.
        hidden: Size of the fully connected hidden layer.
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
        super().__init__(in_features, out_features, shape, channels, hidden, activation, blocks=0)

    @classmethod
    def mirror(cls) -> type[Network]:
        """Return the decoder's network, `TransposedConvNet`."""
        return TransposedConvNet


class TransposedConvNet(_VectorToImage):
    """Convolutional network from a vector to a flat image, the mirror of `ConvNet`.

    Weights are initialised as torch's layers are, uniform on +-1/sqrt(fan_in).

    Args:
        in_features: Size of the last dimension of the input.
        out_features: Size p*C*H*W of the output, p blocks of one number per pixel.
        shape: Shape (C, H, W) or (H, W) of the image; None for a square image of one channel and p = 1.
        channels: Channels in the order of `ConvNet`, from the image inwards.
        hidden: Size of the fully connected hidden layer.
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
        super().__init__(in_features, out_features, shape, channels, hidden, activation, blocks=0)


class ResidualConvNet(_ImageToVector):
    """Convolutional network from a flat image to a vector, with residual blocks after each halving.

        h' = h + conv(act(conv(act(h))))

    Its mirror on the decoder's side is `ResidualTransposedConvNet`. Blocks after He, Zhang, Ren and Sun, "Identity
    mappings in deep residual networks" (ECCV 2016, https://arxiv.org/abs/1603.05027). The last convolution of each
    block is initialised at zero, so each block starts as the identity. The other weights are initialised as torch's
    layers are.

    Args:
        in_features: Size C*H*W of a flat image.
        out_features: Size of the last dimension of the output.
        shape: Shape (C, H, W) or (H, W) of the image; None for a square image of one channel.
        channels: Channels after each convolution, which halves height and width, rounding up.
        blocks: Number of residual blocks after each halving.
        hidden: Size of the fully connected hidden layer.
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
        blocks: int = 1,
        hidden: int = 200,
        activation: Activation = "relu",
    ) -> None:
        super().__init__(in_features, out_features, shape, channels, hidden, activation, blocks)

    @classmethod
    def mirror(cls) -> type[Network]:
        """Return the decoder's network, `ResidualTransposedConvNet`."""
        return ResidualTransposedConvNet


class ResidualTransposedConvNet(_VectorToImage):
    """Convolutional network from a vector to a flat image with residual blocks, the mirror of `ResidualConvNet`.

    Args:
        in_features: Size of the last dimension of the input.
        out_features: Size p*C*H*W of the output, p blocks of one number per pixel.
        shape: Shape (C, H, W) or (H, W) of the image; None for a square image of one channel and p = 1.
        channels: Channels in the order of `ResidualConvNet`, from the image inwards.
        blocks: Number of residual blocks before each doubling.
        hidden: Size of the fully connected hidden layer.
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
        super().__init__(in_features, out_features, shape, channels, hidden, activation, blocks)


class _ResidualBlock(nn.Module):
    """Residual block h' = h + conv(act(conv(act(h)))), initialised as the identity."""

    def __init__(self, channels: int, activation: Activation) -> None:
        super().__init__()
        last = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]  # torch types it as None too
        first = nn.Conv2d(channels, channels, 3, padding=1)
        self.layers = nn.Sequential(activation_module(activation), first, activation_module(activation), last)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _image_shape(shape: Sequence[int] | None, features: int) -> tuple[int, int, int]:
    """Return (C, H, W); that of a square image of one channel if shape is None."""
    if shape is None:
        side = math.isqrt(features)
        if side * side != features:
            raise ValueError(
                f"an image without a shape must be square with one channel, got {features} values; give its shape "
                "(C, H, W)"
            )
        return (1, side, side)
    if len(shape) not in (2, 3):
        raise ValueError(
            f"an image has shape (H, W) or (C, H, W), got {tuple(shape)}; give that of one image, without the batch"
        )
    channels, height, width = (1, *shape) if len(shape) == 2 else shape
    return (channels, height, width)


def _check_image_size(shape: tuple[int, int, int], features: int) -> None:
    if math.prod(shape) != features:
        raise ValueError(
            f"in_features must be {math.prod(shape)} for an image of shape {shape}, got {features}; give the image's "
            "shape"
        )


def _blocks_of_pixels(shape: tuple[int, int, int], features: int) -> int:
    """Return p, where p*C*H*W = features."""
    per_pixel, rest = divmod(features, math.prod(shape))
    if rest or not per_pixel:
        raise ValueError(
            f"out_features must be a multiple of {math.prod(shape)} for an image of shape {shape}, got {features}; "
            "give the image's shape"
        )
    return per_pixel


def _halved_sizes(shape: tuple[int, int, int], times: int) -> list[tuple[int, int]]:
    """Return (H, W) of the image and after each of several halvings, which round up."""
    sizes = [shape[1:]]
    for _ in range(times):
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes
