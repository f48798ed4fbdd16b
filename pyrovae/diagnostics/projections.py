"""Two-dimensional views of codes in many dimensions: principal components, and t-SNE with its caution."""

from typing import NamedTuple

import torch
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from torch import Tensor

from pyrovae.densities import isolated_rng
from pyrovae.diagnostics.codes import Codes

TSNE_CAUTION = (
    "t-SNE keeps neighbours alone: distances between groups, their sizes and their densities have no meaning. Groups "
    "can appear in data that have none; the picture changes with perplexity and seed."
)


class CodesPCA(NamedTuple):
    """Codes of N data in C principal components of their means.

    Attributes:
        names: Name of each component, with its share of the variance.
        mean: Means of q(z|x), with shape (N, C).
        draw: One draw of q(z|x) per datum by the same map, with shape (N, C).
        prior: Draws from the prior by the same map, with shape (M, C).
        share: Share of the variance of the means along each component, with shape (C,).
        components: Components in latent space, with shape (C, J), each of length 1.
        centre: Mean of the means, with shape (J,), which the map subtracts.
    """

    names: tuple[str, ...]
    mean: Tensor
    draw: Tensor
    prior: Tensor
    share: Tensor
    components: Tensor
    centre: Tensor


def pca_codes(codes: Codes, *, num_components: int = 2) -> CodesPCA:
    """Project codes onto the principal components of their means, and draws of the prior by the same map.

    The unit of each latent counts, so a latent of another scale than the rest needs care. The sign of a component is
    such that its largest entry is positive.

    Args:
        codes: Codes of N data in J dimensions.
        num_components: Number of components C.

    Raises:
        ValueError: If num_components is below 1 or above J or N - 1, or the means are all equal.
    """
    if not 1 <= num_components <= min(len(codes.names), len(codes.mean) - 1):
        raise ValueError(
            f"num_components must be from 1 to the number of latents, {len(codes.names)}, and below that of data, "
            f"{len(codes.mean)}, got {num_components}"
        )
    centre = codes.mean.mean(0)
    _, singular, components = torch.linalg.svd(codes.mean - centre, full_matrices=False)
    variance = singular.square()
    if not float(variance.sum()) > 0:
        raise ValueError("the means of all codes are equal, so they have no principal components; the guide ignores x")
    components = components[:num_components]
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    components = components * largest.sign()
    share = (variance / variance.sum())[:num_components]
    names = tuple(f"PC {c + 1} ({100 * float(part):.0f} % of the variance)" for c, part in enumerate(share))
    mean, draw, prior = ((z - centre) @ components.T for z in (codes.mean, codes.draw, codes.prior))
    return CodesPCA(names, mean, draw, prior, share, components, centre)


class CodesTSNE(NamedTuple):
    """t-SNE of the mean codes of N data.

    Attributes:
        places: Places in the plane, with shape (N, 2), without a unit.
        perplexity: Perplexity, about the number of neighbours that count.
        divergence: KL divergence between the neighbourhoods of codes and of places in nats, the loss of t-SNE.
        caution: Sentence on what the picture does not show.
    """

    places: Tensor
    perplexity: float
    divergence: float
    caution: str


def tsne_codes(codes: Codes, *, perplexity: float = 30.0, max_data: int = 1000, seed: int = 0) -> CodesTSNE:
    """Embed mean codes in the plane by t-SNE of scikit-learn.

    Van der Maaten and Hinton, "Visualizing data using t-SNE" (2008, https://jmlr.org/papers/v9/vandermaaten08a.html).
    It is no map: draws of the prior have no place in it. See `pca_codes` first.

    Args:
        codes: Codes of N data.
        perplexity: Perplexity, below N.
        max_data: Largest number of data, the first ones.
        seed: Random seed. Equal seeds give equal places, whatever the number of threads.

    Raises:
        ValueError: If perplexity is not positive and below the number of data.
    """
    z = codes.mean[:max_data]
    if not 0 < perplexity < len(z):
        raise ValueError(f"perplexity must be positive and below the number of data, {len(z)}, got {perplexity}")
    with isolated_rng(seed), threadpool_limits(1):  # several threads sum in an order that varies
        method = TSNE(perplexity=perplexity, init="pca" if z.shape[1] > 1 else "random", random_state=seed)
        places = torch.from_numpy(method.fit_transform(z.numpy())).double()
    return CodesTSNE(places, perplexity, float(method.kl_divergence_), TSNE_CAUTION)
