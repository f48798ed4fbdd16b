"""Matrix products of the benchmark's VAE, and Adam's kernel, without the rest."""

from collections.abc import Callable

import torch
from benchmark_peers import NUM_DATA, PARTICLES, D, H, HandWritten, Z
from torch import Tensor


def step_products(x: Tensor) -> Callable[[], None]:
    """Make a function that computes the eleven products of a training step, and one step of fused Adam.

    Args:
        x: Batch, with shape (N, D).
    """
    pixels, hidden, outputs, z = (torch.randn(len(x), size, device=x.device) for size in (D, H, 2 * Z, Z))
    model = HandWritten().to(x.device)
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)
    encoder, moments, decoder, logits = (p.detach() for p in parameters if p.dim() == 2)

    def step() -> None:
        for value, weight in ((pixels, encoder), (hidden, moments), (z, decoder), (hidden, logits)):
            value @ weight.T
        for gradient, weight in ((pixels, logits), (hidden, decoder), (outputs, moments)):
            gradient @ weight
        for gradient, value in ((pixels, hidden), (hidden, z), (outputs, hidden), (hidden, pixels)):
            gradient.T @ value
        optimizer.step()

    return step


def sampling_products(device: torch.device) -> Callable[[], None]:
    """Make a function that computes the decoder's two products of importance sampling."""
    z, h = (torch.randn(NUM_DATA * PARTICLES, size, device=device) for size in (Z, H))
    one, two = torch.randn(Z, H, device=device), torch.randn(H, D, device=device)

    def multiply() -> None:
        z @ one
        h @ two

    return multiply


def gradient_products(device: torch.device, batch: int, count: int) -> Callable[[], None]:
    """Make a function that computes the products of gradients of log p(x, z) by z.

    Args:
        device: Device of the products.
        batch: Number of latents of a gradient.
        count: Number of gradients.
    """
    z, h, x = (torch.randn(batch, size, device=device) for size in (Z, H, D))
    one, two = torch.randn(Z, H, device=device), torch.randn(H, D, device=device)

    def multiply() -> None:
        for _ in range(count):
            z @ one
            h @ two
            x @ two.T
            h @ one.T

    return multiply
