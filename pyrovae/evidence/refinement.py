"""Where log p(x) - ELBO comes from: the family of the approximate posterior, or the guide that amortises it."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pyrovae.densities import Program, check_support, check_weights, num_data, take
from pyrovae.evidence.ais import continuous_space, data_blocks, quiet
from pyrovae.evidence.latent_space import LatentSpace
from pyrovae.stats import LogMarginal, summarize_lower_bound

Family = Literal["diagonal", "full"]

_MOMENT_DRAWS = 400  # of the guide, for the normal that optimisation starts from


class Refinement(NamedTuple):
    """A normal posterior in u for each datum, optimised, and what it says of the guide; values in nats, float64.

    Errors are Monte Carlo standard errors, that of log p(x) included where it enters.

    Attributes:
        mean: Means, with shape (N, U).
        scale_tril: Cholesky factors of the covariances, with shape (N, U, U).
        elbo: ELBO of these normals, with shape (N,).
        elbo_error: Its error.
        guide_elbo: ELBO of the guide, with shape (N,).
        guide_elbo_error: Its error.
        approximation_gap: log p(x) - elbo, which the best member of the family leaves, with shape (N,).
        approximation_error: Its error.
        amortisation_gap: elbo - guide_elbo, which one guide for all data adds, with shape (N,). Negative where the
            guide is of a richer family than these normals.
        amortisation_error: Its error.
        total_gap: log p(x) - guide_elbo = KL(q(z|x), p(z|x)), with shape (N,).
        total_error: Its error.
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
    **kwargs: Any,
) -> Refinement:
    r"""Optimise a posterior for each datum from the guide's, and split the guide's gap by it.

    log p(x) - ELBO(guide) = [log p(x) - max_q ELBO(q)] + [max_q ELBO(q) - ELBO(guide)],

    the approximation gap and the amortisation gap (Cremer, Li, Duvenaud 2018, "Inference suboptimality in variational
    autoencoders", https://arxiv.org/abs/1801.03558), where q goes over the normals in the unconstrained coordinates u,
    u = m + L (a + B e) with e ~ N(0, I). The start m, L has the moments of draws from the guide; a and B follow Adam,
    its rate falling to 0 by a cosine, up the gradient of log p(x, z(u)) |dz/du| - log q(u) along the path alone
    (Roeder, Wu, Duvenaud 2017, https://arxiv.org/abs/1703.09194), which has no noise where q is the posterior. All
    ELBOs are of fresh draws.

    Args:
        model: Pyro program p(z) p(x|z) with continuous latents.
        guide: Pyro program q(z|x), with the model's arguments.
        *args: Arguments of both, the data first, with shape (N, ...).
        log_p: Estimates of log p(x) for these data, from `ais` say; or exact values, with shape (N,).
        family: "diagonal" or "full" covariance in u.
        steps: Steps of Adam.
        lr: Its rate at the start, in standard deviations of the start.
        draws_per_step: Draws per datum that a gradient averages, half of them the others mirrored.
        num_particles: Draws per datum for the ELBOs.
        chunk_size: Draws (times data) decoded at once; None for 8,192.
        **kwargs: Keyword arguments of both.

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
    counts = {"steps": steps, "draws_per_step": draws_per_step, "num_particles": num_particles}
    for name, given in counts.items():
        if given < 1:
            raise ValueError(f"{name} must be at least 1, got {given}")
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
    with quiet(model, guide):
        for rows in data_blocks(size, max(draws_per_step, 64), chunk_size):
            part, options = take(args, kwargs, rows)
            check_support(model, *part, guide=guide, first=rows.start, **options)
            space = continuous_space(model, guide, part, options)
            if space.masked:
                raise ValueError("a mask leaves latents out, which have no posterior to refine; take their data out")
            normal = _optimise(space, family, steps, lr, draws_per_step)
            at_once = max(1, (chunk_size or 8192) // space.num_data)
            drawn = [_log_weights(space, q, num_particles, at_once) for q in (normal, None)]
            for log_w in drawn:
                check_weights(log_w, model, guide, *part, first=rows.start, **options)
            best, ours = map(summarize_lower_bound, drawn)
            found.append((normal.loc, normal.scale_tril, *best, *ours))
    mean, scale_tril, elbo, elbo_error, guide_elbo, guide_error = (torch.cat(p) for p in zip(*found, strict=True))
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
    space: LatentSpace, family: Family, steps: int, lr: float, draws_per_step: int
) -> torch.distributions.MultivariateNormal:
    drawn = space.pack(space.from_guide(max(_MOMENT_DRAWS, 10 * space.size)))
    centre = drawn.mean(0)
    if family == "full":
        residual = (drawn - centre).movedim(0, 1) / len(drawn) ** 0.5  # (N, M, U)
        start = torch.linalg.qr(residual, mode="r").R.mT
        start = start * start.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    else:
        start = drawn.std(0).diag_embed()
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
            # q's density with its parameters held: only the path of the draws is followed.
            back = torch.linalg.solve_triangular(factor.detach(), (v - shift.detach()).unsqueeze(-1), upper=False)
            log_q = -back.squeeze(-1).square().sum(-1) / 2
            log_ratio = space.log_joint(centre + (start @ v.unsqueeze(-1)).squeeze(-1)) - log_q
            gradients = torch.autograd.grad(log_ratio.mean(0).sum(), moving)
            for parameter, gradient in zip(moving, gradients, strict=True):
                parameter.grad = -gradient.nan_to_num(0.0, 0.0, 0.0)
            optimizer.step()
            schedule.step()
    factor = (below.tril(-1) + log_width.exp().diag_embed()).detach()
    mean = centre + (start @ shift.detach().unsqueeze(-1)).squeeze(-1)
    return torch.distributions.MultivariateNormal(mean, scale_tril=start @ factor, validate_args=False)


def _log_weights(
    space: LatentSpace, normal: torch.distributions.MultivariateNormal | None, num_particles: int, at_once: int
) -> Tensor:
    """Log weights under a normal in u, or the guide, with shape (K, N)."""
    parts = []
    for done in range(0, num_particles, at_once):
        count = min(at_once, num_particles - done)
        if normal is None:
            latents = space.from_guide(count)
            log_prior, log_lik = space.log_model(latents)
            parts.append((log_prior + log_lik - space.log_guide(latents)).double())
        else:
            u = normal.sample((count,))
            parts.append((space.log_joint(u) - normal.log_prob(u)).double())
    return torch.cat(parts)
