"""Decoders that page.js computes itself: a chain of linear layers and activations, and a mean that follows from it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pyrovae.nn import Offset
from pyrovae.page.packed import pack

MOST_BYTES = 2_000_000  # of float16 weights
TOLERANCE = 1e-3  # of the range of the means, between page.js and torch
_MARGIN = 0.9  # of the tolerance, for the rounding of JavaScript

_LINKS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda y: y,
    "sigmoid": torch.sigmoid,
    "exp": torch.exp,
    "softplus": nn.functional.softplus,
    "softmax": lambda y: y.softmax(-1),
}


class Layer(NamedTuple):
    """Linear layer with what follows it.

    Attributes:
        weight: Weights, with shape (H_out, H_in).
        bias: Biases, with shape (H_out,).
        activation: Name of the activation.
        slope: Parameter of the activation: the slope of leaky_relu, the alpha of elu, the beta of softplus.
    """

    weight: Tensor
    bias: Tensor
    activation: str
    slope: float


class LiveDecoder(NamedTuple):
    """Decoder E[x|z] = offset + scale link(network(z)).

    Attributes:
        layers: Layers.
        link: Name of the link.
        offset: Offsets, with shape (D,).
        scale: Scales, with shape (D,).
    """

    layers: tuple[Layer, ...]
    link: str
    offset: Tensor
    scale: Tensor

    def to_json(self) -> dict[str, Any]:
        """Return the decoder for page.js, with float16 weights."""
        layers = [
            {"w": pack(each.weight, "f2"), "b": pack(each.bias, "f4"), "act": each.activation, "slope": each.slope}
            for each in self.layers
        ]
        return {"layers": layers, "link": self.link, "a": pack(self.offset, "f4"), "b": pack(self.scale, "f4")}


def live_decoder(
    model: nn.Module, decode: Callable[[Tensor], Tensor], z: Tensor, covariates: Tensor | None
) -> LiveDecoder | None:
    """Find a decoder that page.js can compute, and compare it with the model.

    Every chain of layers inside the model that takes z is tried: link functions of its outputs, scaled and shifted by
    column. A candidate counts if it agrees with the model at all places, with weights rounded to float16.

    Args:
        model: Model.
        decode: Function from places z, with shape (M, J), to means E[x|z], with shape (M, D), float64.
        z: Places for the comparison, with shape (M, J), float64.
        covariates: Covariates of the datum whose means are decoded, with shape (C,); None for none.

    Returns:
        The decoder; None if there is none within the tolerance, or its weights are larger than 2 MB.
    """
    means = decode(z)
    for module in model.modules():
        layers = _chain(module, z.shape[1], covariates)
        if layers is None or 2 * sum(each.weight.numel() for each in layers) > MOST_BYTES:
            continue
        layers = _rounded(layers, z)
        outputs = _run(layers, z)
        if outputs.shape[1] < means.shape[1]:
            continue
        for link, function in _LINKS.items():
            y = function(outputs[:, : means.shape[1]])
            if link == "softmax" and outputs.shape[1] != means.shape[1]:
                continue
            found = _affine(y, means)
            if found is not None:
                last = layers[-1]
                cut = last._replace(weight=last.weight[: means.shape[1]], bias=last.bias[: means.shape[1]])
                return LiveDecoder((*layers[:-1], cut), link, *found)
    return None


def _affine(y: Tensor, means: Tensor) -> tuple[Tensor, Tensor] | None:
    """Fit means = a + b y by column; None if a column is further from it than the tolerance."""
    centre_y, centre = y.mean(0), means.mean(0)
    variance = (y - centre_y).square().mean(0)
    slope = ((y - centre_y) * (means - centre)).mean(0) / variance.clamp(min=1e-300)
    slope = torch.where(variance > 1e-12, slope, 0.0)
    offset = centre - slope * centre_y
    size = (means.amax() - means.amin()).clamp(min=1e-12)
    close = ((offset + slope * y - means).abs() <= _MARGIN * TOLERANCE * size).all()
    return (offset, slope) if bool(close) and bool(y.isfinite().all()) else None


def _chain(module: nn.Module, num_latents: int, covariates: Tensor | None) -> list[Layer] | None:
    """Return a module as a chain of layers from z; None if it is none. Covariates go into the first bias."""
    parts = _flat(module)
    if not parts or not isinstance(parts[0], nn.Linear):
        return None
    layers: list[Layer] = []
    for part in parts:
        if isinstance(part, nn.Linear):
            bias = torch.zeros(part.out_features) if part.bias is None else part.bias.detach().cpu()
            layers.append(Layer(part.weight.detach().cpu().double(), bias.double(), "identity", 0.0))
        elif isinstance(part, Offset) and layers[-1].activation == "identity":
            layers[-1] = layers[-1]._replace(bias=layers[-1].bias + part.bias.detach().cpu().double())
        else:
            named = _activation(part)
            if named is None or layers[-1].activation != "identity":
                return None
            layers[-1] = layers[-1]._replace(activation=named[0], slope=named[1])
    given = 0 if covariates is None else len(covariates)
    first = layers[0]
    if first.weight.shape[1] != num_latents + given:
        return None
    if covariates is not None:
        bias = first.bias + first.weight[:, num_latents:] @ covariates.detach().cpu().double()
        layers[0] = first._replace(weight=first.weight[:, :num_latents], bias=bias)
    return layers


def _flat(module: nn.Module) -> list[nn.Module]:
    """List the layers of a sequence, and of a network that has nothing but one, in its order."""
    children = list(module.children())
    if isinstance(module, nn.Sequential):
        return [layer for child in children for layer in _flat(child)]
    if isinstance(module, nn.Identity | nn.Dropout):
        return []
    only = len(children) == 1 and isinstance(children[0], nn.Sequential)
    own = list(module.parameters(recurse=False)) + list(module.buffers(recurse=False))
    return _flat(children[0]) if only and not own else [module]


def _activation(layer: nn.Module) -> tuple[str, float] | None:
    """Return the name and the parameter of an activation; None if page.js does not know it."""
    for kind, name in ((nn.ReLU, "relu"), (nn.Tanh, "tanh"), (nn.SiLU, "silu"), (nn.Sigmoid, "sigmoid")):
        if type(layer) is kind:
            return name, 0.0
    if type(layer) is nn.GELU:
        return "gelu" if layer.approximate == "none" else "gelu_tanh", 0.0
    if type(layer) is nn.Softplus:
        return "softplus", float(layer.beta)
    if type(layer) is nn.ELU:
        return "elu", float(layer.alpha)
    if type(layer) is nn.LeakyReLU:
        return "leaky_relu", float(layer.negative_slope)
    return None


def _half(weight: Tensor) -> Tensor:
    """Round weights to float16, as page.js has them; too large ones become infinite, and fail the comparison."""
    with np.errstate(over="ignore"):
        return torch.from_numpy(weight.detach().cpu().numpy().astype(np.float16).astype(np.float64))


_ACTIVATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda h, slope: h,
    "relu": lambda h, slope: h.relu(),
    "tanh": lambda h, slope: h.tanh(),
    "sigmoid": lambda h, slope: h.sigmoid(),
    "silu": lambda h, slope: nn.functional.silu(h),
    "gelu": lambda h, slope: nn.functional.gelu(h),
    "gelu_tanh": lambda h, slope: nn.functional.gelu(h, approximate="tanh"),
    "softplus": lambda h, slope: nn.functional.softplus(h, beta=slope),
    "elu": lambda h, slope: nn.functional.elu(h, alpha=slope),
    "leaky_relu": lambda h, slope: nn.functional.leaky_relu(h, slope),
}


def _rounded(layers: list[Layer], z: Tensor) -> list[Layer]:
    """Round the weights to float16, and move biases so that no layer's outputs change on average over places."""
    exact = rounded = z.double()
    found = []
    for layer in layers:
        weight, activation = _half(layer.weight), _ACTIVATIONS[layer.activation]
        outputs = exact @ layer.weight.T
        bias = layer.bias + outputs.mean(0) - (rounded @ weight.T).mean(0)
        found.append(layer._replace(weight=weight, bias=bias))
        exact = activation(outputs + layer.bias, layer.slope)
        rounded = activation(rounded @ weight.T + bias, layer.slope)
    return found


def _run(layers: list[Layer], z: Tensor) -> Tensor:
    h = z.double()
    for layer in layers:
        h = _ACTIVATIONS[layer.activation](h @ layer.weight.T + layer.bias, layer.slope)
    return h
