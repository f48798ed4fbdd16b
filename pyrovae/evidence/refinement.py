"""Split log p(x) - ELBO into approximation gap and amortisation gap."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pyrovae.densities import Program, entry, num_data, vectorize_pair
from pyrovae.evidence.blocks import (
    DEFAULT_CHUNK_SIZE,
    UndefinedGradients,
    check_counts,
    concatenate,
    data_at_once,
    data_blocks,
    evaluation_mode,
    split_count,
)
from pyrovae.evidence.latent_space import LatentSpace
from pyrovae.stats import LogMarginal, summarize_lower_bound

Family = Literal["diagonal", "full"]

_MOMENT_DRAWS = 400  # of the guide, for the normal from which the optimisation starts


class Refinement(NamedTuple):
    """Optimised normal posterior in u of each datum, and the guide's gaps; values in nats, float64.

    Errors are Monte Carlo standard errors. Those of gaps from log p(x) include the error of log p(x).

    Attributes:
        mean: Means, with shape (N, U).
        scale_tril: Cholesky factors of the covariances, with shape (N, U, U).
        elbo: ELBO of these normals, with shape (N,).
        elbo_error: Error of elbo.
        guide_elbo: ELBO of the guide, with shape (N,).
        guide_elbo_error: Error of guide_elbo.
        approximation_gap: log p(x) - elbo, the gap of the best member of the family, with shape (N,).
        approximation_error: Error of approximation_gap.
        amortisation_gap: elbo - guide_elbo, the cost of one guide for all data, with shape (N,). Negative if the
            guide's family is richer than these normals.
        amortisation_error: Error of amortisation_gap.
        total_gap: log p(x) - guide_elbo = KL(q(z|x), p(z|x)), with shape (N,).
        total_error: Error of total_gap.
    """

    mean: Tensor
    scale_tril: Tensor
    elbo: Tensor
    elbo_error: Tensor
    guide_elbo: Tensor
    guide_elbo_error: Tensor
    approximation_gap: Tensor
    approximation_error: Tensor
    amortisation_gap: Tensor
    amortisation_error: Tensor
    total_gap: Tensor
    total_error: Tensor


@entry()
def refine(
    model: Program,
    guide: Program,
    *args: Any,
    log_p: LogMarginal | Tensor,
    family: Family = "diagonal",
    steps: int = 500,
    lr: float = 0.03,
    draws_per_step: int = 8,
    num_particles: int = 1000,
    chunk_size: int | None = None,
    plate: str | None = None,
    **kwargs: Any,
) -> Refinement:
    r"""Optimise a posterior for each datum, starting from the guide's, and split the guide's gap into two parts.

    log p(x) - ELBO(guide) = [log p(x) - max_q ELBO(q)] + [max_q ELBO(q) - ELBO(guide)],

    the approximation gap and the amortisation gap (Cremer, Li, Duvenaud 2018, "Inference suboptimality in variational
    autoencoders", https://arxiv.org/abs/1801.03558). The maximum is over normals q in the unconstrained coordinates u,
    u = m + L (a + B e) with e ~ N(0, I). m and L are the moments of draws from the guide. Adam, with a rate that falls
    to 0 by a cosine, optimises a and B by the pathwise gradient of log p(x, z(u)) |dz/du| - log q(u) (Roeder, Wu,
    Duvenaud 2017, https://arxiv.org/abs/1703.09194), which has no noise where q is the posterior. All ELBOs use fresh
    draws.

    Args:
        model: Pyro program p(z) p(x|z) with continuous latents.
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Positional arguments of both programs, the data first, with shape (N, ...).
        log_p: Estimates of log p(x) for these data, such as those of `ais`, or exact values, with shape (N,).
        family: "diagonal" or "full" covariance in u.
        steps: Number of steps of Adam.
        lr: Initial learning rate, in standard deviations of the start.
        draws_per_step: Number of draws per datum and gradient, in antithetic pairs.
        num_particles: Number of draws K per datum.
        chunk_size: Number of latents, K times N, decoded at once, which bounds memory; None for 8,192.
        plate: Name of the plate over the data; None for the only plate around all sites that has their number.
        **kwargs: Keyword arguments of both programs.

    Raises:
        ValueError: If latents are discrete, a count is below 1, the family is unknown, log_p is not of these data,
            data lie outside the support, or a density is NaN.

    Example:
        >>> from pyrovae import MLP, VAE, NormalEncoder, NormalLikelihood, StandardNormalPrior, ais, linear_schedule
        >>> vae = VAE(StandardNormalPrior(1), NormalLikelihood(MLP(1, 3)), NormalEncoder(MLP(3, 2)))
        >>> x = torch.randn(4, 3)
        >>> log_p = ais(vae.model, x, num_particles=10, betas=linear_schedule(5), num_leapfrog=2, num_tuning=10)
        >>> refine(vae.model, vae.guide, x, log_p=log_p, steps=5).amortisation_gap.shape
        torch.Size([4])
    """
    check_counts(steps=steps, draws_per_step=draws_per_step, num_particles=num_particles)
    if not lr > 0:
        raise ValueError(f"lr must be positive, got {lr}")
    if family not in ("diagonal", "full"):
        raise ValueError(f'family must be "diagonal" or "full", got {family!r}')
    value = log_p if isinstance(log_p, Tensor) else log_p.value
    log_p_error = torch.zeros_like(log_p) if isinstance(log_p, Tensor) else log_p.std_error
    size = num_data(args, kwargs)
    if value.shape != (size,):
        raise ValueError(f"log_p has shape {tuple(value.shape)}; expected one value for each of {size} data")
    found = []
    pair = vectorize_pair(model, guide, args, kwargs, plate=plate)
    with evaluation_mode(*pair):
        for block in data_blocks(*pair, args, kwargs, data_at_once(max(draws_per_step, 64), chunk_size)):
            space = block.space
            space.require_continuous()
            if space.masked:
                raise ValueError("refine needs a posterior of all latents, but a mask leaves some out; remove them")
            undefined = UndefinedGradients()
            normal = _optimise(space, family, steps, lr, draws_per_step, undefined)
            undefined.warn(block.first, "their normals are not the best ones, and approximation_gap is too large")
            counts = split_count(num_particles, (chunk_size or DEFAULT_CHUNK_SIZE) // space.num_data)
            drawn = [torch.cat([_log_weights(space, q, count) for count in counts]) for q in (normal, None)]
            for log_w in drawn:
                block.check(log_w)
            best, ours = map(summarize_lower_bound, drawn)
            found.append((normal.loc, normal.scale_tril, *best, *ours))
    mean, scale_tril, elbo, elbo_error, guide_elbo, guide_error = concatenate(found)
    value, log_p_error = value.to(elbo), log_p_error.to(elbo)
    return Refinement(
        mean,
        scale_tril,
        elbo,
        elbo_error,
        guide_elbo,
        guide_error,
        value - elbo,
        torch.hypot(log_p_error, elbo_error),
        elbo - guide_elbo,
        torch.hypot(elbo_error, guide_error),
        value - guide_elbo,
        torch.hypot(log_p_error, guide_error),
    )


def _optimise(
    space: LatentSpace,
    family: Family,
    steps: int,
    lr: float,
    draws_per_step: int,
    undefined: UndefinedGradients,
) -> torch.distributions.MultivariateNormal:
    """Optimise a normal in u per datum, from the moments of the guide."""
    centre, start = _guide_moments(space, family)
    shift = torch.zeros_like(centre, requires_grad=True)
    log_width = torch.zeros_like(centre, requires_grad=True)
    below = torch.zeros_like(start, requires_grad=True)
    moving = [shift, log_width] + ([below] if family == "full" else [])
    optimizer = torch.optim.Adam(moving, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    half = (draws_per_step + 1) // 2
    with torch.enable_grad():
        for _ in range(steps):
            factor = below.tril(-1) + log_width.exp().diag_embed()
            noise = torch.randn(half, *centre.shape, dtype=centre.dtype, device=centre.device)
            noise = torch.cat([noise, -noise])
            v = shift + (factor @ noise.unsqueeze(-1)).squeeze(-1)
            # The density of q has constant parameters, so that only the path of the draws has a gradient.
            back = torch.linalg.solve_triangular(factor.detach(), (v - shift.detach()).unsqueeze(-1), upper=False)
            log_q = -back.squeeze(-1).square().sum(-1) / 2
            log_ratio = space.log_joint(centre + (start @ v.unsqueeze(-1)).squeeze(-1)) - log_q
            gradients = torch.autograd.grad(log_ratio.mean(0).sum(), moving)
            failed = torch.stack([gradient.flatten(1).isnan().any(-1) for gradient in gradients]).any(0)
            undefined.add((failed & log_ratio.isfinite().all(0)).unsqueeze(0))
            for parameter, gradient in zip(moving, gradients, strict=True):
                parameter.grad = -gradient.nan_to_num(0.0, 0.0, 0.0)
            optimizer.step()
            schedule.step()
    factor = (below.tril(-1) + log_width.exp().diag_embed()).detach()
    mean = centre + (start @ shift.detach().unsqueeze(-1)).squeeze(-1)
    return torch.distributions.MultivariateNormal(mean, scale_tril=start @ factor, validate_args=False)


def _guide_moments(space: LatentSpace, family: Family) -> tuple[Tensor, Tensor]:
    """Estimate the guide's mean, with shape (N, U), and a Cholesky factor of its covariance, (N, U, U), in u."""
    drawn = space.pack(space.from_guide(max(_MOMENT_DRAWS, 10 * space.size)))
    centre = drawn.mean(0)
    if family == "diagonal":
        return centre, drawn.std(0).diag_embed()
    residual = (drawn - centre).movedim(0, 1) / len(drawn) ** 0.5  # (N, M, U)
    start = torch.linalg.qr(residual, mode="r").R.mT
    return centre, start * start.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)


def _log_weights(
    space: LatentSpace, normal: torch.distributions.MultivariateNormal | None, num_particles: int
) -> Tensor:
    """Draw log weights under a normal in u, or under the guide, with shape (K, N)."""
    if normal is None:
        latents = space.from_guide(num_particles)
        log_prior, log_lik = space.log_model(latents)
        return (log_prior + log_lik - space.log_guide(latents)).double()
    u = normal.sample((num_particles,))
    return (space.log_joint(u) - normal.log_prob(u)).double()
