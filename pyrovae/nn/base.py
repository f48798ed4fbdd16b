"""Base class of networks, activations, and layers and helpers shared by networks."""

import math
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

Activation = Literal["relu", "tanh", "softplus", "silu", "gelu", "elu", "leaky_relu"]

# Of the length of an interval of log v, at each of its ends: [1e-6, 1e6] has exp(-10) to exp(10) inside.
_ROOM = (1 - 10 / math.log(1e6)) / 2

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
    """Make the activation layer with this name.

    Raises:
        ValueError: If no activation has this name.
    """
    if name not in _ACTIVATIONS:
        known = ", ".join(get_args(Activation))
        raise ValueError(f"unknown activation {name!r}; use one of {known}")
    return _ACTIVATIONS[name]()


_LARGEST = 10**8  # numbers in one hidden state or datum, beyond which a layer fills the memory of the machine


def check_sizes(name: str, *sizes: int) -> None:
    """Raise ValueError if a size is below 1, or too large for any memory; the message starts with the name."""
    if any(size < 1 for size in sizes):
        raise ValueError(f"{name} must be at least 1, got {list(sizes)}")
    if any(size > _LARGEST for size in sizes):
        raise ValueError(f"{name} must be at most {_LARGEST:,}, got {list(sizes)}")


class Network(nn.Module):
    """Base class of the networks that the command line can build.

    To add a network:

    1. Subclass `Network` with a constructor `(in_features, out_features, *, ...)`, whose further arguments have
       defaults, and call `super().__init__(in_features, out_features)`.
    2. Write `forward`, from tensors of shape (..., in_features) to (..., out_features).
    3. If positions in the input have a meaning, set `structured = True`.
    4. If the decoder needs another class than the encoder, return that class from `mirror`.

    Args:
        in_features: Size of the last dimension of the input.
        out_features: Size of the last dimension of the output.

    Attributes:
        structured: Whether positions in the input have a meaning, as in an image or a sequence. Covariates then enter
            after the network (see `WithCovariates`), not appended to its input.
    """

    structured: ClassVar[bool] = False

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        check_sizes("in_features and out_features", in_features, out_features)
        self.in_features = in_features
        self.out_features = out_features

    @classmethod
    def mirror(cls) -> type["Network"]:
        """Return the class of the decoder's network if this class is the encoder's."""
        return cls


class Standardize(nn.Module):
    """Affine layer (x - loc) / scale with constants, kept as buffers.

    Args:
        loc: Centre, with shape (D,) or ().
        scale: Positive scale, with shape (D,) or ().
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("loc", loc)
        self.register_buffer("scale", scale)

    @classmethod
    def from_data(cls, x: Tensor, num_covariates: int = 0) -> "Standardize":
        """Make the layer that centres each dimension of x and divides all by one scale, the root mean variance.

        Args:
            x: Data, with shape (N, D); NaN where missing.
            num_covariates: Number C of covariates that follow x in the layer's input; they stay unchanged.
        """
        mean, variance = x.mean(0), x.var(0, correction=0)
        if bool(x.isnan().any()):
            mean = x.nanmean(0).nan_to_num(0.0)
            variance = (x - mean).square().nanmean(0).nan_to_num(0.0)
        scale = variance.mean().sqrt()
        return cls.around(mean, torch.where(scale > 0, scale, torch.ones_like(scale)), num_covariates)

    @classmethod
    def around(cls, loc: Tensor, scale: Tensor, num_covariates: int = 0) -> "Standardize":
        """Make the layer for data that covariates follow.

        Args:
            loc: Centre of the data, with shape (D,).
            scale: Positive scale of the data, with shape (D,) or ().
            num_covariates: Number C of covariates that follow the data in the layer's input; they stay unchanged.
        """
        if not num_covariates:
            return cls(loc, scale)
        zeros, ones = loc.new_zeros(num_covariates), loc.new_ones(num_covariates)
        return cls(torch.cat([loc, zeros]), torch.cat([scale.expand(len(loc)), ones]))

    @classmethod
    def for_encoder(cls, x: Tensor, num_covariates: int = 0) -> "Standardize":
        """Make the first layer of an encoder: as `from_data`, but bits and grey values stay as they are.

        These are data from 0 to 1 that reach at least 1/2. At unit variance they make the first layer's steps larger
        and its weights noisier: a worse ELBO at equal budget (`python -m pyrovae.guide training` has the numbers).

        Args:
            x: Data, with shape (N, D).
            num_covariates: Number C of covariates that follow x in the layer's input; they stay unchanged.
        """
        layer = cls.from_data(x, num_covariates)
        low, high = x[~x.isnan()].aminmax()
        if bool((low >= 0) & (high >= 0.5) & (high <= 1)):
            return cls(torch.zeros_like(layer.loc), torch.ones_like(layer.scale))
        return layer

    @property
    def fill(self) -> Tensor:
        """Values of missing entries, which become 0, with the shape of `loc`."""
        return self.loc

    def forward(self, x: Tensor) -> Tensor:
        """Map x, with shape (..., D), to the same shape."""
        return (x - self.loc) / self.scale


class StandardizeCounts(nn.Module):
    """Affine layer (log(1 + x) - loc) / scale for counts, with constants, kept as buffers.

    Counts are skewed: after `Standardize` the largest lie 20 scales from the mean, and one such row can dominate
    a step.

    Args:
        log_loc: Centre of log(1 + x), with shape (D,).
        log_scale: Positive scale of log(1 + x), with shape ().
        num_covariates: Number of covariates that follow x in the layer's input; they stay unchanged.
    """

    log_loc: Tensor
    log_scale: Tensor

    def __init__(self, log_loc: Tensor, log_scale: Tensor, num_covariates: int = 0) -> None:
        super().__init__()
        self.num_covariates = num_covariates
        self.register_buffer("log_loc", log_loc)
        self.register_buffer("log_scale", log_scale)

    @classmethod
    def from_data(cls, x: Tensor, num_covariates: int = 0) -> "StandardizeCounts":
        """Make the layer that centres log(1 + x) and divides it by one scale, as `Standardize.from_data`.

        Args:
            x: Counts, with shape (N, D); NaN where missing.
            num_covariates: Number C of covariates that follow x in the layer's input; they stay unchanged.
        """
        layer = Standardize.from_data(x.clamp(min=0).log1p())
        return cls(layer.loc, layer.scale, num_covariates)

    @property
    def fill(self) -> Tensor:
        """Values of missing entries, which become 0, with shape (D,)."""
        return self.log_loc.expm1()

    def forward(self, x: Tensor) -> Tensor:
        """Map x, with shape (..., D + C), to the same shape."""
        counts, covariates = x.tensor_split((x.shape[-1] - self.num_covariates,), -1)
        standard = (counts.clamp(min=0).log1p() - self.log_loc) / self.log_scale
        return torch.cat([standard, covariates], -1) if self.num_covariates else standard


class Offset(nn.Module):
    """Learned offset that is added to the output of a network.

    Args:
        start: Initial offset, with shape (out_features,).
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.out_features = len(start)
        self.bias = nn.Parameter(start.clone())

    def forward(self, outputs: Tensor) -> Tensor:
        """Map outputs, with shape (..., out_features), to the same shape."""
        return outputs + self.bias


class WithCovariates(nn.Module):
    """Network of an image or a sequence whose covariates enter after its features.

    Args:
        features: Module from x, with shape (..., D), to H features.
        head: Module from the features and C covariates, with shape (..., H + C), to the output.
        num_dims: Size D of one datum; the rest of the input are covariates.
    """

    def __init__(self, features: nn.Module, head: nn.Module, num_dims: int) -> None:
        super().__init__()
        self.features, self.head, self.num_dims = features, head, num_dims

    def forward(self, x: Tensor) -> Tensor:
        """Map x with covariates appended, with shape (..., D + C), to the output of the head."""
        x, covariates = x.tensor_split((self.num_dims,), -1)
        return self.head(torch.cat([self.features(x), covariates], -1))


def join(x: Tensor, covariates: Tensor | None) -> Tensor:
    """Append covariates to x along the last dimension. Leading shapes broadcast against each other.

    Args:
        x: Data or latents, with shape (..., N, D).
        covariates: Covariates c, with shape (N, C); None if the model has none.
    """
    if covariates is None:
        return x
    leading = torch.broadcast_shapes(x.shape[:-1], covariates.shape[:-1])
    return torch.cat([part.expand(*leading, part.shape[-1]) for part in (x, covariates.to(x.dtype))], -1)


def split(outputs: Tensor, parts: int) -> tuple[Tensor, ...]:
    """Split the output of a network, with shape (..., parts*D), into parameters with shape (..., D) each.

    Raises:
        ValueError: If the size of the output is not a multiple of parts.
    """
    if outputs.shape[-1] % parts:
        raise ValueError(
            f"a network must have a multiple of {parts} outputs, got {outputs.shape[-1]}; give it num_outputs(...) of "
            "them"
        )
    return outputs.chunk(parts, dim=-1)


def scale_of(log_scale: Tensor) -> Tensor:
    """Return exp(a) for log scales a from a network, smoothly bounded to [1e-6, 1e6] (see `bounded_exp`).

    A datum far from those that a network was trained on can get any a, and exp(a) overflows in float32 from 88.7 on.
    Within the bounds of 10, scales of 5e-5 to 2e4, the result is that of exp bit by bit.

    Args:
        log_scale: Log scales a of any shape.
    """
    return bounded_exp(log_scale, start=1.0, low=1e-6, high=1e6)


def bounded_exp(raw: Tensor, *, start: float, low: float, high: float) -> Tensor:
    """Map real numbers a to v in [low, high], with v(0) = start and v proportional to exp(a) well inside.

        log v = b                                      inside [log low + w, log high - w],
                edge + w tanh((b - edge)/w)            beyond an edge of this interval,

    where b = a + c, the constant c makes v(0) = start, and w is about a seventh of log(high/low). So a bound far from
    the values changes nothing. If start lies outside the bounds, v(0) is their geometric mean.

    Args:
        raw: Real numbers a of any shape.
        start: Value of v at a = 0.
        low: Lower bound of v, positive.
        high: Upper bound of v.
    """
    bottom, top = math.log(low), math.log(high)
    room = _ROOM * (top - bottom)
    at_zero = math.log(start) if low < start < high else (bottom + top) / 2
    edge = min(max(at_zero, bottom + room), top - room)
    offset = edge + room * math.atanh((at_zero - edge) / room)
    log_v = raw + offset if offset else raw
    inside = log_v.clamp(bottom + room, top - room)
    return (inside + room * torch.tanh((log_v - inside) / room)).exp()


def out_features(network: nn.Module) -> int:
    """Return a network's number of outputs: its attribute `out_features`, or that of its last layer with one.

    Raises:
        ValueError: If no layer has the attribute.
    """
    for module in (network, *reversed(list(network.modules()))):
        if isinstance(getattr(module, "out_features", None), int):
            return int(module.out_features)  # type: ignore[arg-type]  # an int, by the line above
    raise ValueError(f"the number of outputs of {type(network).__name__} is unknown; set its attribute out_features")
