"""Codes of data: posterior means, standard deviations and draws of the latents of each datum."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrovae.densities import Program, Site, entry, vectorize_pair
from pyrovae.evidence.blocks import (
    DataBlock,
    check_counts,
    chunk_size_or_default,
    concatenate,
    data_blocks,
    decoded_data_at_once,
    evaluation_mode,
)
from pyrovae.evidence.posterior import weighted_points
from pyrovae.evidence.proposals import Proposal
from pyrovae.evidence.weight_blocks import tell_faults
from pyrovae.stats import LogMarginal


class Encoding(NamedTuple):
    """Posterior of the latents of N data, by site, in the order of the model.

    Attributes:
        mean: Means E[z|x], each with shape (N, *event), float64; of discrete latents, means of their codes.
        std: Standard deviations, each with shape (N, *event), float64.
        mean_error: Monte Carlo standard errors of the means, each with shape (N, *event); 0 where the guide's
            distribution gave them in closed form.
        draws: Draws from the posterior, each with shape (M, N, *event).
        log_marginal: Estimates of log p(x) with standard errors, effective sample sizes and k-hats, each with shape
            (N,), in nats, from the weights; None without weights.
    """

    mean: dict[str, Tensor]
    std: dict[str, Tensor]
    mean_error: dict[str, Tensor]
    draws: dict[str, Tensor]
    log_marginal: LogMarginal | None


@entry()
def encode(
    model: Program,
    guide: Program,
    *args: Any,
    weighted: bool = False,
    num_particles: int = 1000,
    num_draws: int = 0,
    proposal: Proposal | None = None,
    chunk_size: int | None = None,
    plate: str | None = None,
    **kwargs: Any,
) -> Encoding:
    """Encode data: compute means and standard deviations of the latents of each datum, and draw them.

    Without weights all are those of the guide q(z|x): in closed form if the distribution of a site has a mean and a
    variance and does not depend on other latents, else from K draws. They have the guide's errors.

    With weights they are those of the posterior p(z|x), by self-normalised importance sampling with the default
    proposal (Owen 2013, "Monte Carlo theory, methods and examples", https://artowen.su.domains/mc/, section 9.2):

        E[z|x] ~ sum_k w_k z_k,  w_k = p(x, z_k)/q(z_k) / sum_j p(x, z_j)/q(z_j)

    The bias is of order 1/K. Where the k-hat of `log_marginal` is above 0.7, few draws carry the weights. Draws choose
    among the K weighted ones, so the same may come twice.

    Args:
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Positional arguments of both programs, the data first, with shape (N, ...).
        weighted: Whether to correct the guide by importance weights.
        num_particles: Number of draws K of the latents per datum.
        num_draws: Number of draws M to return per datum; 0 for none.
        proposal: `Proposal` to draw the weighted latents from; None for the default.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory; None as in `log_marginal`.
        plate: Name of the plate over the data; None for the only plate around all sites that has their number.
        **kwargs: Keyword arguments of both programs, such as mask and covariates.

    Raises:
        ValueError: If a proposal is given without weights, a count is negative, or as `log_marginal`.

    Example:
        >>> from pyrovae import MLP, VAE, NormalEncoder, NormalLikelihood, StandardNormalPrior
        >>> vae = VAE(StandardNormalPrior(2), NormalLikelihood(MLP(2, 3)), NormalEncoder(MLP(3, 4)))
        >>> code = encode(vae.model, vae.guide, torch.randn(5, 3), num_draws=10)
        >>> code.mean["z"].shape, code.draws["z"].shape
        (torch.Size([5, 2]), torch.Size([10, 5, 2]))
    """
    check_counts(num_particles=num_particles)
    if num_draws:
        check_counts(num_draws=num_draws)
    if proposal is not None and not weighted:
        raise ValueError("a proposal is for weighted codes; give weighted=True, or leave proposal out")
    pair = vectorize_pair(model, guide, args, kwargs, plate=plate)
    chunk = chunk_size_or_default(chunk_size, args, kwargs)
    at_once = decoded_data_at_once(max(num_particles, num_draws), chunk_size, args, kwargs)
    parts, weights = [], []
    for block in data_blocks(*pair, args, kwargs, at_once, skip_support_check=not weighted):
        with evaluation_mode(*pair):
            if not block.space.names:
                raise ValueError("all latents are summed out, so data have no code; give a guide that draws")
            if weighted:
                drawn = weighted_points(block, num_particles, proposal, chunk)
                weights.append(drawn.weights)
                parts.append(_weighted(drawn.latents, drawn.weight, num_draws))
            else:
                parts.append(_of_guide(block, num_particles, num_draws))
    names = block.space.names
    mean, std, error, draws = (
        {name: torch.cat([part[i][name] for part in parts], i // 3) for name in names} for i in range(4)
    )
    if not weighted:
        return Encoding(mean, std, error, draws, None)
    log_marginal = LogMarginal(*concatenate([one.summary() for one in weights]))
    tell_faults([one.fault for one in weights], log_marginal.value)
    return Encoding(mean, std, error, draws, log_marginal)


Part = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]


def _weighted(latents: dict[str, Tensor], weight: Tensor, num_draws: int) -> Part:
    """Compute means, standard deviations, errors and draws of n data from weighted draws; NaN without weights."""
    mean, std, error, draws = {}, {}, {}, {}
    bad = weight.isnan().any(0)
    chosen = torch.multinomial(torch.where(bad, 1.0, weight).T, num_draws, replacement=True).T if num_draws else None
    data = torch.arange(weight.shape[1], device=weight.device)
    for name, value in latents.items():
        z, w = value.double(), weight.reshape(*weight.shape, *[1] * (value.dim() - 2))
        mean[name] = (w * z).sum(0)
        residual = z - mean[name]
        std[name] = (w * residual.square()).sum(0).sqrt()
        error[name] = (w * residual).square().sum(0).sqrt()
        draws[name] = value[:0] if chosen is None else value[chosen, data]
        if bool(bad.any()) and chosen is not None and value.is_floating_point():
            draws[name][:, bad] = torch.nan
    return mean, std, error, draws


def _of_guide(block: DataBlock, num_particles: int, num_draws: int) -> Part:
    """Compute means, standard deviations, errors and draws of n data from the guide."""
    assert block.guide is not None
    mean, std, error = {}, {}, {}
    two = block.guide.trace(2, block.args, block.kwargs).sites
    exact = {name: known_moments(two[name]) for name in block.space.names}
    count = num_draws if all(one is not None for one in exact.values()) else max(num_draws, num_particles)
    drawn = block.space.from_guide(count) if count else {name: site.value[:0] for name, site in two.items()}
    for name, known in exact.items():
        z = drawn[name].double()
        if known is None:
            mean[name], std[name] = z.mean(0), z.std(0) if len(z) > 1 else torch.full_like(z[0], torch.nan)
            error[name] = std[name] / len(z) ** 0.5
        else:
            mean[name], std[name] = known
            error[name] = torch.zeros_like(known[0])
    return mean, std, error, {name: drawn[name][:num_draws] for name in exact}


def known_moments(site: Site) -> tuple[Tensor, Tensor] | None:
    """Return mean and standard deviation of a site, each with shape (n, *event); None unless they are known.

    They are known if the distribution has both, finite, and the same for two draws of the other latents.
    """
    if site.auxiliary is not None:
        return None
    try:
        found = [site.fn.mean, site.fn.variance.sqrt()]
    except (NotImplementedError, AttributeError):
        return None
    values = []
    for one in found:
        if one.shape != site.fn.shape() and one.shape != site.raw_value.shape:
            return None
        one = site.layout.per_datum(one, site.plate_sizes, len(site.fn.event_shape)).double()
        if not bool(one.isfinite().all()) or not torch.equal(one[0], one[-1]):
            return None
        values.append(one[0])
    return values[0], values[1]
