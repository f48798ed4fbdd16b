"""Fully connected networks."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from pyrovae.nn.base import Activation, Network, activation_module, check_sizes


class MLP(Network):
    """Multilayer perceptron: linear layers with an activation between them.

    Weights and biases are initialised as in torch's `nn.Linear`, uniform on +-1/sqrt(fan_in).

    Args:
        in_features: Size of the last dimension of the input.
        out_features: Size of the last dimension of the output.
        hidden: Sizes of the hidden layers; empty for a linear map.
        activation: Activation after each hidden layer.

    Example:
        >>> import torch
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
        check_sizes("hidden", *hidden)
        sizes = [in_features, *hidden]
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), activation_module(activation)]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], out_features))

    def forward(self, x: Tensor) -> Tensor:
        """Map x, with shape (..., in_features), to shape (..., out_features)."""
        return self.layers(x)


class GatedMLP(Network):
    """Multilayer perceptron of gated layers, then one linear layer.

        h' = (A h + a) * sigmoid(B h + b)

    The layer of Tomczak and Welling, "VAE with a VampPrior" (AISTATS 2018, https://arxiv.org/abs/1705.07120). Weights
    and biases are initialised as in torch's `nn.Linear`, uniform on +-1/sqrt(fan_in).

    Args:
        in_features: Size of the last dimension of the input.
        out_features: Size of the last dimension of the output.
        hidden: Sizes of the hidden layers; empty for a linear map.
    """

    def __init__(self, in_features: int, out_features: int, *, hidden: Sequence[int] = (300, 300)) -> None:
        super().__init__(in_features, out_features)
        check_sizes("hidden", *hidden)
        sizes = [in_features, *hidden]
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(sizes):
            layers += [nn.Linear(fan_in, 2 * fan_out), nn.GLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], out_features))

    def forward(self, x: Tensor) -> Tensor:
        """Map x, with shape (..., in_features), to shape (..., out_features)."""
        return self.layers(x)


class ResidualMLP(Network):
    """Residual perceptron: a linear layer, residual blocks, and a linear layer.

        h' = h + V act(U act(norm(h)))

    Pre-activation blocks after He, Zhang, Ren and Sun, "Identity mappings in deep residual networks" (ECCV 2016,
    https://arxiv.org/abs/1603.05027), with layer normalisation, which treats each datum separately. The V of each block
    is initialised at zero, so each block starts as the identity. The other weights are initialised as in torch's
    `nn.Linear`.

    Args:
        in_features: Size of the last dimension of the input.
        out_features: Size of the last dimension of the output.
        width: Size of h.
        depth: Number of blocks.
        activation: Activation inside the blocks.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        width: int = 200,
        depth: int = 2,
        activation: Activation = "relu",
    ) -> None:
        super().__init__(in_features, out_features)
        check_sizes("width", width)
        self.first = nn.Linear(in_features, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                activation_module(activation),
                nn.Linear(width, width),
                activation_module(activation),
                _zeroed(nn.Linear(width, width)),
            )
            for _ in range(depth)
        )
        self.last = nn.Sequential(activation_module(activation), nn.Linear(width, out_features))

    def forward(self, x: Tensor) -> Tensor:
        """Map x, with shape (..., in_features), to shape (..., out_features)."""
        h = self.first(x)
        for block in self.blocks:
            h = h + block(h)
        return self.last(h)


def _zeroed(layer: nn.Linear) -> nn.Linear:
    """Set the weights and biases of a layer to zero, and return it."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
