"""Entropy, cross-entropy and KL divergence of the guide against the prior by dimension, in nats and bits."""

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pyrovae.densities import Program, entry
from pyrovae.diagnostics.draws import make_pair
from pyrovae.diagnostics.kl import compare, mean_and_error


class Entropies(NamedTuple):
    """Entropy, cross-entropy and KL divergence by latent dimension; J dimensions in the order of the model, float64.

    They keep the sum rule cross_entropy = entropy + kl, for each dimension.

    Attributes:
        labels: Name of each dimension, such as "z[0]".
        entropy: H(q_j) = -E_q log q(z_j|x), the mean over data, with shape (J,). It depends on the latent's unit, and
            can be negative.
        cross_entropy: H(q_j, p_j) = -E_q log p(z_j), the mean over data, with shape (J,). It depends on the latent's
            unit too.
        kl: KL(q_j, p_j), the mean over data, with shape (J,). It does not depend on the unit.
        entropy_error: Standard error of entropy over data and draws, with shape (J,).
        cross_entropy_error: Standard error of cross_entropy, with shape (J,).
        kl_error: Standard error of kl, with shape (J,).
        quantity: What kl is, as in `KLByDimension`.
        unit: Unit of all six: "nats" or "bits".
        skipped: One sentence for each latent site that is left out.
    """

    labels: tuple[str, ...]
    entropy: Tensor
    cross_entropy: Tensor
    kl: Tensor
    entropy_error: Tensor
    cross_entropy_error: Tensor
    kl_error: Tensor
    quantity: tuple[str, ...]
    unit: Literal["nats", "bits"]
    skipped: tuple[str, ...]

    def in_bits(self) -> "Entropies":
        """Return the same numbers in bits, 1 bit = ln 2 nats."""
        if self.unit == "bits":
            return self
        values = self._asdict()
        numbers: dict[str, Any] = {
            key: value / math.log(2) for key, value in values.items() if isinstance(value, Tensor)
        }
        return self._replace(**numbers, unit="bits")


@entry()
def entropies(
    model: Program, guide: Program, *args: Any, num_particles: int = 64, seed: int = 0, **kwargs: Any
) -> Entropies:
    """Compute entropy, cross-entropy and KL divergence of q(z_j|x) against p(z_j), in nats.

        H(q_j, p_j) = H(q_j) + KL(q_j, p_j)

    A code for draws from q that is made for p needs H(q, p) on average, one that is made for q needs H(q), and the
    divergence is the difference (Cover and Thomas, "Elements of information theory", 2nd ed. 2006, theorem 5.4.3, for
    discrete values; densities need in addition the bits of the rounding, which cancel in the divergence). Entropy and
    divergence are in closed form if torch has one, else means over K draws of the guide, unbiased. Densities of
    dimensions are those of `kl_by_dimension`; unknown ones give NaN. `Entropies.in_bits` gives bits.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Positional arguments of both programs, the data first, with shape (N, ...).
        num_particles: Number of draws K per datum.
        seed: Random seed; the global random state is restored at the end.
        **kwargs: Keyword arguments of both programs.

    Raises:
        ValueError: If there is no real latent, or a program breaks the contract of `log_weights`.
    """
    found = compare(make_pair(model, guide, args, kwargs), num_particles, seed)
    parts = torch.stack([found.entropy, found.entropy + found.kl, found.kl], 1)  # (N, 3, J)
    (entropy, cross_entropy, kl), errors = mean_and_error(parts)
    labels, skipped = found.latents.labels, found.latents.skipped
    return Entropies(
        labels, entropy, cross_entropy, kl, errors[0], errors[1], errors[2], found.quantity, "nats", skipped
    )
